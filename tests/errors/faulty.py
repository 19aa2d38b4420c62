"""Run with `fault.c` in front of the C library: libraries meet errors of the system, and what is told is printed.

`python -m tests.errors.faulty FOLDER LIBRARY…` writes a line of JSON for each case.
"""

import contextlib
import ctypes
import errno
import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from soundlake.model.errors import InputError, number_of, of_system

Call = Callable[[Path], Callable[[], Any]]
_LIBC = ctypes.CDLL(None)


@contextlib.contextmanager
def failing(call: str, part: str, number: int) -> Iterator[None]:
    """Let a call fail on files whose path has `part`."""
    for name, value in (("FAULT_PATH", part), ("FAULT_ERRNO", str(number)), ("FAULT_CALL", call)):
        _LIBC.setenv(name.encode(), value.encode(), 1)
    try:
        yield
    finally:
        _LIBC.unsetenv(b"FAULT_CALL")


@contextlib.contextmanager
def no_file_left() -> Iterator[None]:
    """Let this process open no further file: the kernel's own EMFILE."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest that is free: any other file would get it.
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# What each library does: made ready first, then done under the fault.


def _dataset(folder: Path) -> Any:
    import lance
    import pyarrow as pa

    rows = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(800, dtype=np.float32)), 8)
    table = pa.table({"uri": [f"u{number}" for number in range(100)], "embedding": rows})
    return lance.write_dataset(table, str(folder / "rows.lance"), mode="overwrite")


def lance_open(folder: Path) -> Callable[[], Any]:
    import lance

    uri = _dataset(folder).uri
    return lambda: lance.dataset(uri)


def lance_rows(folder: Path) -> Callable[[], Any]:
    dataset = _dataset(folder)
    return lambda: dataset.to_table(columns=["uri"])


def lance_filter(folder: Path) -> Callable[[], Any]:
    dataset = _dataset(folder)
    return lambda: dataset.count_rows("uri = 'u7'")


def lance_nearest(folder: Path) -> Callable[[], Any]:
    dataset = _dataset(folder)
    return lambda: dataset.to_table(nearest={"column": "embedding", "q": [0.0] * 8, "k": 3})


def lance_write(folder: Path) -> Callable[[], Any]:
    dataset = _dataset(folder)
    return lambda: dataset.insert(dataset.to_table())


def arrow_read(folder: Path) -> Callable[[], Any]:
    import pyarrow as pa
    from pyarrow import parquet

    path = folder / "rows.parquet"
    parquet.write_table(pa.table({"a": list(range(1000))}), path)
    return lambda: parquet.read_table(path)


def arrow_write(folder: Path) -> Callable[[], Any]:
    import pyarrow as pa
    from pyarrow import parquet

    return lambda: parquet.write_table(pa.table({"a": list(range(1000))}), folder / "new.parquet")


def arrow_csv(folder: Path) -> Callable[[], Any]:
    from pyarrow import csv

    path = folder / "rows.csv"
    path.write_text("a,b\n1,2\n")
    return lambda: csv.read_csv(path)


def numpy_save(folder: Path) -> Callable[[], Any]:
    return lambda: np.save(folder / "rows.npy", np.zeros(10_000))


def pyav_open(folder: Path) -> Callable[[], Any]:
    import av
    import soundfile

    path = folder / "a.wav"
    soundfile.write(path, np.zeros(8000), 8000)

    def decode() -> None:
        with av.open(str(path)) as container:
            list(container.decode(audio=0))

    return decode


def h5_write(folder: Path) -> Callable[[], Any]:
    import h5py

    return lambda: h5py.File(folder / "new.h5", "w").close()


def h5_read(folder: Path) -> Callable[[], Any]:
    import h5py

    with h5py.File(folder / "rows.h5", "w") as file:
        file["a"] = np.zeros(1000)
    return lambda: h5py.File(folder / "rows.h5")["a"][:]


def tensorflow_read(folder: Path) -> Callable[[], Any]:
    import tensorflow as tf

    path = str(folder / "rows.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(b"a record")
    return lambda: list(tf.data.TFRecordDataset(path))


def tensorflow_save(folder: Path) -> Callable[[], Any]:
    import tensorflow as tf

    kept = tf.train.Checkpoint(value=tf.Variable(1.0))
    return lambda: kept.save(str(folder / "kept" / "step"))


def tensorflow_restore(folder: Path) -> Callable[[], Any]:
    import tensorflow as tf

    kept = tf.train.Checkpoint(value=tf.Variable(1.0))
    path = kept.save(str(folder / "kept" / "step"))
    return lambda: kept.restore(path)


def tensorflow_log(folder: Path) -> Callable[[], Any]:
    import tensorflow as tf

    return lambda: tf.summary.create_file_writer(str(folder / "logs"))


def audio_probe(folder: Path) -> Callable[[], Any]:
    from soundlake.pipelines.audio.reading import probe

    path = folder / "a.flac"
    _sound(path)
    return lambda: probe(path)


def audio_decode(folder: Path) -> Callable[[], Any]:
    """The error comes after the first block."""
    from soundlake.pipelines.audio.reading import mono_blocks, probe

    path = folder / "a.flac"
    _sound(path)
    blocks = mono_blocks(path, probe(path))
    next(blocks)
    return lambda: list(blocks)


def _sound(path: Path) -> None:
    import soundfile

    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 2_000_000), 48_000)


# By library: what it does, the call that fails, a part of the path, the number.
CASES: dict[str, list[tuple[Call, str, str, int]]] = {
    "lance": [
        (lance_open, "open", ".manifest", errno.EMFILE),
        (lance_open, "open", ".manifest", errno.EIO),
        (lance_open, "open", ".manifest", errno.EACCES),
        (lance_open, "open", ".manifest", errno.ESTALE),
        (lance_rows, "open", "/data/", errno.EMFILE),
        (lance_rows, "open", "/data/", errno.ENOMEM),
        (lance_rows, "read", "/data/", errno.EIO),
        (lance_filter, "open", "/data/", errno.ETIMEDOUT),
        (lance_nearest, "read", "/data/", errno.EIO),
        (lance_write, "open", "/data/", errno.EACCES),
        (lance_write, "open", "/data/", errno.EROFS),
        (lance_write, "write", "/data/", errno.ENOSPC),
        (lance_write, "write", "/data/", errno.EDQUOT),
    ],
    "arrow": [
        (arrow_read, "open", ".parquet", errno.EMFILE),
        (arrow_read, "read", ".parquet", errno.EIO),
        (arrow_read, "open", ".parquet", errno.EACCES),
        (arrow_write, "write", ".parquet", errno.ENOSPC),
        (arrow_csv, "read", ".csv", errno.ETIMEDOUT),
    ],
    "numpy": [(numpy_save, "open", ".npy", errno.EMFILE)],
    "pyav": [(pyav_open, "open", ".wav", errno.EMFILE), (pyav_open, "read", ".wav", errno.EIO)],
    "audio": [
        (audio_probe, "read", ".flac", errno.EIO),
        (audio_decode, "read", ".flac", errno.EIO),
        (audio_probe, "open", ".flac", errno.EMFILE),
        (audio_probe, "read", ".flac", errno.ESTALE),
    ],
    "h5": [
        (h5_write, "open", ".h5", errno.EACCES),
        (h5_write, "write", ".h5", errno.ENOSPC),
        (h5_read, "read", ".h5", errno.EIO),
        (h5_read, "open", ".h5", errno.EMFILE),
    ],
    "tensorflow": [
        (tensorflow_read, "open", ".tfrecord", errno.EMFILE),
        (tensorflow_read, "read", ".tfrecord", errno.EIO),
        (tensorflow_save, "open", "/kept/", errno.EACCES),
        (tensorflow_save, "open", "/kept/", errno.EROFS),
        (tensorflow_save, "open", "/kept/", errno.ENOSPC),
        (tensorflow_restore, "read", "/kept/", errno.EIO),
        (tensorflow_restore, "open", "/kept/", errno.ESTALE),
        (tensorflow_log, "open", "/logs", errno.EMFILE),
    ],
}


def _told(call: Callable[[], Any], under: Any) -> dict[str, Any]:
    try:
        with under:
            call()
    except Exception as error:
        clear = of_system(error)
        code = None if clear is None else 2 if isinstance(clear, InputError) else 75
        return {"type": type(error).__name__, "number": number_of(error), "code": code, "said": str(clear)}
    return {"type": None, "number": None, "code": None, "said": "no error"}


def main(folder: Path, libraries: list[str]) -> None:
    """Print what is told in each case of some libraries, and in the first of each where no file can be opened."""
    for library in libraries:
        for number, (ready, call, part, fault) in enumerate(CASES[library]):
            place = folder / f"{library}-{number}"
            place.mkdir()
            under = failing(call, part, fault)
            case = {"library": library, "case": ready.__name__, "call": call, "fault": fault}
            print(json.dumps(case | _told(ready(place), under)), flush=True)
        if library == "tensorflow":
            continue  # it ends the process, since it finds no random numbers
        place = folder / f"{library}-limit"
        place.mkdir()
        ready = CASES[library][0][0]
        done = ready(place)
        case = {"library": library, "case": ready.__name__, "call": "limit", "fault": errno.EMFILE}
        # Once before: what a library opens for itself is open then.
        with contextlib.suppress(Exception):
            ready(place)()
        print(json.dumps(case | _told(done, no_file_left())), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
