"""Search a table for windows or recordings that sound like a query.

A search has two steps. First the query is encoded as windows (`pipelines.query.query`), and the rows with the nearest
embeddings become the candidates. Then the sound of each candidate is compared with the query
(`pipelines.query.same_sound`): candidates that hold the very same sound come first, with its exact place. The others
follow by distance of the embeddings: each window by its own, each recording by the mean of a run of as many windows as
the query has.
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
# Recordings whose runs of windows are compared with the query: this many times those requested, and at least so many.
RUNS_OF_EACH, LEAST_RUNS = 4, 40
# Runs are taken around this many of the nearest windows of a recording.
PLACES = 3
COLUMNS = ["id", "recording_id", "window", "uri", "label", "group", "start_s", "end_s"]


@dataclass(frozen=True)
class Hit:
    """A stretch of a recording that answers a query.

    Attributes
    ----------
    uri : str
        The first of the file's names that passes the filter.
    recording_id, window : str, int
    start_s, end_s : float
        Seconds from the recording's start.
    distance : float or None
        Squared L2 distance of the embeddings; None for a search without a sound.
    same_sound : bool
        Whether the very same sound is there.
    label, group : str or None
    gain_db : float or None
        How much louder the recording is than the query; None unless it holds the same sound.
    share_nearer : float or None
        Share of random pairs of the table's windows, or of runs of as many windows, that are nearer to each other than
        this distance.
    other_uris : tuple of str
        Files with the same bytes.
    windows : int
        Windows in the stretch; the distance is that of their mean.
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
        None if only `by_filter` and `by_recording` are called, which need no model.
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
        """Notes for the user on the answers so far."""
        return self._notes + (self.judge.not_there if self.judge else [])

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)

    def by_filter(self, where: str, *, k: int, by: str) -> list[Hit]:
        """The first `k` recordings, by uri, with a row that passes a filter; or windows, in the table's order."""
        rows_by_key: dict[Any, Row] = {}
        condition = table.whole(where)
        try:
            for batch in self.dataset.to_batches(columns=COLUMNS, filter=condition):
                for row in batch.to_pylist():
                    if by == "windows":
                        rows_by_key.setdefault(key(row), row)
                        continue
                    recording = rows_by_key.setdefault(row["recording_id"], row)
                    start, end = min(recording["start_s"], row["start_s"]), max(recording["end_s"], row["end_s"])
                    recording |= {"start_s": start, "end_s": end, "uri": min(recording["uri"], row["uri"])}
                if by == "windows" and len(rows_by_key) >= k:
                    break
        except (ValueError, OSError) as error:
            raise table.filter_error(self.dataset, where, error) from error
        rows = list(rows_by_key.values())
        if by == "recordings":
            rows.sort(key=lambda row: row["uri"])
        return self._named([_hit(row, None) for row in rows[:k]], where)

    def by_recording(self, recording_id: str, *, k: int, where: str | None, by: str) -> list[Hit]:
        """Hits that sound like a recording of the table; the recording itself is left out."""
        columns = ["id", "window", "embedding"]
        vectors = {
            row["window"]: row["embedding"]
            for batch in table.rows_of(self.dataset, "recording_id", [recording_id], columns)
            for row in batch.to_pylist()
        }
        stride = -(-len(vectors) // MAX_SHIFTS)
        queries = [(vectors[window], None) for window in sorted(vectors)[::stride]]
        wanted = k if by == "windows" else RUNS_OF_EACH * k
        near = self._nearest(queries, wanted=max(wanted, 16), k=k, where=where, by=by, without=[recording_id])
        rows = list(near.values())
        if by == "recordings":
            rows = self._runs(rows, np.array(list(vectors.values()), np.float32), k=k, where=where)
        return self._named(_ranked([_hit(row, row["_distance"]) for row in rows], by)[:k], where)

    def by_sound(self, query: Query, *, k: int, where: str | None, by: str) -> list[Hit]:
        """Hits that sound like a query; windows that hold the very same sound come first.

        Raises
        ------
        InputError
            If the query is silent or too short.
        """
        query_cuts = cuts(query)
        own_rows = self._own(query, where)
        audible = own_rows or any(not cut.on_grid for cut in query_cuts)
        # The frames of so short a part would mostly show the sound around it.
        if len(query.samples) < self.spec.hop_length and not (query.whole and audible):
            raise InputError(
                f"the query lasts {query.seconds:.2g} s, too short to hold a sound: choose a longer stretch"
            )
        if not audible:
            raise InputError("the query holds no sound, only silence: choose another stretch")
        vectors = self._encoder.encode(np.stack([cut.seen for cut in query_cuts])).embedding
        # A short stretch shows little of the window that it was cut from, so more candidates are needed.
        wanted = max(
            MIN_CANDIDATES_SHORT
            if query.seconds < SHORT * self.spec.window_frames * self.spec.hop_length / self.spec.sample_rate
            else MIN_CANDIDATES,
            2 * k,
        )
        rows_by_key = self._nearest(list(zip(vectors, query_cuts, strict=True)), wanted=wanted, k=k, where=where, by=by)
        assert self.judge is not None
        marks = self.judge.marks(query, _candidates(rows_by_key, wanted))
        for row in own_rows:
            distance = float(np.square(vectors - np.array(row.pop("embedding"), np.float32)).sum(axis=1).min())
            rows_by_key.setdefault(key(row), row | {"_distance": distance})
            start = query.start / self.spec.sample_rate
            # The file has the same bytes as the query's: no other match ranks before it.
            marks[key(row)] = Mark(-1.0, start, start + query.seconds, 0.0)
        rows = [row for window, row in rows_by_key.items() if window in marks]
        others = [row for window, row in rows_by_key.items() if window not in marks]
        if by == "recordings":
            grid_vectors = vectors[[cut.on_grid for cut in query_cuts]]
            others = self._runs(others, grid_vectors, k=k, where=where)
        hits = [_hit(row, row["_distance"], marks.get(key(row))) for row in rows + others]
        order = {window: mark.error for window, mark in marks.items()}
        hits.sort(key=lambda hit: order.get((hit.recording_id, hit.window), 0.0))
        return self._named(_ranked(hits, by)[:k], where)

    def _own(self, query: Query, where: str | None) -> list[Row]:
        """Windows of the query's own file that overlap the query, if the table has them and they pass the filter."""
        if query.recording_id is None or query.digital_silence:
            return []
        start_s = query.start / self.spec.sample_rate
        condition = f"{fragments.in_list('recording_id', [query.recording_id])} AND end_s > {start_s!r}"
        condition += f" AND start_s < {start_s + query.seconds!r}"
        user_filter = table.whole(where)
        try:
            rows = self.dataset.to_table(
                columns=[*COLUMNS, "embedding"],
                filter=condition if user_filter is None else f"{condition} AND {user_filter}",
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
        """Windows near any of these embeddings: `wanted` for each, and more until there are `k` recordings."""
        rows_by_key: dict[Key, Row] = {}
        excluded = set(without)
        while True:
            user_filter = table.whole(where)
            first_rank, excluded_before, condition = len(rows_by_key), len(excluded), user_filter
            if excluded:
                condition = f"NOT {fragments.in_list('recording_id', sorted(excluded))}"
                condition = condition if user_filter is None else f"{condition} AND {user_filter}"
            for vector, cut in asked:
                _keep_nearest(rows_by_key, self._windows(vector, wanted=wanted, where=condition), cut, first_rank)
            excluded |= {name for name, _ in rows_by_key}
            # All near windows may belong to a few long recordings: then search again without these.
            if by == "windows" or len(excluded) == excluded_before or len(excluded) - len(without) >= k:
                return rows_by_key

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
        """The nearest recordings, compared again: the mean of a run of windows as long as the query.

        A single window may resemble one of the query's by chance, and the query's first and last windows may be mostly
        padding; the mean over a whole stretch is more reliable. A row describes its run: distance, place, and number of
        windows.

        Parameters
        ----------
        rows : sequence of dict
            Windows near the query.
        query : ndarray of float32, shape (windows, size)
            Embeddings of the query's windows; if there is only one, the rows are returned unchanged.
        """
        count = min(len(query), MOST_RUN)
        if count < 2:
            return list(rows)
        nearest: dict[str, list[Row]] = {}
        for row in sorted(rows, key=lambda row: (row["_distance"], row["id"])):
            nearest.setdefault(row["recording_id"], []).append(row)
        nearest = dict(itertools.islice(nearest.items(), max(RUNS_OF_EACH * k, LEAST_RUNS)))
        windows = self._around(nearest, count, where)
        mean, best_runs = query.mean(axis=0, dtype=np.float64), []
        for name, near_rows in nearest.items():
            runs = []
            for row in near_rows[:PLACES]:
                around = [other for n, other in windows[name].items() if abs(n - row["window"]) < count]
                means = run_means(np.array([other["embedding"] for other in around], np.float32), count)
                distances = np.square(means - mean).sum(axis=1)
                runs.append((float(distances.min()), around[distances.argmin() :][:count]))
            distance, run = min(runs, key=lambda one: one[0])
            row = run[0] | {"end_s": run[-1]["end_s"], "_distance": distance, "windows": len(run)}
            del row["embedding"]
            best_runs.append(row)
        return best_runs

    def _around(self, nearest: Mapping[str, Sequence[Row]], count: int, where: str | None) -> dict[str, dict[int, Row]]:
        """Rows of these recordings by window, less than `count` windows from one of the first `PLACES` of each."""
        numbers = {
            row["window"] + n for rows in nearest.values() for row in rows[:PLACES] for n in range(1 - count, count)
        }
        condition = fragments.in_list("recording_id", nearest)
        condition += f" AND window IN ({', '.join(map(str, sorted(numbers)))})"
        if where is not None:
            condition += f" AND {table.whole(where)}"
        columns = [*COLUMNS, "embedding"]
        rows = [row for part in self.dataset.to_batches(columns=columns, filter=condition) for row in part.to_pylist()]
        rows_by_window: dict[str, dict[int, Row]] = {name: {} for name in nearest}
        for row in sorted(rows, key=lambda row: (row["window"], row["id"])):
            rows_by_window[row["recording_id"]].setdefault(row["window"], row)
        return rows_by_window

    def _named(self, hits: list[Hit], where: str | None) -> list[Hit]:
        """The same hits, each under the first of its names that passes the filter, with its other names."""
        if not hits:
            return []
        columns = ["recording_id", "window", "uri", "label", "group"]
        windows = ", ".join(str(number) for number in sorted({hit.window for hit in hits}))
        condition = (
            f"{fragments.in_list('recording_id', sorted({hit.recording_id for hit in hits}))} AND window IN ({windows})"
        )
        names: dict[Key, dict[str, Row]] = {}
        for row in self.dataset.to_table(columns=columns, filter=condition).to_pylist():
            names.setdefault(key(row), {})[row["uri"]] = row
        passing = names
        if where is not None and any(len(of_window) > 1 for of_window in names.values()):
            passing = {}
            for row in self.dataset.to_table(
                columns=columns, filter=f"{condition} AND {table.whole(where)}"
            ).to_pylist():
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
        """Distances of random pairs of runs of `count` windows: those that the last encode stored, or computed now."""
        if count not in self._scales:
            info = {} if self.model is None else table.said(self.lake, self.model.model_id)
            stored = info.get(table.RANDOM_PAIRS)
            if isinstance(stored, dict):
                self._scales[count] = random_pairs.scale_of(count, {int(length): stored[length] for length in stored})
            elif isinstance(stored, list) and count == 1:
                self._scales[count] = stored
            else:
                # The table was encoded by a version that stored no scales, or only that of single windows.
                self._scales[count] = random_pairs.distances(self.dataset, count)
        return self._scales[count]


def _candidates(found: dict[Key, Row], wanted: int) -> list[Row]:
    """Rows to compare with the query: up to half of them near its windows on the grid, then those near any window."""
    rows = sorted(found.values(), key=lambda row: (row["rank"], row["_distance"], row["id"]))
    by_grid_rank = sorted((row for row in rows if "grid_rank" in row), key=lambda row: (row["grid_rank"], row["id"]))
    chosen = {key(row): row for row in by_grid_rank[: wanted // 2]}
    for row in rows:
        if len(chosen) >= wanted:
            break
        chosen.setdefault(key(row), row)
    return list(chosen.values())


def _keep_nearest(found: dict[Key, Row], rows: Sequence[Row], cut: Any, first_rank: int) -> None:
    """Add rows to `found`; of a row found twice, keep the cut that ranks it higher and the least distance.

    A rank is a place among the results of one cut: cuts that see less of the query have nearer neighbours overall.
    """
    for rank, row in enumerate(rows, start=first_rank):
        kept = found.setdefault(key(row), row | {"cut": cut, "rank": rank})
        kept["_distance"] = min(kept["_distance"], row["_distance"])
        if rank < kept["rank"]:
            kept |= {"cut": cut, "rank": rank}
        if cut is not None and cut.on_grid:
            kept["grid_rank"] = min(rank, kept.get("grid_rank", rank))


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
    """Hits, best first: same sound before the rest, then by distance; by recording, only the best hit of each."""
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
