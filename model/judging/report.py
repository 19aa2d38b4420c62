"""report.html: the result of a training and its evaluation in one self-contained file that opens from disk."""

import base64
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from soundlake.model.features.inversion import sound_of
from soundlake.model.features.log_mel import FeatureSpec
from soundlake.model.judging import evaluate
from soundlake.model.saved import artifact

TEMPLATE = Path(__file__).with_name("report.html.j2")
# Sample rates that MP3 supports, Hz. Sound at any other rate is written as WAV, which is ten times as large.
MP3_RATES = {8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000}
# Colours of the most frequent labels; the others are grey.
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#eeca3b", "#9d755d", "#ff9da6", "#1f2d3d")
GREY = "#bbbbbb"
# Size of the picture of the plane, and the margin at its edges.
PLANE, EDGE = (1000, 700), 20

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """A window and its reconstruction.

    Attributes
    ----------
    name : str
    original, rebuilt : ndarray of float32, shape (window_frames, n_mels)
        Nats.
    recorded : ndarray of float32 or None, shape (samples,)
        The window's sound as recorded, at the spec's sample rate; None if it is not available.
    """

    name: str
    original: Array
    rebuilt: Array
    recorded: Array | None = None


@dataclass(frozen=True)
class Heard:
    """A recording to listen to: its name, its label, and its sound at the spec's sample rate."""

    name: str
    label: str | None
    sound: Array


@dataclass(frozen=True)
class Worth:
    """The result of `soundlake evaluate`.

    Attributes
    ----------
    found : mapping
        The content of metrics.json.
    plane : ndarray, shape (clips, 2), or None
        Position of each recording: `model.judging.evaluate.on_a_plane`; None if there are too few recordings.
    names : sequence of str
    labels : sequence of str or None
    neighbours : sequence of sequence of Heard
        Each row contains a query and then the recordings nearest to it.
    """

    found: Mapping[str, Any]
    plane: npt.NDArray[np.floating] | None
    names: Sequence[str]
    labels: Sequence[str | None]
    neighbours: Sequence[Sequence[Heard]]


def sound_uri(sound: Array, rate: int) -> str:
    """Mono sound as a data URI: MP3, which every browser plays, or WAV."""
    import soundfile

    sink = io.BytesIO()
    kind = "mpeg" if rate in MP3_RATES else "wav"
    if kind == "mpeg":
        soundfile.write(sink, sound, rate, format="MP3", subtype="MPEG_LAYER_III")
    else:
        soundfile.write(sink, sound, rate, format="WAV", subtype="PCM_16")
    return f"data:audio/{kind};base64," + base64.b64encode(sink.getvalue()).decode()


def _picture(figure: Any) -> str:
    """A figure as a data URI."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode()


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    # The object interface instead of pyplot: it needs no global state and no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _curves(history: Sequence[Mapping[str, float]]) -> str:
    figure, axes = _figure(1, 3, (10, 3))
    steps = [row["step"] for row in history]
    for axis, name, title in zip(
        axes[0],
        ("nll", "kl", "mse"),
        ("−log p(x|z), nats a window", "KL, nats a window", "mean square error"),
        strict=True,
    ):
        axis.plot(steps, [row[name] for row in history], marker=".", label="training")
        axis.plot(steps, [row[f"validation_{name}"] for row in history], marker=".", label="validation")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    return _picture(figure)


def _latent(kl_per_dim: Sequence[float], fidelity: Sequence[float] | None) -> str:
    figure, axes = _figure(1, 1 if fidelity is None else 2, (10, 2.6))
    axis = axes[0][0]
    axis.bar(range(len(kl_per_dim)), sorted(kl_per_dim, reverse=True), color="#4c78a8")
    axis.axhline(evaluate.ACTIVE_KL, color="#e45756", linewidth=1)
    axis.set_yscale("symlog", linthresh=evaluate.ACTIVE_KL)
    axis.set_xlabel("latent dimension, by KL")
    axis.set_ylabel("KL, nats")
    if fidelity is not None:
        axes[0][1].plot(range(1, len(fidelity) + 1), fidelity, color="#4c78a8")
        axes[0][1].set_ylim(0, 1.02)
        axes[0][1].set_xlabel("principal directions")
        axes[0][1].set_ylabel("share of the variance")
        axes[0][1].grid(alpha=0.3)
    return _picture(figure)


def _pair(pair: Pair, spec: FeatureSpec) -> dict[str, str]:
    figure, axes = _figure(2, 1, (3.6, 3.4))
    low, high = float(pair.original.min()), float(pair.original.max())
    seconds = spec.window_frames * spec.hop_length / spec.sample_rate
    for axis, values in zip(axes[:, 0], (pair.original, pair.rebuilt), strict=True):
        axis.imshow(
            values.T,
            origin="lower",
            aspect="auto",
            vmin=low,
            vmax=max(high, low + 1e-3),
            cmap="magma",
            extent=(0, seconds, 0, values.shape[1]),
        )
        axis.set_yticks([])
    axes[0][0].set_xticks([])
    axes[1][0].set_xticks([0, round(seconds, 1)])
    axes[1][0].set_xlabel("seconds")
    recorded = sound_of(pair.original, spec) if pair.recorded is None else pair.recorded
    return {
        "name": pair.name,
        "picture": _picture(figure),
        "source": "original, phases guessed" if pair.recorded is None else "original, as recorded",
        "original": sound_uri(recorded, spec.sample_rate),
        # Cut to the length of the recording, which may be shorter than the window: otherwise silence would be played.
        "rebuilt": sound_uri(sound_of(pair.rebuilt, spec)[: len(recorded)], spec.sample_rate),
    }


def _map(worth: Worth) -> dict[str, Any] | None:
    """Points of the plane in the picture's units, coloured by label; None if there is no plane."""
    if worth.plane is None:
        return None
    frequent = [label for label, _ in Counter(label for label in worth.labels if label is not None).most_common()]
    colour = dict(zip(frequent, COLOURS, strict=False))
    legend = dict(colour)
    if len(frequent) > len(COLOURS):
        legend["other labels"] = GREY
    if frequent and None in worth.labels:
        legend["no label"] = GREY
    low, high = worth.plane.min(axis=0), worth.plane.max(axis=0)
    unit = (worth.plane - low) / np.maximum(high - low, 1e-12)
    places = EDGE + unit * (np.array(PLANE) - 2 * EDGE)
    points = [
        {
            "x": round(float(x), 1),
            "y": round(float(y), 1),
            "title": f"{name} [{label}]" if label else name,
            "colour": colour.get(label or "", GREY if frequent else COLOURS[0]),
        }
        for (x, y), name, label in zip(places, worth.names, worth.labels, strict=True)
    ]
    return {"points": points, "legend": legend, "method": evaluate.PLANE_METHOD}


def write(
    path: Path,
    manifest: Mapping[str, Any],
    *,
    history: Sequence[Mapping[str, float]],
    pairs: Sequence[Pair],
    worth: Worth | None = None,
) -> None:
    """Write the report of a model.

    Parameters
    ----------
    path : Path
    manifest : mapping
        The future content of model.json, without the digests of files.
    history : sequence of mapping
        One row per validation: step, nll, kl, mse, contrastive; nll, kl and mse also with the prefix ``validation_``.
    pairs : sequence of Pair
        Held-out windows with their reconstructions.
    worth : Worth or None
        None before the first evaluation.
    """
    import jinja2

    spec, metrics = FeatureSpec.model_validate(manifest["spec"]), manifest["metrics"]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    found = None if worth is None else worth.found
    probes = found["probes"] if found else None
    fidelity = found["latent"]["fidelity"] if found else None
    text = environment.from_string(TEMPLATE.read_text()).render(
        m=manifest,
        metrics=metrics,
        spec=manifest["spec"],
        best=min(history, key=lambda row: row["validation_negative_elbo"]),
        # Value of the contrastive term if a window's partner cannot be told from the rest of the batch.
        chance=math.log(manifest["settings"]["batch_size"] - 1) if manifest["settings"]["contrastive"] else None,
        curves=_curves(history),
        latent=_latent(metrics["kl_per_dim"], fidelity),
        fidelity_95=int(np.searchsorted(fidelity, 0.95)) + 1 if fidelity else None,
        pairs=[_pair(pair, spec) for pair in pairs],
        threshold=evaluate.ACTIVE_KL,
        found=found,
        measures=evaluate.MEASURES,
        best_of={key: max(row[key]["value"] for row in probes.values()) for key in evaluate.MEASURES} if probes else {},
        disturbances={k: v for k, v in evaluate.DISTURBANCES.items() if k in found["consistency"]["embedding"]}
        if found
        else {},
        map=_map(worth) if worth else None,
        neighbours=[
            [{"name": clip.name, "label": clip.label, "sound": sound_uri(clip.sound, spec.sample_rate)} for clip in row]
            for row in (worth.neighbours if worth else ())
        ],
    )
    artifact.write_text(path, text)
