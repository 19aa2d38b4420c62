"""What a report shows of an evaluation: windows rebuilt, neighbours to listen to, recordings on a plane."""

import logging
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from model import evaluate
from model.artifact import REPORT, Model
from model.errors import InputError, TryLaterError
from model.features import dequantise
from model.inversion import sound_of
from model.report import Heard, Pair, Worth, write
from pipelines.evaluation import Clip, Judged
from pipelines.search import load_query

log = logging.getLogger(__name__)

# Windows shown rebuilt; recordings whose neighbours are shown, and how many of those; recordings on the plane at most.
PAIRS, QUERIES, NEIGHBOURS, PLANE = 6, 5, 3, 1500

Array = npt.NDArray[np.float32]


def _name(uri: str) -> str:
    return unquote(uri).rsplit("/", 1)[-1]


def _recorded(clip: Clip, place: int, model: Model) -> Array | None:
    """A window's sound as it was recorded, at the spec's rate; None if the file cannot be read any more."""
    spec = model.spec
    start = int(clip.windows[place]) * spec.step_seconds
    end = start + int(clip.valid[place]) * spec.hop_length / spec.sample_rate
    try:
        return load_query(f"{clip.uri}@{start:.6f}-{end:.6f}", spec)
    except (InputError, TryLaterError, OSError) as error:
        log.debug("no sound of %s: %s", clip.uri, error)
        return None


def _heard(clip: Clip, model: Model) -> Heard:
    """A recording by its middle window."""
    place = len(clip.windows) // 2
    sound = _recorded(clip, place, model)
    if sound is None:
        sound = sound_of(dequantise(clip.values[place, : clip.valid[place]], model.spec), model.spec)
    return Heard(_name(clip.uri), clip.label, sound)


def _spread(places: list[int], count: int) -> list[int]:
    """At most so many of them, from all over."""
    return places[:: max(1, len(places) // count)][:count]


def _pair(clip: Clip, model: Model) -> Pair:
    place = len(clip.windows) // 2
    original = dequantise(clip.values[place], model.spec)
    rebuilt = model.decoder().decode(model.encoder().encode(original[None])[0])[0]
    return Pair(_name(clip.uri), original, model.denormalise(rebuilt), _recorded(clip, place, model))


def report(model: Model, judged: Judged) -> Path:
    """Write a model's report anew, with what an evaluation found; return its path."""
    clips, target = judged.clips, model.directory / REPORT
    rows = []
    for query in _spread(judged.held_out, QUERIES):
        near = evaluate.nearest(judged.embeddings, query, count=NEIGHBOURS)
        rows.append([_heard(clips[i], model) for i in (query, *near)])
    some = slice(0, PLANE)
    worth = Worth(
        found=judged.found,
        plane=evaluate.on_a_plane(judged.embeddings[some]),
        names=[_name(clip.uri) for clip in clips[some]],
        labels=[clip.label for clip in clips[some]],
        neighbours=rows,
    )
    pairs = [_pair(clips[i], model) for i in _spread(judged.held_out, PAIRS)]
    write(target, model.manifest, history=model.manifest["history"], pairs=pairs, worth=worth)
    return target
