"""Time things against each other: interleaved, on the same cores, and reported as ratios.

Machines differ and are shared: a second counts for nothing, a ratio taken within one run does. Every round runs each
side once, in turn, so that what disturbs the machine disturbs both; a ratio is the median over the rounds.
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
    """Keep this process, and what it starts, on the first `cores` cores it may use; return them.

    The first call of a program. It starts the program anew if it had more cores: libraries count them when they load,
    and threads for cores that they may not use would crowd the others out.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) > cores:
        os.sched_setaffinity(0, allowed[:cores])
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return allowed


def interleaved(sides: Mapping[str, Callable[[], Any]], *, rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each side, a number a round, after `warm` rounds that do not count.

    Those that a side returns as a float, where it knows better what counts; else what it took by the wall's clock.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warm + rounds):
        for name, side in sides.items():
            began = time.perf_counter()
            told = side()
            if turn >= warm:
                seconds[name].append(told if isinstance(told, float) else time.perf_counter() - began)
    return seconds


def on_processor(side: Callable[[], Any]) -> Callable[[], float]:
    """The same side, timed by what it takes of the processor: for work in this process that waits for nothing."""

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
        The median, and the least and the most of the rounds.
    target : str
        As the project promises it: ``"≥ 3.5"``; empty where nothing is promised.
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
    """A figure from the values of several rounds, against what is promised of its median."""
    value = statistics.median(values)
    target = " and ".join(f"{sign} {bound:g}" for sign, bound in (("≥", least), ("≤", most)) if bound is not None)
    met = None if not target else (least is None or value >= least) and (most is None or value <= most)
    return Figure(what, value, min(values), max(values), target, met, note)


def faster(what: str, slow: Sequence[float], fast: Sequence[float], **promise: Any) -> Figure:
    """How many times faster one side is: the ratio of seconds, round by round."""
    return figure(what, [a / b for a, b in zip(slow, fast, strict=True)], **promise)


def report(name: str, title: str, figures: Sequence[Figure]) -> None:
    """Print a table, and write the same to ``build/bench/NAME.json``."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for heading in ("", "median", "least – most", "promised", "", "note"):
        table.add_column(heading, justify="right" if heading in ("median", "least – most") else "left")
    for one in figures:
        verdict = {None: "", True: "met", False: "SHORT"}[one.met]
        spread = f"{one.low:.3g} – {one.high:.3g}"
        table.add_row(one.what, f"{one.value:.3g}", spread, one.target, verdict, one.note)
    Console(width=140).print(table)
    RESULTS.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    found = {"name": name, "title": title, "machine": machine, "figures": [asdict(one) for one in figures]}
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
