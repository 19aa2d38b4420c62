"""Write the report of an evaluation: rebuilt windows, neighbours to listen to, recordings on a plane."""

import logging
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from soundlake.model.errors import InputError, TryLaterError
from soundlake.model.features.inversion import sound_of
from soundlake.model.features.log_mel import dequantise
from soundlake.model.judging import evaluate
from soundlake.model.judging.report import Heard, Pair, Worth, write
from soundlake.model.saved.artifact import REPORT, Model
from soundlake.pipelines.audio.reading import Rejected
from soundlake.pipelines.corpus.files import local_path
from soundlake.pipelines.learning.evaluation import Judged
from soundlake.pipelines.learning.sampling import Clip
from soundlake.pipelines.query.query import recorded_sound

log = logging.getLogger(__name__)

# Rebuilt windows shown; recordings whose neighbours are shown, and neighbours of each; most recordings on the plane.
PAIRS, QUERIES, NEIGHBOURS, PLANE = 6, 5, 3, 1500

Array = npt.NDArray[np.float32]


def _name(uri: str) -> str:
    """Name of the file."""
    local = local_path(uri)
    return uri.rsplit("/", 1)[-1] if local is None else os.path.basename(local).decode(errors="replace")


def _recorded(clip: Clip, place: int, model: Model) -> Array | None:
    """A window's sound as recorded, at the spec's rate; None if the file is missing, changed or unreadable."""
    spec = model.spec
    start = int(clip.windows[place]) * spec.step_seconds
    end = start + int(clip.valid[place]) * spec.hop_length / spec.sample_rate
    try:
        sound, _ = recorded_sound(
            clip.uri, start=start, end=end, recording_id=clip.recording_id, sample_rate=spec.sample_rate
        )
        return sound if len(sound) else None
    except (InputError, TryLaterError, Rejected, OSError) as error:
        log.debug("no sound of %s: %s", clip.uri, error)
        return None


def _heard(clip: Clip, model: Model) -> Heard:
    """The middle window of a recording, to listen to."""
    place = len(clip.windows) // 2
    sound = _recorded(clip, place, model)
    if sound is None:
        sound = sound_of(dequantise(clip.values[place, : clip.valid[place]], model.spec), model.spec)
    return Heard(_name(clip.uri), clip.label, sound)


def _spread(places: list[int], count: int) -> list[int]:
    """At most `count` of the places, evenly spaced."""
    return [places[i] for i in np.unique(np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int))]


def _pairs(clips: list[Clip], model: Model) -> list[Pair]:
    """The middle window of each clip, and its reconstruction."""
    places = [len(clip.windows) // 2 for clip in clips]
    originals = dequantise(np.stack([clip.values[i] for clip, i in zip(clips, places, strict=True)]), model.spec)
    rebuilt = model.denormalise(model.decoder().decode(model.encoder().encode(originals).mean))
    return [
        Pair(_name(clip.uri), original, after, _recorded(clip, place, model))
        for clip, place, original, after in zip(clips, places, originals, rebuilt, strict=True)
    ]


def report(model: Model, judged: Judged) -> Path:
    """Rewrite a model's report with the results of an evaluation; return its path."""
    clips, target = judged.clips, model.directory / REPORT
    rows = []
    for query in _spread(judged.held_out, QUERIES):
        near = evaluate.nearest(judged.embeddings, query, count=NEIGHBOURS)
        rows.append([_heard(clips[i], model) for i in (query, *near)])
    first_clips = slice(0, PLANE)
    worth = Worth(
        found=judged.found,
        plane=evaluate.on_a_plane(judged.embeddings[first_clips]),
        names=[_name(clip.uri) for clip in clips[first_clips]],
        labels=[clip.label for clip in clips[first_clips]],
        neighbours=rows,
    )
    pairs = _pairs([clips[i] for i in _spread(judged.held_out, PAIRS)], model)
    write(target, model.manifest, history=model.manifest["history"], pairs=pairs, worth=worth)
    return target
