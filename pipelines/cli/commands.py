"""The command line: parse, call, print. The work is done elsewhere; heavy imports wait until a command needs them."""

from importlib import metadata
from typing import Annotated

import typer

from soundlake.model.errors import HeldError
from soundlake.pipelines.cli import table_commands
from soundlake.pipelines.cli.options import (
    BEAM,
    Accelerator,
    Audio,
    ClipNorm,
    Contrastive,
    Denoising,
    Folds,
    FreeBits,
    Json,
    KlWarmUp,
    Labels,
    LakeAt,
    LatentDim,
    Level,
    LikenessDim,
    Masking,
    Mixing,
    ModelId,
    Partition,
    Pitch,
    Precision,
    Preset,
    Retry,
    RetryCommand,
    Seed,
    SpecToRead,
    SpecToWrite,
    Steps,
    Temperature,
    Verbose,
    Workers,
    Xla,
    finite,
)
from soundlake.pipelines.cli.terminal import lake_at, out, say, tell

app = typer.Typer(
    name="soundlake",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        tell(f"soundlake {metadata.version('soundlake')}")
        raise typer.Exit


@app.callback()
def _soundlake(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """A folder of raw audio in, a searchable table of VAE embeddings out."""


@app.command("run", context_settings=BEAM, epilog="Example: soundlake run ~/recordings --lake ~/lake")
def run_command(
    context: typer.Context,
    audio: Audio,
    lake: LakeAt = "./lake",
    spec: SpecToWrite = "general",
    labels: Labels = None,
    train: Annotated[bool, typer.Option("--train", help="Train a new model even if the spec has one.")] = False,
    preset: Preset = None,
    steps: Steps = None,
    seed: Seed = None,
    workers: Workers = 0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Do the whole job: extract, train and evaluate unless the spec has a model, encode, index."""
    from soundlake.pipelines import commands
    from soundlake.pipelines.cli import messages
    from soundlake.pipelines.lake import lookup

    result = commands.run(
        lake_at(lake),
        audio,
        spec=lookup.parse_spec(spec),
        labels=labels,
        settings={"preset": preset, "max_steps": steps, "seed": seed},
        retrain=train,
        beam=context.args,
        workers=workers,
        step=lambda name: say(f"soundlake: {name} …"),
        ready=lambda command: say(f"soundlake: the table can be searched now, such as by: {command}"),
    )
    if as_json:
        out(result)
    else:
        messages.run(result, tell)
    if result["held"] is not None:
        raise HeldError(result["held"])


@app.command(
    "plan", cls=RetryCommand, context_settings=BEAM, epilog="Example: soundlake plan ~/recordings --lake ~/lake"
)
def plan_command(
    context: typer.Context,
    audio: Audio,
    lake: LakeAt = "./lake",
    spec: SpecToWrite = "general",
    labels: Labels = None,
    workers: Workers = 0,
    retry_rejected: Retry = None,
    price_cpu: Annotated[
        float | None,
        typer.Option("--price-cpu", min=0, callback=finite, help="Price per core-hour, used in the cost estimate."),
    ] = None,
    price_storage: Annotated[
        float | None,
        typer.Option(
            "--price-storage",
            min=0,
            callback=finite,
            help="Price per gigabyte and month of storage, used in the cost estimate.",
        ),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show what extract would do and what it would cost. Decodes at most a few samples."""
    from soundlake.pipelines import commands
    from soundlake.pipelines.cli import messages
    from soundlake.pipelines.lake import lookup

    result = commands.plan(
        lake_at(lake),
        audio,
        spec=lookup.parse_spec(spec),
        labels=labels,
        beam=context.args,
        workers=workers,
        retry=retry_rejected,
        prices={"cpu": price_cpu, "storage": price_storage},
    )
    if as_json:
        out(result)
    else:
        messages.plan(result, tell)


@app.command(
    "extract",
    cls=RetryCommand,
    context_settings=BEAM,
    epilog="Example: soundlake extract ~/recordings --lake ~/lake --spec music",
)
def extract_command(
    context: typer.Context,
    audio: Audio,
    lake: LakeAt = "./lake",
    spec: SpecToWrite = "general",
    labels: Labels = None,
    partition: Partition = None,
    workers: Workers = 0,
    max_rejects: Annotated[
        int | None, typer.Option("--max-rejects", min=0, help="Exit with 4 if more files than this are rejected.")
    ] = None,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Allow the ledger to become empty if the corpus is empty.")
    ] = False,
    retry_rejected: Retry = None,
    include_forgotten: Annotated[
        bool, typer.Option("--include-forgotten", help="Take in files that `forget` removed; they stay from now on.")
    ] = False,
    recheck: Annotated[
        bool,
        typer.Option("--recheck", help="Decode again what an older version of soundlake read, where that differs."),
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="After extracting, verify all shards and rebuild bad ones.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Turn new and changed files into shards of log-mel windows, and account for every file."""
    from soundlake.pipelines import commands
    from soundlake.pipelines.cli import messages
    from soundlake.pipelines.lake import ledger, lookup

    feature_spec = lookup.parse_spec(spec)
    opened_lake = lake_at(lake)
    result = commands.extract(
        opened_lake,
        audio,
        spec=feature_spec,
        labels=labels,
        partition=partition,
        beam=context.args,
        workers=workers,
        allow_empty=allow_empty,
        retry=retry_rejected,
        repair=repair,
        include_forgotten=include_forgotten,
        recheck=recheck,
    )
    summary = (
        ledger.summary(ledger.open_ledger(opened_lake, feature_spec.spec_id)) if result["ledger_version"] else None
    )
    if as_json:
        out(result | {"ledger": summary}, opened_lake)
    else:
        tell(messages.files(result))
        messages.labels(result, tell)
        if summary is not None:
            tell(
                f"ledger: {summary['listed']} files = {summary['done']} done + {summary['rejected']} rejected; "
                f"{summary['hours']:.2f} hours, {summary['windows']} windows in {summary['shards']} shards, "
                f"{summary['silent_windows']} silent windows skipped"
            )
            messages.notes(summary, tell)
            messages.older_decoder(summary, feature_spec.spec_id, opened_lake, tell)
            messages.rejects(summary, tell)
        if recheck:
            messages.rechecked(result["recheck"], tell)
        if repair:
            messages.repaired(result["repair"], feature_spec.spec_id, tell)
    if max_rejects is not None and summary is not None and summary["rejected"] > max_rejects:
        say(f"soundlake: {summary['rejected']} rejects exceed --max-rejects {max_rejects}")
        raise typer.Exit(4)


@app.command("partitions", epilog="Example: soundlake partitions ~/recordings --lake ~/lake")
def partitions_command(
    audio: Audio,
    lake: LakeAt = "./lake",
    spec: SpecToWrite = "general",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List the parts of a corpus for --partition: its folders, removed folders, and . for files outside folders."""
    from soundlake.pipelines import commands
    from soundlake.pipelines.lake import lookup

    result = commands.partitions(lake_at(lake), audio, spec=lookup.parse_spec(spec))
    if as_json:
        out(result)
        return
    for name in result["partitions"]:
        tell(f"{name} (gone)" if name in result["gone"] else name)


@app.command("train", epilog="Example: soundlake train --lake ~/lake --steps 3000")
def train_command(
    lake: LakeAt = "./lake",
    spec: SpecToRead = None,
    preset: Preset = None,
    steps: Steps = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Windows per training step.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Adam learning rate.")] = None,
    latent_dim: LatentDim = None,
    likeness_dim: LikenessDim = None,
    patience: Annotated[
        int | None, typer.Option("--patience", help="Stop after this many validations without improvement.")
    ] = None,
    seed: Seed = None,
    contrastive: Contrastive = None,
    temperature: Temperature = None,
    masking: Masking = None,
    denoising: Denoising = None,
    level: Level = None,
    mixing: Mixing = None,
    pitch: Pitch = None,
    free_bits: FreeBits = None,
    kl_warm_up: KlWarmUp = None,
    clip_norm: ClipNorm = None,
    precision: Precision = None,
    xla: Xla = None,
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Do nothing if the spec has a promoted model.")
    ] = False,
    if_grown: Annotated[
        float | None,
        typer.Option(
            "--if-grown",
            min=0,
            callback=finite,
            help="Do nothing unless the lake has grown by this fraction since the last training (0.2 = 20 %).",
        ),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train a VAE on the lake's windows; resumes an interrupted training.

    On several hosts run the same command on each, with TensorFlow's TF_CONFIG in the environment.
    """
    from soundlake.pipelines import commands
    from soundlake.pipelines.cli import messages

    settings = {"preset": preset, "max_steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    settings |= {"latent_dim": latent_dim, "likeness_dim": likeness_dim, "patience": patience, "seed": seed}
    settings |= {"contrastive": contrastive, "temperature": temperature, "masking": masking}
    settings |= {"denoising": denoising, "level": level, "mixing": mixing, "pitch": pitch, "free_bits": free_bits}
    settings |= {"kl_warm_up": kl_warm_up, "clip_norm": clip_norm, "precision": precision, "xla": xla}
    result = commands.train(
        lake_at(lake),
        spec=spec,
        settings=settings,
        if_missing=if_missing,
        if_grown=if_grown,
    )
    if as_json:
        out(result, lake_at(lake))
        return
    messages.trained(result, lake, tell)


@app.command("promote", epilog="Example: soundlake promote 3f2a9c1b7d604e85 --lake ~/lake")
def promote_command(
    model_id: Annotated[str, typer.Argument(help="model_id, as shown by status.")],
    lake: LakeAt = "./lake",
    folds: Folds = None,
    force: Annotated[
        bool, typer.Option("--force", help="Promote even a worse model; the decision is logged in the model's folder.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make encode and search use this model for its spec; refused (exit 3) if it is worse than the one in use."""
    from soundlake.pipelines.cli import messages
    from soundlake.pipelines.learning import judging

    try:
        result = judging.promote(lake_at(lake), model_id, force=force, folds=folds)
    except HeldError as error:
        if as_json:
            out(error.found, lake_at(lake))
        raise
    if as_json:
        out(result, lake_at(lake))
    else:
        messages.promoted(result, tell)


@app.command("encode", context_settings=BEAM, epilog="Example: soundlake encode --lake ~/lake")
def encode_command(
    context: typer.Context,
    lake: LakeAt = "./lake",
    spec: SpecToRead = None,
    model: ModelId = None,
    audio: Annotated[str | None, typer.Option("--corpus", help="Corpus of --partition.")] = None,
    partition: Partition = None,
    accelerator: Accelerator = None,
    workers: Workers = 0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Encode every window that the table lacks, and remove rows of deleted files."""
    from soundlake.pipelines import commands
    from soundlake.pipelines.cli import messages

    result = commands.encode(
        lake_at(lake),
        spec=spec,
        model_id=model,
        audio=audio,
        partition=partition,
        accelerator=accelerator,
        beam=context.args,
        workers=workers,
    )
    if as_json:
        out(result, lake_at(lake))
        return
    tell(messages.encoded(result))


@app.command("evaluate", epilog="Example: soundlake evaluate --lake ~/lake")
def evaluate_command(
    lake: LakeAt = "./lake",
    spec: SpecToRead = None,
    model: ModelId = None,
    folds: Folds = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Evaluate a model against baselines: statistics of log-mel and of MFCCs, and principal components."""
    from soundlake.pipelines.cli import messages
    from soundlake.pipelines.learning import judging

    result = judging.evaluate(lake_at(lake), spec=spec, model_id=model, folds=folds)
    if as_json:
        out(result, lake_at(lake))
    else:
        messages.evaluation(result, tell)


@app.command("status", epilog="Example: soundlake status --lake ~/lake")
def status_command(
    lake: LakeAt = "./lake",
    spec: Annotated[
        str | None, typer.Option("--spec", help="Show this spec only: preset, JSON file or spec_id.")
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show what is in the lake: recordings, rejects by reason, models, tables."""
    from soundlake.pipelines.cli import messages
    from soundlake.pipelines.lake.status import status

    result = status(lake_at(lake), spec=spec)
    if as_json:
        out(result)
        return
    messages.status(result, tell)


# Registered here, so that --help lists commands in the order of their use.
app.command("search", epilog="Example: soundlake search 'heron.wav@3.5-5.5' --lake ~/lake --where \"label = 'bird'\"")(
    table_commands.search
)
app.command("export", epilog="Example: soundlake export embeddings.parquet --lake ~/lake")(table_commands.export)
app.command("forget", epilog="Example: soundlake forget ~/recordings/heron.wav --lake ~/lake")(table_commands.forget)
app.command("maintain", epilog="Example: soundlake maintain --lake ~/lake --dry-run")(table_commands.maintain)


@app.command("synth", epilog="Example: soundlake synth ./demo --recordings 96")
def synth_command(
    folder: Annotated[str, typer.Argument(help="New or empty folder.")],
    recordings: Annotated[int, typer.Option("--recordings", help="Number of sound files.")] = 96,
    seed: Annotated[int, typer.Option("--seed", help="Random seed of the corpus.")] = 0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write the demo corpus: eight kinds of synthetic sound, with labels."""
    from soundlake.pipelines.cli.synth import synthesise

    files = synthesise(folder, recordings=recordings, seed=seed)
    if as_json:
        out({"folder": folder, "files": files})
    else:
        tell(f"{files} files in {folder}")
