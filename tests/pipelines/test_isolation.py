"""The sandbox: whatever a decoder does to its process costs one recording, and is named for what it was."""

import functools
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from soundlake.model.errors import TryLaterError
from soundlake.pipelines.audio import isolation
from soundlake.pipelines.audio.isolation import Sandbox
from soundlake.pipelines.audio.reading import REASONS, Rejected
from soundlake.pipelines.extract import bundle, survey
from soundlake.pipelines.lake.lake import Lake
from tests.pipelines import misbehaving
from tests.pipelines.misbehaving import MARKER
from tests.pipelines.test_extract import rows, run, sha256, windows_of, write

MEMORY = 512 << 20


@pytest.fixture
def box() -> Iterator[Sandbox]:
    made = Sandbox(seconds=2.0, memory=MEMORY)
    yield made
    made.close()


@pytest.fixture
def patient() -> Iterator[Sandbox]:
    """One in which nothing hangs for as long as a test goes on."""
    made = Sandbox()
    yield made
    made.close()


def is_fine(box: Sandbox) -> bool:
    return bool(box.call(misbehaving.add, 2, 3, stage="decode") == 5)


@pytest.mark.parametrize(
    ("function", "arguments", "reason", "detail"),
    [
        (misbehaving.crash, (), "decoder-crashed", "SIGSEGV"),
        (misbehaving.abort, (), "decoder-crashed", "SIGABRT"),
        (misbehaving.leave, (), "decoder-crashed", "exit code 3"),
        (misbehaving.pause, (), "decoder-hangs", "no sign of life for 2 s"),
        (misbehaving.backtrack, (), "decoder-hangs", "no sign of life for 2 s"),
        (misbehaving.wait_in_a_thread, (), "decoder-hangs", "no sign of life for 2 s"),
        (misbehaving.ask, (1 << 40,), "too-much-memory", "more than 512 MB"),
        (misbehaving.eat, (), "too-much-memory", "more than 512 MB"),
        (misbehaving.end_by, (signal.SIGKILL,), "too-much-memory", "the system killed the decoder"),
        (misbehaving.reject, (), "damaged", "after 3.000 s"),
    ],
)
def test_it_is_named_and_the_next_call_works(
    box: Sandbox, function: Callable[..., Any], arguments: tuple[Any, ...], reason: str, detail: str
) -> None:
    assert is_fine(box)
    with pytest.raises(Rejected) as found:
        box.call(function, *arguments, stage="decode")
    assert (found.value.stage, found.value.reason) == ("decode", reason)
    assert reason in REASONS
    assert detail in found.value.detail
    assert is_fine(box)


def test_who_says_that_it_lives_may_take_its_time(box: Sandbox) -> None:
    """In all longer than the limit, and never silent for so long."""
    assert box.call(misbehaving.go_on, 12, 0.25, stage="decode") == 12


def test_the_limit_is_on_top_of_what_it_starts_with(box: Sandbox) -> None:
    assert box.call(misbehaving.ask, MEMORY * 3 // 4, stage="decode") == 1


@pytest.mark.parametrize("hungry", [(misbehaving.eat,), (misbehaving.ask, 1 << 40)])
def test_memory_that_one_recording_took_is_there_for_the_next(
    box: Sandbox, hungry: tuple[Callable[..., Any], Any]
) -> None:
    with pytest.raises(Rejected):
        box.call(*hungry, stage="decode")
    assert box.call(misbehaving.ask, MEMORY * 3 // 4, stage="decode") == 1


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGALRM])
def test_a_recording_is_tried_once_more(box: Sandbox, tmp_path: Path, number: signal.Signals) -> None:
    """It may have died of what the one before it broke, or of a machine that was short of memory for a moment."""
    assert box.call(misbehaving.only_once, str(tmp_path / "tried"), number, stage="decode") == "passed"


def test_an_exception_that_cannot_travel_arrives_in_words(box: Sandbox) -> None:
    with pytest.raises(RuntimeError, match="Unsendable: the words"):
        box.call(misbehaving.raise_unsendable, stage="decode")
    assert is_fine(box)


def written(file: Path) -> int:
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return int(file.read_text())


def in_a_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_stopped_from_outside_is_no_rejection(patient: Sandbox, tmp_path: Path, number: signal.Signals) -> None:
    """As by a scheduler, or by a person: the recording is as good as it was."""
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"these tests were started to ignore {number.name}, as by nohup, and so are the decoders")
    file = tmp_path / "pid"
    thread, raised = in_a_thread(lambda: patient.call(misbehaving.tell_and_wait, str(file), stage="decode"))
    os.kill(written(file), number)
    thread.join()
    (error,) = raised
    assert isinstance(error, TryLaterError)
    assert is_fine(patient)


def test_many_die_while_others_start() -> None:
    """Each death is told as what it was: starting a child looks after all others, and an exit code is read once."""
    boxes = [Sandbox() for _ in range(3)]
    told: list[str] = []

    def crash_on(box: Sandbox) -> None:
        for _ in range(12):
            try:
                box.call(misbehaving.crash, stage="decode")
            except (Rejected, TryLaterError) as error:
                told.append(error.reason if isinstance(error, Rejected) else str(error))

    threads = [threading.Thread(target=crash_on, args=(box,)) for box in boxes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == ["decoder-crashed"] * 36


def test_ctrl_c_is_for_the_parent(patient: Sandbox, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    thread, raised = in_a_thread(lambda: patient.call(misbehaving.tell_and_wait, str(file), stage="decode"))
    pid = written(file)
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    thread.join()
    assert "killed by another process" in str(raised[0])


# A server of its own, to which Ctrl-C comes as soon as it is there: long before it has loaded anything.
EARLY = """
import multiprocessing.forkserver, os, signal, threading, time
from soundlake.pipelines.audio.isolation import Sandbox
from tests.pipelines import misbehaving
server = multiprocessing.forkserver._forkserver
def interrupt():
    while server._forkserver_pid is None:
        time.sleep(0.001)
    for _ in range(100):
        os.kill(server._forkserver_pid, signal.SIGINT)
        time.sleep(0.01)
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=interrupt).start()
box = Sandbox()
print(box.call(misbehaving.add, 2, 3, stage="decode"))
box.close()
"""


def test_ctrl_c_is_not_for_the_server() -> None:
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")


def test_stop_ends_what_goes_on(tmp_path: Path) -> None:
    """What happens after an error in another thread: nobody waits for a decoder any more."""
    file = tmp_path / "pid"

    def call() -> None:
        with isolation.sandbox() as found:
            found.call(misbehaving.tell_and_wait, str(file), stage="decode")

    thread, raised = in_a_thread(call)
    written(file)
    isolation.stop()
    thread.join()
    assert isinstance(raised[0], TryLaterError)
    with isolation.sandbox() as found:
        assert is_fine(found)


def test_a_process_that_cannot_start_is_no_fault_of_the_recording(
    monkeypatch: pytest.MonkeyPatch, box: Sandbox
) -> None:
    """Such as in a script without ``if __name__ == "__main__"``, or where the limit does not even let it begin."""
    monkeypatch.setattr(isolation, "_serve", misbehaving.leave_at_once)
    with pytest.raises(RuntimeError, match="could not start: exit code 4"):
        box.call(misbehaving.add, 2, 3, stage="decode")
    monkeypatch.undo()
    assert is_fine(box)


@pytest.fixture
def small_boxes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sandboxes that soon lose patience, and decoders that do what a file tells them."""
    made: list[Sandbox] = []
    monkeypatch.setattr(isolation, "_idle", made)
    monkeypatch.setattr(isolation, "Sandbox", functools.partial(Sandbox, seconds=4.0, memory=MEMORY))
    monkeypatch.setattr(bundle, "write_segment", misbehaving.write_segment)
    monkeypatch.setattr(survey, "probe", misbehaving.probe)
    yield
    for found in made:
        found.close()


def marked(path: Path, act: str, *, seed: int) -> None:
    """A good WAV whose first samples are the marker."""
    write(path, 5.0, seed=seed)
    data = bytearray(path.read_bytes())
    told = MARKER + act.encode() + b";"
    data[44 : 44 + len(told)] = told
    path.write_bytes(data)


BAD = {
    "decode:crash": ("decode", "decoder-crashed", "SIGSEGV"),
    "decode:pause": ("decode", "decoder-hangs", "no sign of life for 4 s"),
    "decode:eat": ("decode", "too-much-memory", "more than 512 MB"),
    "decode:ask": ("decode", "too-much-memory", "more than 512 MB"),
    "decode:leave": ("decode", "decoder-crashed", "exit code 3"),
    "probe:crash": ("probe", "decoder-crashed", "SIGSEGV"),
    "probe:pause": ("probe", "decoder-hangs", "no sign of life for 4 s"),
    "probe:ask": ("probe", "too-much-memory", "more than 512 MB"),
}


@pytest.mark.usefixtures("small_boxes")
def test_bad_files_cost_the_others_nothing(tmp_path: Path) -> None:
    """Each is rejected for what it does; what it had written is taken back, and its neighbours are as without it."""
    audio, clean, lake = tmp_path / "audio", Lake.at(str(tmp_path / "clean")), Lake.at(str(tmp_path / "lake"))
    for i in range(8):
        write(audio / f"good-{i}.wav", 3.0 + i, seed=i)
    run(clean, audio)
    for i, act in enumerate(BAD):
        marked(audio / f"{act}.wav", act, seed=100 + i)
    totals = run(lake, audio)
    assert (totals["done"], totals["rejected"]) == (8, len(BAD))
    found = rows(lake)
    for act, (stage, reason, detail) in BAD.items():
        row = found[f"{audio}/{act}.wav"]
        assert (row["status"], row["stage"], row["reason"], row["detail"]) == ("rejected", stage, reason, detail)
    assert windows_of(lake) == windows_of(clean)
    assert {uri: row for uri, row in found.items() if "/good-" in uri} == {
        uri: row | {"bundles": found[uri]["bundles"]} for uri, row in rows(clean).items()
    }
    # A rejection for what the bytes do is final: the next run does not try again.
    again = run(lake, audio)
    assert (again["unchanged"], again["rejected"]) == (8 + len(BAD), 0)


def test_a_header_that_claims_two_billion_frames(tmp_path: Path) -> None:
    """The real decoder; what is there is taken, and nothing is set aside for what is not."""
    audio, lake = tmp_path / "audio", Lake.at(str(tmp_path / "lake"))
    audio.mkdir()
    sound = np.random.default_rng(0).integers(0, 256, 16_000 * 5, np.uint8).tobytes()
    soundfile.write(audio / "honest.wav", np.frombuffer(sound, np.uint8) / 128.0 - 1, 16_000, subtype="PCM_U8")
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16_000, 16_000, 1, 8)
    claim = struct.pack("<4sI4s", b"RIFF", (1 << 31) + 36, b"WAVE") + form + struct.pack("<4sI", b"data", 1 << 31)
    (audio / "claims.wav").write_bytes(claim + sound)
    run(lake, audio)
    honest, claims = (rows(lake)[f"{audio}/{name}.wav"] for name in ("honest", "claims"))
    assert claims["status"] == "done"
    assert claims["duration_s"] == honest["duration_s"] == 5.0
    assert claims["windows"] == honest["windows"]
    assert len(claims["bundles"]) == 1
    found = windows_of(lake)
    one, two = sha256(audio / "honest.wav"), sha256(audio / "claims.wav")
    assert [found[one, i] for i in range(honest["windows"])] == [found[two, i] for i in range(honest["windows"])]
