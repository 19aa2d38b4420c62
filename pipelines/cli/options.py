"""Options that several commands share, each described once, so that its help is the same everywhere."""

import math
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

# Beam's own options follow `--`.
BEAM = {"allow_extra_args": True}

RETRY = "--retry-rejected"


class RetryCommand(TyperCommand):
    """A command with `RETRY`, whose value is optional: Typer does not support such options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, after inserting ``all`` behind a `RETRY` without a reason."""
        return super().parse_args(ctx, self._with_reason(ctx, args))

    def _with_reason(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        if RETRY not in args[:end]:
            return args
        from soundlake.pipelines.audio.reading import REASONS

        place = args.index(RETRY) + 1
        with_all = [*args[:place], "all", *args[place:]]
        if place == end or args[place].startswith("-"):
            return with_all
        if args[place] in REASONS or args[place] == "all":
            return args
        # The word is no reason: it is the corpus, or a misspelt reason if the corpus is named elsewhere.
        parsed, _, _ = self.make_parser(ctx).parse_args(args[:end])
        return with_all if parsed.get("audio") is None else args


_verbose = False


def _set_verbose(value: bool) -> None:
    global _verbose
    _verbose = _verbose or value


def verbose() -> bool:
    """Whether ``--verbose`` was given."""
    return _verbose


def finite(value: float | None) -> float | None:
    """The value, as a callback of numeric options; refuses ``inf`` and ``nan``, which JSON cannot represent."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


Audio = Annotated[str, typer.Argument(help="Folder or bucket prefix of audio files.")]
LakeAt = Annotated[str, typer.Option("--lake", envvar="SOUNDLAKE_LAKE", help="Lake directory or bucket prefix.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
Verbose = Annotated[
    bool,
    typer.Option("-v", "--verbose", callback=_set_verbose, expose_value=False, help="Show the traceback of an error."),
]
SpecToWrite = Annotated[str, typer.Option("--spec", help="speech, music, wildlife, oneshots, general, or a JSON file.")]
SpecToRead = Annotated[
    str | None, typer.Option("--spec", help="Preset, JSON file or spec_id; needed where the lake holds several.")
]
Accelerator = Annotated[
    str | None,
    typer.Option("--accelerator", help="GPU of the workers, as the runner names it: type:nvidia-tesla-t4;count:1;…"),
]
ModelId = Annotated[str | None, typer.Option("--model", help="model_id; default: the promoted model.")]
Retry = Annotated[
    str | None,
    typer.Option(RETRY, metavar="[REASON]", help="Retry rejected files: those with this reason, or all."),
]
Labels = Annotated[
    str | None, typer.Option("--labels", help="CSV or Parquet with uri, label, group; default: labels.csv in AUDIO.")
]
Partition = Annotated[
    str | None, typer.Option("--partition", help="One folder of the corpus; . = files outside its folders.")
]
Folds = Annotated[str | None, typer.Option("--folds", help="CSV or Parquet with uri and fold: predefined folds.")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Threads of the local runner; 0 = one per core.")]
Preset = Annotated[
    str | None, typer.Option("--preset", help="Architecture: default, or seed (a plain convolutional VAE).")
]
Steps = Annotated[int | None, typer.Option("--steps", help="Maximum number of training steps.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Random seed for weights, order and noise.")]
Contrastive = Annotated[
    float | None,
    typer.Option(
        "--contrastive", help="Weight of the contrastive loss between windows of a recording, nats (0 = off)."
    ),
]
LatentDim = Annotated[int | None, typer.Option("--latent-dim", help="Size of the latent vector.")]
LikenessDim = Annotated[
    int | None,
    typer.Option(
        "--likeness-dim", help="Numbers of the similarity vector, which is the embedding (0 = none: the latent is)."
    ),
]
Temperature = Annotated[float | None, typer.Option("--temperature", help="Temperature of the contrastive loss.")]
Masking = Annotated[
    float | None,
    typer.Option("--masking", help="Maximum mask width, as a fraction of a window, in time and mel bands (0 = off)."),
]
Denoising = Annotated[
    float | None,
    typer.Option("--denoising", help="Maximum noise added to the encoder input, in standard deviations (0 = off)."),
]
Level = Annotated[
    float | None, typer.Option("--level", help="Standard deviation of random gain in training, dB (0 = off).")
]
Mixing = Annotated[
    float | None,
    typer.Option("--mixing", help="Maximum mix-in ratio of another recording; needs --contrastive."),
]
Pitch = Annotated[
    int | None, typer.Option("--pitch", help="Maximum random pitch shift in training, mel bands (0 = off).")
]
FreeBits = Annotated[
    float | None, typer.Option("--free-bits", help="Free bits: nats per latent dimension without KL penalty.")
]
KlWarmUp = Annotated[int | None, typer.Option("--kl-warm-up", help="Steps until the KL term has its full weight.")]
ClipNorm = Annotated[float | None, typer.Option("--clip-norm", help="Clip gradients to this norm (0 = off).")]
Precision = Annotated[
    str | None, typer.Option("--precision", help="float32, or bfloat16 (mixed precision, weights stay float32).")
]
Xla = Annotated[bool | None, typer.Option("--xla", help="Compile with XLA; needs a single GPU.")]
