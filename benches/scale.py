"""Estimates from an hour to a million hours: the tables of `docs/scale.md`, from measured rates and list prices.

`python -m benches.scale` prints them; `python -m benches.scale --write` writes them into the page, between its marks. A
test compares the page with them. Every measured or quoted number is defined once, in this file, with its source.
"""

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path

from benches import rows
from soundlake.model.features.log_mel import PRESETS
from soundlake.pipelines.extract import plan
from soundlake.pipelines.extract.pipeline import PART_ROWS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
HOURS = (1, 100, 10_000, 1_000_000)
FILES = (10**6, 10**7, 10**8)
SPEC = PRESETS["general"]
GB, TB = 1e9, 1e12
# Memory of a common large rented machine.
MEMORY = 64 * GB


@dataclass(frozen=True)
class Rate:
    """A measured number, and how to reproduce it."""

    value: float
    unit: str
    source: str


EXTRACT_RUN = "`soundlake extract … --json`, `rates`: 44.1 kHz stereo"
RATES = {
    "WAV": Rate(0.00068, "CPU s a second of sound", EXTRACT_RUN),
    "FLAC": Rate(0.00172, "CPU s a second of sound", EXTRACT_RUN),
    "MP3": Rate(0.00234, "CPU s a second of sound", EXTRACT_RUN),
    "OGG": Rate(0.00240, "CPU s a second of sound", EXTRACT_RUN),
    "M4A": Rate(0.00199, "CPU s a second of sound", EXTRACT_RUN),
    "plan": Rate(71, "CPU µs a file", "`make bench-planner`: all steps from the listing to a bundle's name"),
    "digest": Rate(1.8e9, "bytes a CPU second", "`hashlib.sha256` of 256 MB, one core"),
    "windows": Rate(3502.6, "windows an hour of sound", "`make bench-planner`: windows of all rows over their hours"),
    "bundle": Rate(3500, "windows a bundle", "`make bench-planner`; 2,070 with a bucket a bundle"),
    "encode": Rate(800, "windows a CPU second", "`make bench BENCHES=encode`; docs/figures.md"),
    "train": Rate(229, "windows a CPU second", "`make bench BENCHES=training`: 458 on two cores; docs/figures.md"),
    "scan": Rate(
        48_000, "windows a second, one process", "`model.training.dataset.statistics` on warm shards, few taken"
    ),
    "index": Rate(
        20.6, "CPU s for 10⁶ rows", "`python -m benches.index`, IVF_FLAT; beyond them taken to grow with rows^1.5"
    ),
    "listed": Rate(81, "bytes a file", "`make bench-planner`: shuffled by uri"),
    "known": Rate(244, "bytes a file", "`make bench-planner`: the ledger, shuffled by uri, in a later run"),
    "contents": Rate(306, "bytes a file", "the same, shuffled by content, where anything is new"),
    "found": Rate(221, "bytes a new file", "`make bench-planner`: shuffled by content"),
    "works": Rate(252, "bytes a new file", "`make bench-planner`: shuffled by bucket"),
    "outcomes": Rate(27, "bytes a new file", "`make bench-planner`: shuffled by recording, of those that are cut"),
    "shard": Rate(32_940, "bytes a window", "shards of a lake, by their windows: 128 × 128 × 16 bits and 172 bytes"),
    "outcome": Rate(4_900, "bytes a bundle", "`outcomes/` of the same lake"),
    "ledger": Rate(106, "bytes a file", "`python -m benches.held`: a uri of 45 bytes"),
    "table": Rate(910, "bytes a window", "654 in the table of that lake, and 256 since the latent has its own column"),
    "IVF_FLAT": Rate(515, "bytes a window", "`python -m benches.index`: embeddings of 128 numbers"),
    "IVF_SQ": Rate(132, "bytes a window", "`python -m benches.index`"),
    "model": Rate(209e6, "bytes a model", "`models/MODEL`, checkpoints and report included"),
}
STEPS, BATCH = 4_000, 64

UNDATED = "quoted alike in public code; no dated page could be read: look at cloud.google.com/dataflow/pricing"
PRICES = {
    "vCPU": Rate(0.056, "$ a vCPU hour, Dataflow, batch", UNDATED),
    "memory": Rate(0.003557, "$ a GB hour, Dataflow", UNDATED),
    "shuffle": Rate(0.011, "$ a GB shuffled, Dataflow", UNDATED),
    "machine": Rate(
        0.0816 / 2,
        "$ a vCPU hour, machines of one's own",
        "EC2 m7g.large (Arm, not measured here) on demand, us-east-1: factualminds.com, 17 June 2026",
    ),
    "storage": Rate(
        0.020,
        "$ a GB and month, Cloud Storage",
        "cloud.google.com/storage/pricing-examples, us-east1; the same on 19 January 2021 and in 2024",
    ),
    "put": Rate(0.005 / 1000, "$ a write or listing (class A)", "the same page: $0.005 a thousand"),
    "get": Rate(0.0004 / 1000, "$ a read (class B)", "the same page: $0.0004 a thousand"),
}
# GB per vCPU of Dataflow's workers.
GB_A_CPU = 3.75

# Bytes per file in the memory of one process, by step. Measured by `python -m benches.held`.
HELD = {
    "`train`: bundles and groups (`ledger.training_input`)": 257,
    "`train`: splits (`splits.assign`)": 48,
    # 21 bytes per window (`model.training.places`), and 131 windows per file of the mix.
    "`train`: where each window lies (`model.training.places`)": 21 * 131,
    "`status`: totals (`ledger.summary`)": 546,
    "a label file, on one worker (`labels.read_labels`)": 767,
    "extract's commit: names of new fragments, at 2,048 rows each": 0.27,
    "one bucket of extract's joins, on a worker (of 512)": 106.3 * 2**20 / 195_313 / 512,
}


def shares() -> dict[str, float]:
    """Share of each format in the sound of the mix."""
    seconds: dict[str, float] = {}
    for kind in rows.KINDS:
        mean = kind.median * math.exp(kind.spread**2 / 2)
        for name, share in kind.formats.items():
            seconds[name] = seconds.get(name, 0.0) + kind.share * share * mean
    return {name: value / sum(seconds.values()) for name, value in seconds.items()}


def files_an_hour() -> float:
    """Number of files of the mix per hour of sound."""
    return 3600 / sum(kind.share * kind.median * math.exp(kind.spread**2 / 2) for kind in rows.KINDS)


def bytes_an_hour() -> float:
    """Bytes of the corpus per hour of sound."""
    return 3600 * sum(share * rows.FORMATS[name][6] for name, share in shares().items())


@dataclass(frozen=True)
class Size:
    """A corpus of a number of hours of the mix, and the resources that it needs."""

    hours: float

    def of(self, name: str) -> float:
        """Value of a rate by its name."""
        return RATES[name].value

    @property
    def files(self) -> float:
        return self.hours * files_an_hour()

    @property
    def windows(self) -> float:
        return self.hours * self.of("windows")

    @property
    def bundles(self) -> float:
        return max(self.windows / self.of("bundle"), min(32.0, self.windows / plan.MIN_BUNDLE_WINDOWS))

    def extract(self, name: str) -> float:
        """CPU hours to extract the files of a format."""
        return self.hours * shares()[name] * self.of(name)

    @property
    def extracts(self) -> float:
        return sum(self.extract(name) for name in shares())

    @property
    def digests(self) -> float:
        """CPU hours to compute the digests of all files."""
        return self.hours * bytes_an_hour() / self.of("digest") / 3600

    @property
    def planning(self) -> float:
        return self.files * self.of("plan") / 1e6 / 3600

    @property
    def training(self) -> float:
        return STEPS * BATCH / self.of("train") / 3600

    @property
    def scanning(self) -> float:
        """Hours of one process: training reads all windows twice, for statistics and for components."""
        return 2 * self.windows / self.of("scan") / 3600

    @property
    def encoding(self) -> float:
        return self.windows / self.of("encode") / 3600

    @property
    def indexing(self) -> float:
        return 0.0 if self.windows < 65_536 else self.of("index") * (self.windows / 1e6) ** 1.5 / 3600

    @property
    def shuffled(self) -> float:
        """Bytes shuffled in a first run."""
        return self.files * sum(self.of(name) for name in ("listed", "found", "works", "outcomes"))

    @property
    def shuffled_again(self) -> float:
        """Bytes shuffled in a later run that finds few new files."""
        return self.files * (self.of("listed") + self.of("known") + self.of("contents"))

    @property
    def stored(self) -> dict[str, float]:
        """Bytes by stage."""
        index = self.windows * self.of("IVF_FLAT") if self.windows >= 65_536 else 0.0
        return {
            "features": self.windows * self.of("shard"),
            "outcomes": self.bundles * self.of("outcome"),
            "ledger": self.files * self.of("ledger"),
            "table": self.windows * self.of("table"),
            "index": index,
            "models, each": self.of("model"),
        }

    @property
    def writes(self) -> float:
        """Writes: shard, outcomes and progress of each bundle; the same for encode; ledger fragments; the listing."""
        return 6 * self.bundles + 2 * self.files / PART_ROWS + self.files / 1000

    @property
    def reads(self) -> float:
        """Reads: each file for its digest and again for decoding; each shard for encode."""
        return 2 * self.files + 3 * self.bundles

    @property
    def cpu(self) -> float:
        """CPU hours of all workers."""
        return self.extracts + self.digests + self.planning + self.encoding


def number(value: float) -> str:
    """A number with three digits and commas between thousands."""
    if value == 0:
        return "–"
    if value < 0.001:
        return "< 0.001"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{round(value, digits):,.{digits}f}" if value < 100 else f"{float(f'{value:.3g}'):,.0f}"


def amount(value: float) -> str:
    """An amount of bytes in a suitable unit."""
    for unit, size in (("TB", TB), ("GB", GB), ("MB", 1e6)):
        if value >= size:
            return f"{number(value / size)} {unit}"
    return "–" if value == 0 else f"{number(value / 1e3)} kB"


def table(heads: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown."""
    marks = ["---"] * len(heads)
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, marks, *lines])


def work() -> str:
    """Table of the work by size of the corpus."""
    sizes = [Size(hours) for hours in HOURS]
    lines = [
        ["files", *(number(size.files) for size in sizes)],
        ["corpus", *(amount(size.hours * bytes_an_hour()) for size in sizes)],
        ["windows", *(number(size.windows) for size in sizes)],
        ["shards", *(number(size.bundles) for size in sizes)],
        *(
            [f"extract, {name}, {shares()[name]:.0%} of the sound", *(number(size.extract(name)) for size in sizes)]
            for name in sorted(shares(), key=lambda name: -shares()[name])
        ),
        ["digests of all files", *(number(size.digests) for size in sizes)],
        ["planning", *(number(size.planning) for size in sizes)],
        ["train, 4,000 steps", *(number(size.training) for size in sizes)],
        ["train, looking at all windows twice, one process", *(number(size.scanning) for size in sizes)],
        ["encode", *(number(size.encoding) for size in sizes)],
        ["index, one process; from 10⁶ rows on extrapolated", *(number(size.indexing) for size in sizes)],
        ["**shuffled**, first run", *(amount(size.shuffled) for size in sizes)],
        ["shuffled, a later run with little new", *(amount(size.shuffled_again) for size in sizes)],
    ]
    heads = ["CPU hours, where nothing else is said", *(f"{hours:,} h" for hours in HOURS)]
    return table(heads, lines)


def storage() -> str:
    """Table of bytes by stage and size of the corpus."""
    sizes = [Size(hours) for hours in HOURS]
    lines = [[what, *(amount(size.stored[what]) for size in sizes)] for what in sizes[0].stored]
    part = RATES["IVF_SQ"].value / RATES["IVF_FLAT"].value
    lines.append(["index, IVF_SQ instead", *(amount(size.stored["index"] * part) for size in sizes)])
    return table(["", *(f"{hours:,} h" for hours in HOURS)], lines)


def money() -> str:
    """Table of dollars by size of the corpus."""
    sizes = [Size(hours) for hours in HOURS]
    a_vcpu = PRICES["vCPU"].value + GB_A_CPU * PRICES["memory"].value

    def dollars(value: float) -> str:
        return "< 0.01" if 0 < value < 0.01 else f"{value:,.2f}" if value < 10 else number(value)

    lines = [
        ["extract and encode, Dataflow", *(dollars(size.cpu * a_vcpu) for size in sizes)],
        ["what is shuffled, Dataflow", *(dollars(size.shuffled / GB * PRICES["shuffle"].value) for size in sizes)],
        ["extract and encode, own machines", *(dollars(size.cpu * PRICES["machine"].value) for size in sizes)],
        [
            "train and index, own machines",
            *(dollars((size.training + size.scanning + size.indexing) * PRICES["machine"].value) for size in sizes),
        ],
        [
            "requests",
            *(dollars(size.writes * PRICES["put"].value + size.reads * PRICES["get"].value) for size in sizes),
        ],
        ["storage, each month", *(dollars(sum(size.stored.values()) / GB * PRICES["storage"].value) for size in sizes)],
    ]
    return table(["$", *(f"{hours:,} h" for hours in HOURS)], lines)


def held() -> str:
    """Table of the memory of one process by number of files."""
    lines = [
        [
            what,
            number(a_file),
            *(amount(files * a_file) for files in FILES),
            number(MEMORY / a_file) if MEMORY / a_file < 1e10 else "beyond 10¹⁰",
        ]
        for what, a_file in HELD.items()
    ]
    heads = ["", "bytes a file", *(f"{files:,} files" for files in FILES), "64 GB end at, files"]
    return table(heads, lines)


def measured() -> str:
    """Table of the rates."""
    lines = [[name, f"{rate.value:,g}", rate.unit, rate.source] for name, rate in RATES.items()]
    return table(["", "figure", "", "from"], lines)


def prices() -> str:
    """Table of the list prices."""
    return table(["$", "", "from"], [[f"{price.value:.7g}", price.unit, price.source] for price in PRICES.values()])


TABLES = {"work": work, "storage": storage, "money": money, "held": held, "rates": measured, "prices": prices}
_MARK = re.compile(r"(<!-- benches\.scale (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page with its tables replaced by the current ones."""
    return _MARK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", page)


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(filled(PAGE.read_text()))
        return
    for name, build in TABLES.items():
        print(f"{name}\n{build()}\n")


if __name__ == "__main__":
    main()
