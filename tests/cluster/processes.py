"""Processes of a cluster on this machine, as the kernel shows them: who started whom, and who writes which file."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")


def wait_for(what: Callable[[], Found | None], *, seconds: float, every: float = 0.05) -> Found:
    """What a function gives as soon as it gives something; a failure of the test if it does not in time."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"{what} gave nothing in {seconds:g} s"
        time.sleep(every)
    return found


def command_line(pid: int) -> str:
    """The words of a process, by spaces; empty if it is no more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def ancestors(pid: int) -> list[int]:
    """A process, the one that started it, and so on."""
    found = []
    while pid > 1:
        found.append(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return found


def with_words(*words: str) -> list[int]:
    """Processes whose command line holds all of some words."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if pid != os.getpid() and all(word in command_line(pid) for word in words)]


def harnesses(mark: str) -> list[int]:
    """Python workers of Beam, and what they have started, of a cluster with a mark in its environment."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            words = environment.read_bytes().split(b"\0")
        except OSError:
            continue
        if mark.encode() in words and "java" not in command_line(int(environment.parent.name)).partition(" ")[0]:
            found.append(int(environment.parent.name))
    return found


def writers(folder: Path) -> Iterator[int]:
    """Processes that have a file in a folder open."""
    for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*")):
        try:
            opened = [os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        if any(name.startswith(f"{folder}/") for name in opened):
            yield pid
