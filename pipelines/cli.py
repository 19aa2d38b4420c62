"""The command line: parse, call, print. No work of its own, and nothing heavy imported before a command needs it."""

import json
import os
import sys
import warnings
from typing import Annotated, Any, Literal

import typer

from model.errors import InputError, TryLaterError

app = typer.Typer(
    name="soundlake",
    help="A folder of raw audio in, a searchable table of VAE embeddings out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

# Options of Beam's own follow `--`.
BEAM = {"allow_extra_args": True}

_verbose = False


def _set_verbose(value: bool) -> None:
    global _verbose
    _verbose = _verbose or value


Audio = Annotated[str, typer.Argument(help="Folder or bucket prefix of audio files.")]
LakeAt = Annotated[str, typer.Option("--lake", envvar="SOUNDLAKE_LAKE", help="Where the lake lies.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
Verbose = Annotated[
    bool,
    typer.Option("-v", "--verbose", callback=_set_verbose, expose_value=False, help="Show the traceback of an error."),
]
SpecToWrite = Annotated[str, typer.Option("--spec", help="speech, music, wildlife, general, or a JSON file.")]
SpecToRead = Annotated[
    str | None, typer.Option("--spec", help="Preset, JSON file or spec_id; needed where the lake holds several.")
]
ModelId = Annotated[str | None, typer.Option("--model", help="model_id; by default the promoted one.")]
Retry = Annotated[
    str | None,
    typer.Option("--retry-rejected", metavar="[REASON]", help="Try rejects again: for one reason, or all of them."),
]
Labels = Annotated[
    str | None, typer.Option("--labels", help="CSV or Parquet with uri, label, group; by default labels.csv in AUDIO.")
]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Threads of the local runner; 0 for one a core.")]
Preset = Annotated[str | None, typer.Option("--preset", help="VAE: default, or seed (the article's).")]
Steps = Annotated[int | None, typer.Option("--steps", help="Training steps at most.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of weights, order and noise.")]


def _lake(root: str) -> Any:
    from pipelines.lake import Lake

    return Lake.at(root)


def _say(text: str = "") -> None:
    print(text, file=sys.stderr)


def _out(result: Any) -> None:
    print(json.dumps(result, sort_keys=True, default=str))


@app.command("run", context_settings=BEAM, epilog="Example: soundlake run ~/recordings --lake ~/lake")
def run_command(
    context: typer.Context,
    audio: Audio,
    lake: LakeAt = "./lake",
    spec: SpecToWrite = "general",
    labels: Labels = None,
    train: Annotated[bool, typer.Option("--train", help="Train again, even if there is a model.")] = False,
    preset: Preset = None,
    steps: Steps = None,
    seed: Seed = None,
    workers: Workers = 0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """The main job: extract, train if there is no model for this spec, encode, index."""
    from pipelines import commands, messages

    result = commands.run(
        _lake(lake),
        audio,
        spec=commands.parse_spec(spec),
        labels=labels,
        settings={"preset": preset, "max_steps": steps, "seed": seed},
        retrain=train,
        beam=context.args,
        workers=workers,
        step=lambda name: _say(f"soundlake: {name} …"),
        progress=sys.stderr.isatty(),
    )
    if as_json:
        _out(result)
        return
    found, extracted, encoded = result["ledger"], result["extract"], result["encode"]
    print(f"files       {messages.files(extracted)}")
    print(
        f"recordings  {found['recordings']} done, {found['rejected']} files rejected, {found['hours']:.2f} hours, "
        f"{found['windows']} windows in {found['shards']} shards, {found['silent_windows']} silent windows left out"
    )
    messages.rejects(found, print)
    model = result["model"]
    how = "trained" if result["train"] and result["train"]["trained"] else "there already"
    print(f"model       {model['model_id']} {how}: {messages.elbo(model['metrics'])}")
    did = f"{encoded['encoded']} windows encoded" if encoded["encoded"] else "nothing to encode"
    print(f"table       {encoded['rows']} windows, {did}, search is {encoded['index']['kind']}")
    print(f"report      {result['report']}")


@app.command("plan", context_settings=BEAM, epilog="Example: soundlake plan ~/recordings --lake ~/lake")
def plan_command(
    context: typer.Context,
    audio: Audio,
    lake: LakeAt = "./lake",
    spec: SpecToWrite = "general",
    labels: Labels = None,
    workers: Workers = 0,
    retry_rejected: Retry = None,
    price_cpu: Annotated[
        float | None, typer.Option("--price-cpu", min=0, help="Of an hour of one core, for an estimate of the money.")
    ] = None,
    price_storage: Annotated[
        float | None, typer.Option("--price-storage", min=0, help="Of a gigabyte of storage for a month.")
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """What extract would do: files, hours, shards, and what they would cost. Decodes a few samples at most."""
    from pipelines import commands, messages

    result = commands.plan(
        _lake(lake),
        audio,
        spec=commands.parse_spec(spec),
        labels=labels,
        beam=context.args,
        workers=workers,
        retry=retry_rejected,
        prices={"cpu": price_cpu, "storage": price_storage},
    )
    if as_json:
        _out(result)
    else:
        messages.plan(result, print)


@app.command(
    "extract", context_settings=BEAM, epilog="Example: soundlake extract ~/recordings --lake ~/lake --spec music"
)
def extract_command(
    context: typer.Context,
    audio: Audio,
    lake: LakeAt = "./lake",
    spec: SpecToWrite = "general",
    labels: Labels = None,
    workers: Workers = 0,
    max_rejects: Annotated[
        int | None, typer.Option("--max-rejects", min=0, help="Exit with 4 if the ledger holds more rejects.")
    ] = None,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Let all files leave the ledger if the corpus is empty now.")
    ] = False,
    retry_rejected: Retry = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Then check every shard, and make again what is damaged or missing.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Turn new and changed files into shards of log-mel windows, and account for every file."""
    from pipelines import commands, ledger, messages

    found = commands.parse_spec(spec)
    where = _lake(lake)
    result = commands.extract(
        where,
        audio,
        spec=found,
        labels=labels,
        beam=context.args,
        workers=workers,
        allow_empty=allow_empty,
        retry=retry_rejected,
        repair=repair,
    )
    summary = ledger.summary(ledger.open_ledger(where, found.spec_id)) if result["ledger_version"] else None
    if as_json:
        _out(result | {"ledger": summary})
    else:
        print(messages.files(result))
        if summary is not None:
            print(
                f"ledger: {summary['listed']} files = {summary['done']} done + {summary['rejected']} rejected; "
                f"{summary['hours']:.2f} hours, {summary['windows']} windows in {summary['shards']} shards, "
                f"{summary['silent_windows']} silent windows left out"
            )
            messages.other_length(summary, print)
            messages.rejects(summary, print)
        if repair:
            messages.repaired(result["repair"], found.spec_id, print)
    if max_rejects is not None and summary is not None and summary["rejected"] > max_rejects:
        _say(f"soundlake: {summary['rejected']} rejects are more than --max-rejects {max_rejects}")
        raise typer.Exit(4)


@app.command("train", epilog="Example: soundlake train --lake ~/lake --steps 3000")
def train_command(
    lake: LakeAt = "./lake",
    spec: SpecToRead = None,
    preset: Preset = None,
    steps: Steps = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Windows of a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Of Adam.")] = None,
    latent_dim: Annotated[int | None, typer.Option("--latent-dim", help="Numbers of an embedding.")] = None,
    patience: Annotated[
        int | None, typer.Option("--patience", help="Validations without gain before it stops.")
    ] = None,
    seed: Seed = None,
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Do nothing if the spec has a promoted model.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train a VAE on the lake's windows; goes on where a killed training stopped."""
    from pipelines import commands, messages

    settings = {"preset": preset, "max_steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    settings |= {"latent_dim": latent_dim, "patience": patience, "seed": seed}
    result = commands.train(
        _lake(lake), spec=spec, settings=settings, if_missing=if_missing, progress=sys.stderr.isatty()
    )
    if as_json:
        _out(result)
        return
    metrics = result["metrics"]
    how = (
        f"trained in {metrics['steps']} steps, {metrics['seconds']} s"
        if result["trained"]
        else "nothing to do: it is there"
    )
    print(f"model   {result['model_id']}{' (promoted)' if result['promoted'] else ''}: {how}")
    active = f"{metrics['active_dimensions']} of {len(metrics['kl_per_dim'])} dimensions active"
    print(f"        {messages.elbo(metrics)}; {active}")
    print(f"report  {result['report']}")
    if not result["promoted"]:
        print(f"to use it: soundlake promote {result['model_id']} --lake {lake}")


@app.command("promote", epilog="Example: soundlake promote 3f2a9c1b7d604e85 --lake ~/lake")
def promote_command(
    model_id: Annotated[str, typer.Argument(help="model_id, from status.")],
    lake: LakeAt = "./lake",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make a model the one that encode and search use for its spec."""
    from model import artifact
    from pipelines import commands

    model = commands.find_model(_lake(lake), model_id)
    artifact.promote(model.directory.parent, model, reason="by hand")
    if as_json:
        _out({"model_id": model_id, "spec_id": model.spec.spec_id})
    else:
        print(f"{model_id} is promoted for the spec {model.spec.spec_id}")


@app.command("encode", context_settings=BEAM, epilog="Example: soundlake encode --lake ~/lake")
def encode_command(
    context: typer.Context,
    lake: LakeAt = "./lake",
    spec: SpecToRead = None,
    model: ModelId = None,
    workers: Workers = 0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Encode every window that the table lacks, and drop rows of what is gone."""
    from pipelines import commands

    result = commands.encode(_lake(lake), spec=spec, model_id=model, beam=context.args, workers=workers)
    if as_json:
        _out(result)
        return
    did = f"{result['encoded']} windows encoded" if result["encoded"] else "nothing to do"
    gone = f", rows of {result['stale_recordings']} recordings replaced or gone" if result["stale_recordings"] else ""
    print(f"{did}{gone}; the table holds {result['rows']} windows, search is {result['index']['kind']}")


@app.command("status", epilog="Example: soundlake status --lake ~/lake")
def status_command(lake: LakeAt = "./lake", as_json: Json = False, verbose: Verbose = False) -> None:
    """The lake at a glance: recordings, rejects by reason, models, tables."""
    from pipelines import messages
    from pipelines.status import status

    result = status(_lake(lake))
    if as_json:
        _out(result)
        return
    print(f"lake {result['lake']}")
    if not result["specs"]:
        print("  no features yet: soundlake run AUDIO")
    for spec_id, found in result["specs"].items():
        print(f"  features {spec_id}{' (' + found['preset'] + ')' if found['preset'] else ''}")
        print(
            f"    {found['listed']} files = {found['done']} done + {found['rejected']} rejected; "
            f"{found['recordings']} recordings, {found['hours']:.2f} hours, {found['windows']} windows, "
            f"{found['shards']} shards"
        )
        messages.other_length(found, print)
        messages.rejects(found, print)
        if found["estimate"] is not None:
            print(f"    {messages.estimate_error(found['estimate'])}")
    for model_id, found in result["models"].items():
        mark = ", promoted" if found["promoted"] else ""
        loss = found["validation"]["negative_elbo"]
        print(f"  model {model_id}: spec {found['spec_id']}{mark}, validation loss {loss:.0f} nats, {found['report']}")
    for model_id, found in result["tables"].items():
        fresh = "up to date" if found["up_to_date"] else "behind the ledger: soundlake encode"
        kind = (found["index"] or {}).get("kind", "exact")
        recall = (found["index"] or {}).get("recall")
        print(
            f"  table {model_id}: {found['rows']} windows, {fresh}, search is {kind}"
            + (f", recall {recall:.3f}" if recall is not None else "")
        )


@app.command("search", epilog="Example: soundlake search 'heron.wav@3.5-5.5' --lake ~/lake --where \"label = 'bird'\"")
def search_command(
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
    from pipelines.search import as_json as hits_as_json
    from pipelines.search import playlist

    result = commands.search(_lake(lake), query or [], k=k, where=where, by=by, spec=spec, model_id=model)
    if play_list is not None:
        text = playlist([hit for found in result["results"] for hit in found["hits"]])
        try:
            with open(play_list, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
        except OSError as error:
            raise InputError(f"cannot write the play list {play_list}: {error.strerror}") from error
    for note in result["notes"]:
        _say(f"soundlake: {note}")
    if as_json:
        found = [{"query": one["query"], "hits": hits_as_json(one["hits"])} for one in result["results"]]
        _out({"model_id": result["model_id"], "results": found})
        return
    for one in result["results"]:
        if len(result["results"]) > 1:
            print(f"{messages.shown(one['query'])}:")
        if not one["hits"]:
            print("no window of the table passes the filter" if where else "the table holds nothing else")
        for rank, hit in enumerate(one["hits"], start=1):
            mark = "=" if hit.same_sound else " "
            distance = "" if hit.distance is None else f"{hit.distance:10.3f}"
            label = f"  [{messages.shown(hit.label)}]" if hit.label else ""
            print(f"{rank:>4} {mark}{distance}  {hit.start_s:8.2f}–{hit.end_s:.2f} s  {messages.shown(hit.uri)}{label}")


@app.command("export", epilog="Example: soundlake export embeddings.parquet --lake ~/lake")
def export_command(
    target: Annotated[str, typer.Argument(help="File to write: .parquet, .csv or .npz.")],
    lake: LakeAt = "./lake",
    where: Annotated[str | None, typer.Option("--where", help="SQL filter on the table's columns.")] = None,
    spec: SpecToRead = None,
    model: ModelId = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write the table to a file for other tools."""
    from pipelines import commands

    result = commands.export(_lake(lake), target, where=where, spec=spec, model_id=model)
    if as_json:
        _out(result)
    else:
        print(f"{result['rows']} windows written to {result['file']}")


@app.command("synth", epilog="Example: soundlake synth ./demo --recordings 96")
def synth_command(
    folder: Annotated[str, typer.Argument(help="New or empty folder.")],
    recordings: Annotated[int, typer.Option("--recordings", help="Sound files.")] = 96,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another corpus.")] = 0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write the demo corpus: eight kinds of sound, made from nothing, with labels."""
    from pipelines.synth import synthesise

    files = synthesise(folder, recordings=recordings, seed=seed)
    if as_json:
        _out({"folder": folder, "files": files})
    else:
        print(f"{files} files in {folder}")


def _prepare() -> None:
    """What must be set before the heavy libraries are imported."""
    import logging

    # One thread a worker in BLAS: Beam's workers and tf.data bring the parallelism.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("LANCE_LOG", "error")
    # Ours, and what is serious; the libraries' own warnings are about things that a user cannot change.
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("soundlake: %(message)s"))
    handler.addFilter(
        lambda record: record.name.startswith(("model.", "pipelines.")) or record.levelno >= logging.ERROR
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    if not _verbose:
        warnings.simplefilter("ignore")


def _reasons_filled_in(arguments: list[str]) -> list[str]:
    """The same with ``all`` after a ``--retry-rejected`` without a reason: Typer wants a value for each option."""
    filled = []
    for argument, after in zip(arguments, [*arguments[1:], "-"], strict=True):
        filled += [argument, "all"] if argument == "--retry-rejected" and after.startswith("-") else [argument]
    return filled


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code.

    0 done, 1 a fault of ours, 2 the call or its input is wrong, 4 more rejects than allowed, 75 may go through later,
    130 interrupted.
    """
    _prepare()
    try:
        code = app(args=_reasons_filled_in(sys.argv[1:] if arguments is None else arguments), standalone_mode=False)
        if code == 130:  # Typer's own answer to Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort) as error:
        return _fail(130, "interrupted; what is done is kept, the same command goes on from there", error)
    except InputError as error:
        return _fail(2, str(error), error)
    except TryLaterError as error:
        return _fail(75, str(error), error)
    except BrokenPipeError:
        # The reader of a pipe has enough; not ours to complain about, nor Python's at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # Typer brings a parser of its own, or uses click's: its usage errors are known by what they can do.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            context = getattr(error, "ctx", None)
            if type(error).__name__ == "NoArgsIsHelpError":
                print(context.get_help() if context else "")
                return 2
            return _fail(
                2, f"{error.format_message()} See {context.command_path if context else 'soundlake'} --help", error
            )
        where = "" if _verbose else "; -v shows where, and so does the newest manifest in the lake's runs/"
        return _fail(1, f"a fault of soundlake's own: {type(error).__name__}: {_one_line(error)}{where}", error)


def _one_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else ""


def _fail(code: int, message: str, error: BaseException) -> int:
    if _verbose:
        import traceback

        traceback.print_exception(error)
    _say(f"soundlake: {' '.join(message.split())}")
    return code


def script() -> None:
    """The `soundlake` command."""

    sys.exit(main())
