"""The commands that work with a table: parse, call, print, as in `pipelines.cli`, which registers them."""

from typing import Annotated, Literal

import typer

from model.errors import HeldError, InputError
from pipelines.options import Json, LakeAt, ModelId, SpecToRead, Verbose
from pipelines.terminal import lake_at, out, say, tell


def search(
    query: Annotated[
        list[str] | None, typer.Argument(help="FILE, FILE@start-end in seconds, or a recording_id (itself left out).")
    ] = None,
    lake: LakeAt = "./lake",
    k: Annotated[int, typer.Option("-k", min=1, max=10_000, help="Results.")] = 10,
    where: Annotated[
        str | None, typer.Option("--where", help="SQL filter on the table's columns; alone it lists.")
    ] = None,
    by: Annotated[
        Literal["recordings", "windows"], typer.Option("--by", help="One result a recording, or a window.")
    ] = "recordings",
    play_list: Annotated[str | None, typer.Option("--play-list", help="Write the results as an M3U play list.")] = None,
    spec: SpecToRead = None,
    model: ModelId = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """What sounds like this? The very same sound comes first (marked =), then the nearest."""
    from pipelines import commands, messages
    from pipelines.playlist import playlist
    from pipelines.search import as_json as hits_as_json

    result = commands.search(lake_at(lake), query or [], k=k, where=where, by=by, spec=spec, model_id=model)
    if play_list is not None:
        text = playlist([hit for found in result["results"] for hit in found["hits"]])
        try:
            with open(play_list, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
        except OSError as error:
            raise InputError(f"cannot write the play list {play_list}: {error.strerror}") from error
    for note in result["notes"]:
        say(f"soundlake: {note}")
    if as_json:
        found = [{"query": one["query"], "hits": hits_as_json(one["hits"])} for one in result["results"]]
        out({"model_id": result["model_id"], "results": found})
        return
    messages.hits(result["results"], tell, filtered=where is not None)


def export(
    target: Annotated[str, typer.Argument(help="File to write: .parquet, .csv or .npz.")],
    lake: LakeAt = "./lake",
    where: Annotated[str | None, typer.Option("--where", help="SQL filter on the table's columns.")] = None,
    by: Annotated[
        Literal["windows", "recordings"],
        typer.Option("--by", help="A row a window, or a recording with its clip embedding."),
    ] = "windows",
    spec: SpecToRead = None,
    model: ModelId = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write the table to a file for other tools."""
    from pipelines import commands

    result = commands.export(lake_at(lake), target, where=where, by=by, spec=spec, model_id=model)
    if as_json:
        out(result)
    else:
        tell(f"{result['rows']} {result['by']} written to {result['file']}")


def maintain(
    lake: LakeAt = "./lake",
    grace: Annotated[
        float, typer.Option("--grace", min=0, help="Hours that a run may take: what is younger stays.")
    ] = 48.0,
    recall_floor: Annotated[
        float, typer.Option("--recall-floor", min=0, max=1, help="Exit with 3 if an index finds less, even built anew.")
    ] = 0.9,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would go.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Sweep what killed runs left, put small files of ledgers and tables together, watch over the index."""
    from pipelines.maintain import maintain as keep_in_order
    from pipelines.messages_maintain import maintained

    where, held = lake_at(lake), None
    try:
        result = keep_in_order(where, grace=grace, recall_floor=recall_floor, dry_run=dry_run)
    except HeldError as error:
        result, held = error.found, error
    if as_json:
        out(result, where)
    else:
        maintained(result, tell)
    if held is not None:
        raise held
