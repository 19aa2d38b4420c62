"""The commands that work with a table: parse, call, print, as in `pipelines.cli.commands`, which registers them."""

from typing import Annotated, Literal

import typer

from soundlake.model.errors import HeldError, storage_errors
from soundlake.pipelines.cli.options import Json, LakeAt, ModelId, SpecToRead, Verbose
from soundlake.pipelines.cli.terminal import lake_at, out, say, tell


def search(
    query: Annotated[
        list[str] | None,
        typer.Argument(help="FILE, FILE@start-end in seconds, or a recording_id (excluded from its own results)."),
    ] = None,
    lake: LakeAt = "./lake",
    k: Annotated[int, typer.Option("-k", min=1, max=10_000, help="Maximum number of results.")] = 10,
    where: Annotated[
        str | None, typer.Option("--where", help="SQL filter on the table's columns; without QUERY: list all matches.")
    ] = None,
    by: Annotated[
        Literal["recordings", "windows"], typer.Option("--by", help="One result per recording, or per window.")
    ] = "recordings",
    play_list: Annotated[str | None, typer.Option("--play-list", help="Write the results as an M3U play list.")] = None,
    spec: SpecToRead = None,
    model: ModelId = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Find what sounds like QUERY: first the very same sound (marked =), then the nearest."""
    from soundlake.pipelines import commands
    from soundlake.pipelines.cli import messages
    from soundlake.pipelines.cli.playlist import playlist
    from soundlake.pipelines.query.search import as_json as hits_as_json

    result = commands.search(lake_at(lake), query or [], k=k, where=where, by=by, spec=spec, model_id=model)
    if play_list is not None:
        text = playlist([hit for entry in result["results"] for hit in entry["hits"]])
        with storage_errors(play_list), open(play_list, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
    for note in result["notes"]:
        say(f"soundlake: {note}")
    if as_json:
        results = [{"query": entry["query"], "hits": hits_as_json(entry["hits"])} for entry in result["results"]]
        out({"model_id": result["model_id"], "results": results})
        return
    messages.hits(result["results"], tell, filtered=where is not None)


def export(
    target: Annotated[str, typer.Argument(help="File to write: .parquet, .csv or .npz.")],
    lake: LakeAt = "./lake",
    where: Annotated[str | None, typer.Option("--where", help="SQL filter on the table's columns.")] = None,
    by: Annotated[
        Literal["windows", "recordings"],
        typer.Option("--by", help="One row per window of each file, or per file (mean embedding of the clip)."),
    ] = "windows",
    spec: SpecToRead = None,
    model: ModelId = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write the table to a file for other tools."""
    from soundlake.pipelines import commands

    result = commands.export(lake_at(lake), target, where=where, by=by, spec=spec, model_id=model)
    if as_json:
        out(result)
    else:
        unit = "window of each file" if by == "windows" else "file"
        tell(f"{result['rows']} rows, one for each {unit}, written to {result['file']}")


def forget(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="URI", help="Files, as extract has seen them; they may be gone.")
    ] = None,
    recording: Annotated[
        list[str] | None, typer.Option("--recording", metavar="ID", help="A recording_id, with all its names.")
    ] = None,
    listed: Annotated[
        str | None, typer.Option("--file", metavar="LIST", help="Text file with a uri or recording_id a line.")
    ] = None,
    lake: LakeAt = "./lake",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Erase recordings from all that the lake keeps; the next extract leaves them out."""
    from soundlake.pipelines.cli.messages_forget import forgotten
    from soundlake.pipelines.upkeep.forget import forget as erase
    from soundlake.pipelines.upkeep.forget import read_list

    opened_lake = lake_at(lake)
    names = read_list(listed) if listed is not None else []
    result = erase(opened_lake, files or [], recordings=recording or [], listed=names)
    for name in result["unknown"]:
        say(f"soundlake: the lake knows nothing of {name}")
    if as_json:
        out(result, opened_lake)
    else:
        forgotten(result, opened_lake.root, tell)


def maintain(
    lake: LakeAt = "./lake",
    grace: Annotated[
        float, typer.Option("--grace", min=0, help="Hours: newer files are kept, since a run may still use them.")
    ] = 48.0,
    recall_floor: Annotated[
        float,
        typer.Option("--recall-floor", min=0, max=1, help="Exit with 3 if recall is still lower after a rebuild."),
    ] = 0.9,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; show what would be removed.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Clean up after killed runs, compact ledgers and tables, check the index."""
    from soundlake.pipelines.cli.messages_maintain import maintained
    from soundlake.pipelines.upkeep.maintain import maintain as keep_in_order

    opened_lake, held_error = lake_at(lake), None
    try:
        result = keep_in_order(opened_lake, grace=grace, recall_floor=recall_floor, dry_run=dry_run)
    except HeldError as error:
        result, held_error = error.found, error
    if as_json:
        out(result, opened_lake)
    else:
        maintained(result, tell)
    if held_error is not None:
        raise held_error
