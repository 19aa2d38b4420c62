"""Answers of a search: a sequence of hits, as a data frame, an Arrow table, or a page with players in a notebook."""

import base64
import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from soundlake.pipelines.query.search import Hit

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

# What a notebook shows of a search: so many players, each of at most so many seconds.
PLAYERS, PLAYER_SECONDS = 10, 15.0

_PAGE = """<table>
<tr><th></th><th>recording</th><th>seconds</th><th>label</th><th>distance</th><th>listen</th></tr>
{%- for row in rows %}
<tr><td>{{ "=" if row.hit.same_sound else loop.index }}</td><td>{{ row.hit.uri }}</td>
<td>{{ "%.2f–%.2f"|format(row.hit.start_s, row.hit.end_s) }}</td><td>{{ row.hit.label or "" }}</td>
<td>{{ "" if row.hit.distance is none else "%.3f"|format(row.hit.distance) }}</td>
<td>{% if row.wav %}<audio controls preload="none" src="data:audio/wav;base64,{{ row.wav }}"></audio>
{%- else %}{{ row.why }}{% endif %}</td></tr>
{%- endfor %}
</table>
{%- if more %}<p>and {{ more }} more</p>{% endif %}"""


@dataclass(frozen=True)
class Hits(Sequence[Hit]):
    """Hits of one search, best first.

    Attributes
    ----------
    model_id : str
        The model whose table was searched.
    query : str or None
        As it was asked; None for a filter alone.
    hits : tuple of Hit
    notes : tuple of str
        What to know about the answer, such as a file that could not be read.
    audio : callable
        ``audio(hit)`` returns the samples and the rate of a hit: `soundlake.Lake.audio`.
    """

    model_id: str
    query: str | None
    hits: tuple[Hit, ...]
    notes: tuple[str, ...] = ()
    audio: Callable[[Hit], tuple[npt.NDArray[np.float32], int]] | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> "Hits": ...
    def __getitem__(self, index: int | slice) -> "Hit | Hits":
        if isinstance(index, slice):
            return dataclasses.replace(self, hits=self.hits[index])
        return self.hits[index]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one dictionary per hit: its ``rank``, from 1, and the fields of `Hit`."""
        return [{"rank": rank, **dataclasses.asdict(hit)} for rank, hit in enumerate(self.hits, start=1)]

    def to_arrow(self) -> "pa.Table":
        """Return the hits as an Arrow table; the metadata of its schema names the model."""
        import pyarrow as pa

        schema = pa.schema(
            [
                ("rank", pa.int32()),
                ("uri", pa.string()),
                ("recording_id", pa.string()),
                ("window", pa.int32()),
                ("start_s", pa.float64()),
                ("end_s", pa.float64()),
                ("distance", pa.float64()),
                ("same_sound", pa.bool_()),
                ("label", pa.string()),
                ("group", pa.string()),
                ("gain_db", pa.float64()),
                ("share_nearer", pa.float64()),
                ("other_uris", pa.list_(pa.string())),
                ("windows", pa.int32()),
            ],
            metadata={"soundlake:model_id": self.model_id},
        )
        return pa.Table.from_pylist(self.to_dicts(), schema=schema)

    def to_pandas(self) -> "pd.DataFrame":
        """Return the hits as a data frame, one row per hit.

        Raises
        ------
        ImportError
            If pandas is not installed: ``pip install 'soundlake[notebook]'``.
        """
        try:
            import pandas as pd  # noqa: F401
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install 'soundlake[notebook]'") from error
        return self.to_arrow().to_pandas()

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a table with a player for each of the first hits."""
        from jinja2 import Environment

        rows = [{"hit": hit, **self._player(hit)} for hit in self.hits[:PLAYERS]]
        page = Environment(autoescape=True).from_string(_PAGE)
        return page.render(rows=rows, more=max(0, len(self.hits) - PLAYERS))

    def _player(self, hit: Hit) -> dict[str, str]:
        import soundfile

        from soundlake.model.errors import SoundlakeError

        if self.audio is None:
            return {"wav": "", "why": ""}
        try:
            samples, rate = self.audio(dataclasses.replace(hit, end_s=min(hit.end_s, hit.start_s + PLAYER_SECONDS)))
        except (SoundlakeError, OSError) as error:
            return {"wav": "", "why": str(error)}
        file = io.BytesIO()
        soundfile.write(file, np.clip(samples, -1, 1), rate, format="WAV", subtype="PCM_16")
        return {"wav": base64.b64encode(file.getvalue()).decode(), "why": ""}
