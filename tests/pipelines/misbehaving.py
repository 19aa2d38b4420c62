"""What decoders may do to the process that they run in; for `test_isolation`, and importable in a sandbox."""

import ctypes
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from soundlake.pipelines.audio import reading
from soundlake.pipelines.audio.isolation import alive
from soundlake.pipelines.audio.reading import Probe, Rejected
from soundlake.pipelines.extract import windows

# In the first bytes of a file that is to misbehave, before what it does.
MARKER = b"misbehaves:"


def add(a: int, b: int) -> int:
    """A call with nothing wrong."""
    return a + b


def crash() -> None:
    """Read where nothing is."""
    ctypes.string_at(0)


def abort() -> None:
    """As by a failed assertion in a C library."""
    os.abort()


def leave() -> None:
    """As by a C library that calls `exit`."""
    os._exit(3)


def pause() -> None:
    """Wait for ever in C, with Python's lock held, so that no handler of Python's could run."""
    ctypes.PyDLL(None).pause()


def backtrack() -> None:
    """Compute for ever in C."""
    re.match(r"(a+)+$", "a" * 64 + "b")


def wait_in_a_thread() -> None:
    """Wait for ever for a thread that lets no signal in, as those of C libraries do."""
    import threading

    def work() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
        ctypes.CDLL(None).pause()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def go_on(rounds: int, seconds: float) -> int:
    """Be slow, and say so."""
    for _ in range(rounds):
        time.sleep(seconds)
        alive()
    return rounds


def ask(size: int) -> int:
    """Ask for `size` bytes at once, and use them."""
    return int(np.full(size, 1, np.uint8)[-1])


def eat() -> None:
    """Take a little memory again and again."""
    held = []
    while True:
        held.append(bytearray(8 << 20))


def reject() -> None:
    """What a decoder says of a damaged file."""
    raise Rejected("decode", "damaged", detail="after 3.000 s")


class Unsendable(Exception):
    """An exception that pickle refuses."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.held = lambda: None


def raise_unsendable() -> None:
    """Raise what cannot travel home."""
    raise Unsendable("the words")


def only_once(marker: str, number: int) -> str:
    """End the process by a signal the first time, and pass the second."""
    if not os.path.exists(marker):
        Path(marker).touch()
        os.kill(os.getpid(), number)
        time.sleep(60)
    return "passed"


def end_by(number: int) -> None:
    """End the process by a signal, each time."""
    os.kill(os.getpid(), number)
    time.sleep(60)


def tell_and_wait(file: str) -> None:
    """Write down the number of this process, and wait."""
    Path(f"{file}.part").write_text(str(os.getpid()))
    os.rename(f"{file}.part", file)
    time.sleep(60)


ACTS = {b"crash": crash, b"pause": pause, b"eat": eat, b"ask": lambda: ask(1 << 40), b"leave": leave}


def _act(path: str | bytes | os.PathLike[str], stage: bytes) -> None:
    """Do what a file tells."""
    with open(path, "rb") as file:
        _, found, told = file.read(512).partition(MARKER + stage + b":")
    if found:
        ACTS[told.partition(b";")[0]]()


def probe(path: str | bytes | os.PathLike[str]) -> Probe:
    """`pipelines.audio.reading.probe`, unless the file tells otherwise."""
    _act(path, b"probe")
    return reading.probe(path)


def write_segment(part: str, offset: int, path: str | bytes | os.PathLike[str], *given: Any) -> Any:
    """`pipelines.extract.windows.write_segment`; then, with all its windows written, what the file tells."""
    done = windows.write_segment(part, offset, path, *given)
    _act(path, b"decode")
    return done


def leave_at_once(*_: Any) -> None:
    """In place of a child's work."""
    os._exit(4)
