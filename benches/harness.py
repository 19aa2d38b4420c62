"""Comparison of times: sides are run in turn on the same cores, and reported as ratios.

Machines differ and are shared, so absolute seconds mean little, but ratios within one run are meaningful. Every round
runs each side once, in turn, so that a disturbance of the machine affects both. A ratio is the median over the rounds.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "build" / "bench"


def pin(cores: int) -> list[int]:
    """Restrict this process and its children to the first `cores` cores that it may use; return them.

    It must be the first call of a program. If the program may use more cores, it is restarted: libraries count cores
    when they load, and would otherwise start more threads than there are cores.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) > cores:
        os.sched_setaffinity(0, allowed[:cores])
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return allowed


def interleaved(sides: Mapping[str, Callable[[], Any]], *, rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each side, one number per round, after `warm` rounds that do not count.

    If a side returns a float, that is its number of seconds; otherwise the wall-clock time of the call counts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warm + rounds):
        for name, side in sides.items():
            began = time.perf_counter()
            result = side()
            if turn >= warm:
                seconds[name].append(result if isinstance(result, float) else time.perf_counter() - began)
    return seconds


def on_processor(side: Callable[[], Any]) -> Callable[[], float]:
    """The same side, timed by processor time: for work in this process that does not wait."""

    def timed() -> float:
        began = time.process_time()
        side()
        return time.process_time() - began

    return timed


@dataclass(frozen=True)
class Figure:
    """One line of a bench's table.

    Attributes
    ----------
    what : str
    value, low, high : float
        Median, minimum and maximum over the rounds.
    target : str
        The project's promise, such as ``"≥ 3.5"``; empty if there is none.
    met : bool or None
    note : str
    """

    what: str
    value: float
    low: float
    high: float
    target: str = ""
    met: bool | None = None
    note: str = ""


def figure(
    what: str, values: Sequence[float], *, least: float | None = None, most: float | None = None, note: str = ""
) -> Figure:
    """A figure from the values of several rounds, with the promise for its median."""
    value = statistics.median(values)
    target = " and ".join(f"{sign} {bound:g}" for sign, bound in (("≥", least), ("≤", most)) if bound is not None)
    met = None if not target else (least is None or value >= least) and (most is None or value <= most)
    return Figure(what, value, min(values), max(values), target, met, note)


def faster(what: str, slow: Sequence[float], fast: Sequence[float], **promise: Any) -> Figure:
    """Speed-up of one side over another: the ratio of seconds, round by round."""
    return figure(what, [a / b for a, b in zip(slow, fast, strict=True)], **promise)


def report(name: str, title: str, figures: Sequence[Figure]) -> None:
    """Print a table, and write the same figures to ``build/bench/NAME.json``."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for heading in ("", "median", "least – most", "promised", "", "note"):
        table.add_column(heading, justify="right" if heading in ("median", "least – most") else "left")
    for line in figures:
        verdict = {None: "", True: "met", False: "SHORT"}[line.met]
        spread = f"{line.low:.3g} – {line.high:.3g}"
        table.add_row(line.what, f"{line.value:.3g}", spread, line.target, verdict, line.note)
    Console(width=140).print(table)
    RESULTS.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    content = {"name": name, "title": title, "machine": machine, "figures": [asdict(line) for line in figures]}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
