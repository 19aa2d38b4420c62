"""Results of a search as a play list."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from soundlake.pipelines.corpus.files import local_path

if TYPE_CHECKING:
    from soundlake.pipelines.query.search import Hit


def playlist(hits: "Sequence[Hit]") -> str:
    """Hits as an extended M3U: a player such as VLC opens each file at its stretch."""
    lines = ["#EXTM3U"]
    for hit in hits:
        path = local_path(hit.uri)
        place = hit.uri if path is None else os.fsdecode(path)
        name = os.path.basename(place).replace("\n", " ").replace("\r", " ")
        # Write a URI if the path does not fit on one line, or if the player would take it for an option.
        if "\n" in place or "\r" in place or place.startswith("#"):
            place = "file://" + "/".join(quote(part) for part in place.split("/"))
        lines.append(f"#EXTINF:{max(1, round(hit.end_s - hit.start_s))},{name} {hit.start_s:.2f}-{hit.end_s:.2f} s")
        lines.append(f"#EXTVLCOPT:start-time={hit.start_s:.3f}")
        lines.append(f"#EXTVLCOPT:stop-time={hit.end_s:.3f}")
        lines.append(place)
    return "\n".join(lines) + "\n"
