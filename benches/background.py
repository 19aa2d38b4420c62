"""Test of search for events in long recordings, in a background that no model of the set was trained on.

Every event is the sound of one recording, mixed into minutes of background. For sets other than ESC-10, the background
is ESC-10's rain, sea, fire and helicopter. For ESC-10, which contains these kinds, it is wind, rain and engine of the
demo corpus, and the other six kinds are the events. The level of an event is measured over its sounding part, relative
to the background around it.
The query is the loudest window of the clean recording. The gallery consists of every window of the long recordings, cut
as in `extract`: between events there is only background, and events do not begin at the start of a window. Windows are
ranked by squared L2, as in the table. A short recording is placed at several positions in the query window, as in
search. Baselines use only the loudest window, and each of their numbers is scaled to unit variance over the gallery.
"""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from soundlake.model.features.log_mel import FeatureSpec, dequantise, log_mel, quantise, windows
from soundlake.pipelines.cli import synth
from soundlake.pipelines.query.query import decoded, later

NOISE_SET, NOISES = "esc10", ("crackling_fire", "helicopter", "rain", "sea_waves")
MADE_NOISES = ("wind", "rain", "engine")
DECIBELS, MOST, SEED = (20, 10, 5), 300, 0
# In seconds: the longest part that is used of a recording, background between two events, a piece of background, a fade
# between two pieces, and a long recording.
LONGEST, GAP, PIECE, FADE, LONG = 10.0, (1.0, 4.0), 5.0, 0.5, 300.0
# Frames of an event that are fainter than its loudest frame by more than this do not count as sounding.
SOUNDING_DB = 30.0

Array = npt.NDArray[np.float32]
# Windows in nats, (n, window_frames, n_mels) → vectors (n, size).
Embed = Callable[[Array], Array]


@dataclass(frozen=True)
class Event:
    """A recording of a set: its sound, and the part that is the query.

    Attributes
    ----------
    label, group : str
    samples : ndarray of float32, shape (n_samples,)
    queries : ndarray of float32, shape (n, window_frames, n_mels)
        Its loudest window, nats; for a short recording also versions with the sound later in the window.
    start, end : float
        Seconds at which the sound in that window starts and ends.
    """

    label: str
    group: str
    samples: Array
    queries: Array
    start: float
    end: float


@dataclass(frozen=True)
class Gallery:
    """Windows of the long recordings.

    Attributes
    ----------
    windows : ndarray of float32, shape (windows, window_frames, n_mels)
        Nats.
    held : ndarray of bool, shape (events, windows)
        Whether a window contains at least half of the sounding part of an event's loudest window.
    """

    windows: Array
    held: npt.NDArray[np.bool_]


def frames_of(samples: Array, spec: FeatureSpec) -> Array:
    """Log-mel with the quantisation of shards, nats, shape (frames, n_mels)."""
    return dequantise(quantise(log_mel(samples, spec), spec), spec)


def rows_of(corpus: Path) -> list[dict[str, str]]:
    """The labelled recordings of a set."""
    with open(corpus / "labels.csv", newline="") as file:
        return list(csv.DictReader(file))


def event_of(row: Mapping[str, str], samples: Array, spec: FeatureSpec) -> Event | None:
    """The event of a recording; None if it is silent."""
    frames = frames_of(samples, spec)
    cut = windows(frames, spec)
    power = np.exp(cut).mean(axis=2) - np.float32(spec.log_offset)
    loudest = int(power.mean(axis=1).argmax())
    sounding = np.flatnonzero(power[loudest] > power[loudest].max() * 10 ** (-SOUNDING_DB / 10))
    if power.max() <= 0 or not len(sounding):
        return None
    second = spec.sample_rate / spec.hop_length
    first = loudest * spec.window_step
    return Event(
        row["label"],
        row["group"],
        samples,
        np.stack([cut[loudest], *later(frames, spec)]),
        (first + sounding[0]) / second,
        (first + sounding[-1] + 1) / second,
    )


def events_of(corpus: Path, spec: FeatureSpec) -> list[Event]:
    """A random choice of at most `MOST` events of a set; for ESC-10, without the kinds that serve as background."""
    rows = [row for row in rows_of(corpus) if corpus.name != NOISE_SET or row["label"] not in NOISES]
    chosen = sorted(np.random.default_rng(SEED).permutation(len(rows))[:MOST].tolist())
    stop = round(LONGEST * spec.sample_rate)
    candidates = (
        event_of(rows[i], decoded(str(corpus / rows[i]["uri"]), spec.sample_rate, start=0, stop=stop), spec)
        for i in chosen
    )
    return [event for event in candidates if event is not None]


def pieces_of(corpora: Path, name: str, spec: FeatureSpec) -> list[Array]:
    """Pieces of background for a set, all at the same level."""
    rate = spec.sample_rate
    if name == NOISE_SET:
        rng = np.random.default_rng(SEED)
        pieces: list[Any] = [synth.KINDS[kind](rng, PIECE, rate) for _ in range(20) for kind in MADE_NOISES]
    else:
        rows = [row for row in rows_of(corpora / NOISE_SET) if row["label"] in NOISES]
        pieces = [
            decoded(str(corpora / NOISE_SET / row["uri"]), rate, start=0, stop=round(PIECE * rate)) for row in rows
        ]
    levels = [(piece, float(np.sqrt(np.mean(np.square(piece))))) for piece in pieces]
    return [np.asarray(piece / level, np.float32) for piece, level in levels if level > 0]


def background(seconds: float, pieces: list[Array], spec: FeatureSpec, rng: np.random.Generator) -> Array:
    """Pieces in random order, cross-faded at equal power."""
    fade = round(FADE * spec.sample_rate)
    sound = np.zeros(round((seconds + 2 * PIECE) * spec.sample_rate), np.float32)
    ramp = np.sin(np.linspace(0, np.pi / 2, fade, dtype=np.float32))
    place = 0
    while place < round(seconds * spec.sample_rate):
        piece = pieces[rng.integers(len(pieces))].copy()
        piece[:fade] *= ramp
        piece[-fade:] *= ramp[::-1]
        piece = piece[: len(sound) - place]
        sound[place : place + len(piece)] += piece
        place += len(piece) - fade
    return sound[: round(seconds * spec.sample_rate)]


def gallery_of(events: list[Event], pieces: list[Array], spec: FeatureSpec, *, decibels: float) -> Gallery:
    """All events in random order, mixed into long recordings at a level of `decibels` above the background."""
    rng, rate = np.random.default_rng(SEED), spec.sample_rate
    parts, held = [], []
    pending = rng.permutation(len(events)).tolist()
    while pending:
        placed, place = [], rng.uniform(*GAP)
        while pending and place < LONG:
            placed.append((pending.pop(), place))
            place += len(events[placed[-1][0]].samples) / rate + rng.uniform(*GAP)
        sound = background(place, pieces, spec, rng)
        for number, seconds in placed:
            event, first = events[number], round(seconds * rate)
            sounding = event.samples[round(event.start * rate) : round(event.end * rate)]
            around = sound[first + round(event.start * rate) :][: len(sounding)]
            gain = np.sqrt(np.mean(np.square(around)) / np.mean(np.square(sounding))) * 10 ** (decibels / 20)
            sound[first : first + len(event.samples)] += np.float32(gain) * event.samples[: len(sound) - first]
        # Scale the peak to 0.9 of full scale, so that the level carries no information.
        parts.append(windows(frames_of(sound * np.float32(0.9 / np.abs(sound).max()), spec), spec))
        begin = np.arange(len(parts[-1])) * spec.window_step * spec.hop_length / rate
        end = begin + spec.window_frames * spec.hop_length / rate
        inside = np.zeros((len(events), len(begin)), bool)
        for number, seconds in placed:
            start, stop = seconds + events[number].start, seconds + events[number].end
            inside[number] = np.minimum(end, stop) - np.maximum(begin, start) >= (stop - start) / 2
        held.append(inside)
    return Gallery(np.concatenate(parts), np.concatenate(held, axis=1))


def precision(right: npt.NDArray[np.bool_]) -> float:
    """Average precision of a ranking, given which places are right; NaN if none is."""
    places = np.flatnonzero(right)
    return float(np.mean(np.arange(1, len(places) + 1) / (places + 1))) if len(places) else float("nan")


def judged(events: list[Event], gallery: Gallery, embed: Embed, *, plain: bool) -> dict[str, npt.NDArray[np.float64]]:
    """Results of each query.

    Parameters
    ----------
    plain : bool
        Whether the query is only the loudest window, and each number is scaled to unit variance over the gallery;
        otherwise queries are as in search.

    Returns
    -------
    dict of str to ndarray of float64, shape (events,)
        ``first``: 1 where the nearest window contains the event itself. ``map``: average precision of windows that
        contain an event of the same label and another group; windows with an event of the same group are left out.
    """
    asked = [event.queries[:1] if plain else event.queries for event in events]
    queries, vectors = embed(np.concatenate(asked)), embed(gallery.windows)
    if plain:
        deviation = np.maximum(vectors.std(axis=0), 1e-6)
        queries, vectors = queries / deviation, vectors / deviation
    distances = np.square(queries).sum(axis=1)[:, None] + np.square(vectors).sum(axis=1) - 2 * queries @ vectors.T
    distances = np.minimum.reduceat(distances, np.cumsum([0, *map(len, asked[:-1])]), axis=0)
    order = np.argsort(distances, axis=1, kind="stable")
    labels, groups = (np.array([getattr(event, name) for event in events]) for name in ("label", "group"))
    first, average = np.zeros(len(events)), np.zeros(len(events))
    for i, ranked in enumerate(order):
        first[i] = gallery.held[i, ranked[0]]
        same_group = gallery.held[groups == groups[i]].any(axis=0)
        right = gallery.held[(labels == labels[i]) & (groups != groups[i])].any(axis=0)
        average[i] = precision(right[ranked][~same_group[ranked]])
    return {"first": first, "map": average}
