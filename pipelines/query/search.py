"""Search: what sounds like this?

Two steps. The query is encoded as windows (`pipelines.query.query`), and the rows with the nearest embeddings are the
candidates. Then the candidates' sound is laid against the query (`pipelines.query.same_sound`): where they agree, the
very same sound is there, and it comes first, with its exact place. The rest follow by distance of the embeddings:
windows each by its own, recordings by the mean of a run of as many windows as the query has.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import FeatureSpec
from soundlake.model.judging.evaluate import MOST_RUN, run_means
from soundlake.pipelines.lake import fragments, table
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.query import random_pairs
from soundlake.pipelines.query.query import MAX_SHIFTS, SHORT, Query, cuts
from soundlake.pipelines.query.same_sound import Judge, Key, Mark, Row, key

MIN_CANDIDATES, MIN_CANDIDATES_SHORT = 128, 2048
# Recordings whose runs of windows are compared with the query: so many times those asked for, and so many at least.
RUNS_OF_EACH, LEAST_RUNS = 4, 40
# Windows of a recording, the nearest, around which its runs are taken.
PLACES = 3
COLUMNS = ["id", "recording_id", "window", "uri", "label", "group", "start_s", "end_s"]


@dataclass(frozen=True)
class Hit:
    """A stretch of a recording that answers a query.

    Attributes
    ----------
    uri : str
        Of the file's names the first that passes the filter.
    recording_id, window : str, int
    start_s, end_s : float
        Seconds from the recording's start.
    distance : float or None
        Squared L2 distance of the embeddings; None for a search without a sound.
    same_sound : bool
        Whether the very same sound is there.
    label, group : str or None
    gain_db : float or None
        By which the recording is louder than the query, where it holds the same sound.
    share_nearer : float or None
        Share of random pairs of the table's windows, or of runs of as many, that are nearer to each other than this
        distance.
    other_uris : tuple of str
        Files with the same bytes.
    windows : int
        Windows in the stretch, whose mean the distance is of.
    """

    uri: str
    recording_id: str
    window: int
    start_s: float
    end_s: float
    distance: float | None
    same_sound: bool
    label: str | None
    group: str | None
    gain_db: float | None = None
    share_nearer: float | None = None
    other_uris: tuple[str, ...] = ()
    windows: int = 1


class Searcher:
    """A table, its model and the shards behind it, ready for queries.

    Parameters
    ----------
    lake : Lake
    model : model.saved.artifact.Model or None
        None for filters and recordings of the table alone, which need none.
    dataset : lance.LanceDataset
        The model's table.
    """

    def __init__(self, lake: Lake, model: Any, dataset: Any) -> None:
        self.lake, self.model, self.dataset = lake, model, dataset
        self._notes: list[str] = []
        self.judge: Judge | None = None
        self._scales: dict[int, Sequence[float]] = {}
        if model is not None:
            self.spec: FeatureSpec = model.spec
            self.judge = Judge(lake, model.spec, dataset, self._note)
            self._encoder = model.encoder()

    @property
    def notes(self) -> list[str]:
        """What the user should know of the answers so far."""
        return self._notes + (self.judge.not_there if self.judge else [])

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)

    def by_filter(self, where: str, *, k: int, by: str) -> list[Hit]:
        """The first `k` recordings with a row that passes a filter, by uri; or windows, in the table's order."""
        found: dict[Any, Row] = {}
        given = table.whole(where)
        try:
            for batch in self.dataset.to_batches(columns=COLUMNS, filter=given):
                for row in batch.to_pylist():
                    if by == "windows":
                        found.setdefault(key(row), row)
                        continue
                    known = found.setdefault(row["recording_id"], row)
                    start, end = min(known["start_s"], row["start_s"]), max(known["end_s"], row["end_s"])
                    known |= {"start_s": start, "end_s": end, "uri": min(known["uri"], row["uri"])}
                if by == "windows" and len(found) >= k:
                    break
        except (ValueError, OSError) as error:
            raise table.filter_error(self.dataset, where, error) from error
        rows = list(found.values())
        if by == "recordings":
            rows.sort(key=lambda row: row["uri"])
        return self._named([_hit(row, None) for row in rows[:k]], where)

    def by_recording(self, recording_id: str, *, k: int, where: str | None, by: str) -> list[Hit]:
        """What sounds like a recording of the table; the recording itself is left out."""
        columns = ["id", "window", "embedding"]
        vectors = {
            row["window"]: row["embedding"]
            for batch in table.rows_of(self.dataset, "recording_id", [recording_id], columns)
            for row in batch.to_pylist()
        }
        every = -(-len(vectors) // MAX_SHIFTS)
        asked = [(vectors[window], None) for window in sorted(vectors)[::every]]
        wanted = k if by == "windows" else RUNS_OF_EACH * k
        found = self._nearest(asked, wanted=max(wanted, 16), k=k, where=where, by=by, without=[recording_id])
        rows = list(found.values())
        if by == "recordings":
            rows = self._runs(rows, np.array(list(vectors.values()), np.float32), k=k, where=where)
        return self._named(_ranked([_hit(row, row["_distance"]) for row in rows], by)[:k], where)

    def by_sound(self, query: Query, *, k: int, where: str | None, by: str) -> list[Hit]:
        """What sounds like a query; windows that hold the very same sound come first.

        Raises
        ------
        InputError
            If the query is silent, or too short to tell.
        """
        asked = cuts(query)
        own = self._own(query, where)
        heard = own or any(not cut.on_grid for cut in asked)
        # So short a part would be told by what lies around it.
        if len(query.samples) < self.spec.hop_length and not (query.whole and heard):
            raise InputError(
                f"the query lasts {query.seconds:.2g} s, too short to hold a sound: choose a longer stretch"
            )
        if not heard:
            raise InputError("the query holds no sound, only silence: choose another stretch")
        vectors = self._encoder.encode(np.stack([cut.seen for cut in asked])).embedding
        # A short stretch says little of the window that it was cut from.
        wanted = max(
            MIN_CANDIDATES_SHORT
            if query.seconds < SHORT * self.spec.window_frames * self.spec.hop_length / self.spec.sample_rate
            else MIN_CANDIDATES,
            2 * k,
        )
        found = self._nearest(list(zip(vectors, asked, strict=True)), wanted=wanted, k=k, where=where, by=by)
        assert self.judge is not None
        marks = self.judge.marks(query, _candidates(found, wanted))
        for row in own:
            near = float(np.square(vectors - np.array(row.pop("embedding"), np.float32)).sum(axis=1).min())
            found.setdefault(key(row), row | {"_distance": near})
            start = query.start / self.spec.sample_rate
            # Its bytes are the query's: nothing is nearer.
            marks[key(row)] = Mark(-1.0, start, start + query.seconds, 0.0)
        rows = [row for window, row in found.items() if window in marks]
        others = [row for window, row in found.items() if window not in marks]
        if by == "recordings":
            grid = vectors[[cut.on_grid for cut in asked]]
            others = self._runs(others, grid, k=k, where=where)
        hits = [_hit(row, row["_distance"], marks.get(key(row))) for row in rows + others]
        order = {window: mark.error for window, mark in marks.items()}
        hits.sort(key=lambda hit: order.get((hit.recording_id, hit.window), 0.0))
        return self._named(_ranked(hits, by)[:k], where)

    def _own(self, query: Query, where: str | None) -> list[Row]:
        """Windows of the query's own file in which the query lies, if the table has it and it passes the filter."""
        if query.recording_id is None or query.digital_silence:
            return []
        first = query.start / self.spec.sample_rate
        given = f"{fragments.in_list('recording_id', [query.recording_id])} AND end_s > {first!r}"
        given += f" AND start_s < {first + query.seconds!r}"
        other = table.whole(where)
        try:
            rows = self.dataset.to_table(
                columns=[*COLUMNS, "embedding"], filter=given if other is None else f"{given} AND {other}"
            ).to_pylist()
        except (ValueError, OSError) as error:
            raise table.filter_error(self.dataset, where, error) from error
        return list({key(row): row for row in rows}.values())

    def _nearest(
        self,
        asked: Sequence[tuple[Any, Any]],
        *,
        wanted: int,
        k: int,
        where: str | None,
        by: str,
        without: Sequence[str] = (),
    ) -> dict[Key, Row]:
        """Windows near any of these embeddings: `wanted` of each, and more until there are `k` recordings."""
        found: dict[Key, Row] = {}
        out = set(without)
        while True:
            given = table.whole(where)
            rank, before, others = len(found), len(out), given
            if out:
                others = f"NOT {fragments.in_list('recording_id', sorted(out))}"
                others = others if given is None else f"{others} AND {given}"
            for vector, cut in asked:
                _keep_nearest(found, self._windows(vector, wanted=wanted, where=others), cut, rank)
            out |= {name for name, _ in found}
            # All that is near may be windows of one long recording: then the others are asked for, without it.
            if by == "windows" or len(out) == before or len(out) - len(without) >= k:
                return found

    def _windows(self, vector: Any, *, wanted: int, where: str | None) -> list[Row]:
        """The nearest windows, each once, however many names its recording has."""
        k = wanted
        while True:
            rows = table.nearest(self.dataset, vector, k=k, where=where, columns=COLUMNS)
            windows = list({key(row): row for row in reversed(rows)}.values())[::-1]
            if len(windows) >= wanted or len(rows) < k:
                return windows[:wanted]
            k *= 2

    def _runs(self, rows: Sequence[Row], query: npt.NDArray[np.float32], *, k: int, where: str | None) -> list[Row]:
        """The nearest recordings, compared again: means of runs of windows, each as long as the query.

        One window may be like one of the query's by chance, and at its edges it is mostly padding; of a whole stretch
        the mean says more. A row stands for its run: distance, place, and number of windows.

        Parameters
        ----------
        rows : sequence of dict
            Windows that are near.
        query : ndarray of float32, shape (windows, size)
            Of the query's windows; where it has but one, the rows stay as they are.
        """
        count = min(len(query), MOST_RUN)
        if count < 2:
            return list(rows)
        nearest: dict[str, list[Row]] = {}
        for row in sorted(rows, key=lambda row: (row["_distance"], row["id"])):
            nearest.setdefault(row["recording_id"], []).append(row)
        nearest = dict(itertools.islice(nearest.items(), max(RUNS_OF_EACH * k, LEAST_RUNS)))
        windows = self._around(nearest, count, where)
        mean, found = query.mean(axis=0, dtype=np.float64), []
        for name, near in nearest.items():
            runs = []
            for row in near[:PLACES]:
                around = [other for n, other in windows[name].items() if abs(n - row["window"]) < count]
                means = run_means(np.array([other["embedding"] for other in around], np.float32), count)
                distances = np.square(means - mean).sum(axis=1)
                runs.append((float(distances.min()), around[distances.argmin() :][:count]))
            distance, run = min(runs, key=lambda one: one[0])
            row = run[0] | {"end_s": run[-1]["end_s"], "_distance": distance, "windows": len(run)}
            del row["embedding"]
            found.append(row)
        return found

    def _around(self, nearest: Mapping[str, Sequence[Row]], count: int, where: str | None) -> dict[str, dict[int, Row]]:
        """Rows of these recordings whose windows are less than `count` from the first of those given, in order."""
        numbers = {
            row["window"] + n for rows in nearest.values() for row in rows[:PLACES] for n in range(1 - count, count)
        }
        given = fragments.in_list("recording_id", nearest)
        given += f" AND window IN ({', '.join(map(str, sorted(numbers)))})"
        if where is not None:
            given += f" AND {table.whole(where)}"
        columns = [*COLUMNS, "embedding"]
        rows = [row for part in self.dataset.to_batches(columns=columns, filter=given) for row in part.to_pylist()]
        found: dict[str, dict[int, Row]] = {name: {} for name in nearest}
        for row in sorted(rows, key=lambda row: (row["window"], row["id"])):
            found[row["recording_id"]].setdefault(row["window"], row)
        return found

    def _named(self, hits: list[Hit], where: str | None) -> list[Hit]:
        """The same hits, each by the first of its names that passes the filter, with the other names beside it."""
        if not hits:
            return []
        columns = ["recording_id", "window", "uri", "label", "group"]
        windows = ", ".join(str(number) for number in sorted({hit.window for hit in hits}))
        given = (
            f"{fragments.in_list('recording_id', sorted({hit.recording_id for hit in hits}))} AND window IN ({windows})"
        )
        names: dict[Key, dict[str, Row]] = {}
        for row in self.dataset.to_table(columns=columns, filter=given).to_pylist():
            names.setdefault(key(row), {})[row["uri"]] = row
        passing = names
        if where is not None and any(len(of_window) > 1 for of_window in names.values()):
            passing = {}
            for row in self.dataset.to_table(columns=columns, filter=f"{given} AND {table.whole(where)}").to_pylist():
                passing.setdefault(key(row), {})[row["uri"]] = row
        return [self._with_names(hit, names, passing) for hit in hits]

    def _with_names(self, hit: Hit, names: dict[Key, dict[str, Row]], passing: dict[Key, dict[str, Row]]) -> Hit:
        window = (hit.recording_id, hit.window)
        of_window = passing.get(window) or {hit.uri: {"uri": hit.uri, "label": hit.label, "group": hit.group}}
        chosen = of_window[min(of_window)]
        others = tuple(sorted(names.get(window, {}).keys() - {chosen["uri"]}))
        share = None if hit.distance is None else random_pairs.share_nearer(hit.distance, self._scale(hit.windows))
        return replace(
            hit,
            uri=chosen["uri"],
            label=chosen["label"],
            group=chosen["group"],
            other_uris=others,
            share_nearer=share,
        )

    def _scale(self, count: int) -> Sequence[float]:
        """Distances of random pairs of runs of `count` windows: as the last encode found them, or found now."""
        if count not in self._scales:
            said = {} if self.model is None else table.said(self.lake, self.model.model_id)
            kept = said.get(table.RANDOM_PAIRS)
            if isinstance(kept, dict):
                self._scales[count] = random_pairs.scale_of(count, {int(length): kept[length] for length in kept})
            elif isinstance(kept, list) and count == 1:
                self._scales[count] = kept
            else:
                # Encoded by a version that kept none, or those of windows alone.
                self._scales[count] = random_pairs.distances(self.dataset, count)
        return self._scales[count]


def _candidates(found: dict[Key, Row], wanted: int) -> list[Row]:
    """Rows to be compared with the query: near its windows on the grid first, half of all; then near any."""
    rows = sorted(found.values(), key=lambda row: (row["rank"], row["_distance"], row["id"]))
    first = sorted((row for row in rows if "grid_rank" in row), key=lambda row: (row["grid_rank"], row["id"]))
    chosen = {key(row): row for row in first[: wanted // 2]}
    for row in rows:
        if len(chosen) >= wanted:
            break
        chosen.setdefault(key(row), row)
    return list(chosen.values())


def _keep_nearest(found: dict[Key, Row], rows: Sequence[Row], cut: Any, first_rank: int) -> None:
    """Add rows to what was found; of one found twice, the cut that ranks it higher and the least distance stay.

    By place among a cut's own answers, since cuts that see less of the query have nearer neighbours all over.
    """
    for rank, row in enumerate(rows, start=first_rank):
        known = found.setdefault(key(row), row | {"cut": cut, "rank": rank})
        known["_distance"] = min(known["_distance"], row["_distance"])
        if rank < known["rank"]:
            known |= {"cut": cut, "rank": rank}
        if cut is not None and cut.on_grid:
            known["grid_rank"] = min(rank, known.get("grid_rank", rank))


def _hit(row: Row, distance: float | None, mark: Mark | None = None) -> Hit:
    return Hit(
        uri=row["uri"],
        recording_id=row["recording_id"],
        window=row["window"],
        start_s=row["start_s"] if mark is None else mark.start_s,
        end_s=row["end_s"] if mark is None else mark.end_s,
        distance=distance,
        same_sound=mark is not None,
        label=row["label"],
        group=row["group"],
        gain_db=None if mark is None else mark.gain_db,
        windows=row.get("windows", 1),
    )


def _ranked(hits: list[Hit], by: str) -> list[Hit]:
    """Hits, best first: same sound before the rest, then by distance; by recording, the best of each."""
    hits.sort(key=lambda hit: (not hit.same_sound, 0.0 if hit.same_sound else (hit.distance or 0.0)))
    if by == "windows":
        return hits
    best: dict[str, Hit] = {}
    for hit in hits:
        best.setdefault(hit.recording_id, hit)
    return list(best.values())


def as_json(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """Hits as plain dicts, with their rank."""
    return [{"rank": rank, **asdict(hit)} for rank, hit in enumerate(hits, start=1)]
