"""Options that several commands share: each is described once, and reads the same everywhere."""

import math
from collections.abc import Sequence
from typing import Annotated

import typer

from model.errors import InputError

# Options of Beam's own follow `--`.
BEAM = {"allow_extra_args": True}

_verbose = False


def _set_verbose(value: bool) -> None:
    global _verbose
    _verbose = _verbose or value


def verbose() -> bool:
    """Whether ``--verbose`` was given."""
    return _verbose


def finite(value: float | None) -> float | None:
    """The same, as a callback of options that are numbers; neither ``inf`` nor ``nan``, which JSON cannot tell."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def is_template(beam: Sequence[str]) -> bool:
    """Whether Beam's options are to write a pipeline down, for a service that runs it later, in place of running it."""
    return any(argument.startswith("--template_location=") for argument in beam)


def refuse_template(beam: Sequence[str], command: str) -> None:
    """Raise `InputError` if so: what comes after the first pipeline of `command` has to wait for it."""
    if is_template(beam):
        raise InputError(f"{command} waits for its pipeline, and nobody waits for a template: no --template_location")


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
Accelerator = Annotated[
    str | None,
    typer.Option("--accelerator", help="GPU of the workers, in the runner's words: type:nvidia-tesla-t4;count:1;…"),
]
ModelId = Annotated[str | None, typer.Option("--model", help="model_id; by default the promoted one.")]
Retry = Annotated[
    str | None,
    typer.Option("--retry-rejected", metavar="[REASON]", help="Try rejects again: for one reason, or all of them."),
]
Labels = Annotated[
    str | None, typer.Option("--labels", help="CSV or Parquet with uri, label, group; by default labels.csv in AUDIO.")
]
Partition = Annotated[
    str | None, typer.Option("--partition", help="Only one folder of the corpus; . for files beside its folders.")
]
Folds = Annotated[
    str | None, typer.Option("--folds", help="CSV or Parquet with uri and fold, for a set that has its own.")
]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Threads of the local runner; 0 for one a core.")]
Preset = Annotated[str | None, typer.Option("--preset", help="VAE: default, or seed (the article's).")]
Steps = Annotated[int | None, typer.Option("--steps", help="Training steps at most.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of weights, order and noise.")]
Contrastive = Annotated[
    float | None,
    typer.Option("--contrastive", help="Weight of the contrastive term between windows of a recording, nats; 0: none."),
]
LatentDim = Annotated[int | None, typer.Option("--latent-dim", help="Numbers that a window is rebuilt from.")]
LikenessDim = Annotated[
    int | None, typer.Option("--likeness-dim", help="Numbers of an embedding beside them: what a window sounds like.")
]
Temperature = Annotated[float | None, typer.Option("--temperature", help="Of the contrastive term.")]
Masking = Annotated[
    float | None, typer.Option("--masking", help="Widest mask, as a share of a window, in time and in bands; 0: none.")
]
Denoising = Annotated[
    float | None, typer.Option("--denoising", help="Most noise that the encoder sees, standard deviations; 0: none.")
]
Level = Annotated[float | None, typer.Option("--level", help="Change of level in training, dB (a deviation); 0: none.")]
Mixing = Annotated[
    float | None,
    typer.Option("--mixing", help="Most of another recording in a pair's second window; with --contrastive."),
]
Pitch = Annotated[
    int | None, typer.Option("--pitch", help="Mel bands that training moves windows by at most; 0: none.")
]
FreeBits = Annotated[float | None, typer.Option("--free-bits", help="Nats that a latent dimension carries for free.")]
KlWarmUp = Annotated[int | None, typer.Option("--kl-warm-up", help="Steps until the KL has its full weight.")]
ClipNorm = Annotated[float | None, typer.Option("--clip-norm", help="Largest norm of the gradients; 0: any.")]
Precision = Annotated[str | None, typer.Option("--precision", help="float32, or bfloat16 with weights in float32.")]
Xla = Annotated[bool | None, typer.Option("--xla", help="Compile with XLA: for one GPU.")]
