"""report.html: what a training gave, in one self-contained file that opens from disk."""

import base64
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TEMPLATE = Path(__file__).with_name("report.html.j2")

Array = npt.NDArray[np.float32]


def _picture(figure: Any) -> str:
    """A figure as a data URI."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode()


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    # The object interface, without pyplot: no global state, no display.
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


def _latent(kl_per_dim: Sequence[float], threshold: float) -> str:
    figure, axes = _figure(1, 1, (10, 2.6))
    axis = axes[0][0]
    axis.bar(range(len(kl_per_dim)), sorted(kl_per_dim, reverse=True), color="#4c78a8")
    axis.axhline(threshold, color="#e45756", linewidth=1)
    axis.set_yscale("symlog", linthresh=threshold)
    axis.set_xlabel("latent dimension, by KL")
    axis.set_ylabel("KL, nats")
    return _picture(figure)


def _pairs(originals: Array, reconstructions: Array, seconds: float) -> str:
    count = len(originals)
    figure, axes = _figure(2, count, (2.2 * count + 0.6, 4.4))
    for i in range(count):
        low, high = float(originals[i].min()), float(originals[i].max())
        for row, values in ((0, originals[i]), (1, reconstructions[i])):
            axis = axes[row][i]
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
            axis.set_xticks([0, round(seconds, 1)])
        axes[0][i].set_xticks([])
    axes[0][0].set_ylabel("original, mel bands")
    axes[1][0].set_ylabel("reconstruction")
    axes[1][0].set_xlabel("seconds")
    return _picture(figure)


def write(
    path: Path,
    manifest: Mapping[str, Any],
    *,
    history: Sequence[Mapping[str, float]],
    pairs: tuple[Array, Array],
) -> None:
    """Write the report of a model.

    Parameters
    ----------
    path : Path
    manifest : mapping
        What model.json will hold, without the digests of files.
    history : sequence of mapping
        A row a validation: step, nll, kl, mse and the same with ``validation_`` before.
    pairs : (ndarray, ndarray), float32, each shape (n, window_frames, n_mels)
        Held-out windows and their reconstructions, nats.
    """
    import jinja2

    from model.vae import ACTIVE_KL

    spec, metrics = manifest["spec"], manifest["metrics"]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    text = environment.from_string(TEMPLATE.read_text()).render(
        m=manifest,
        metrics=metrics,
        spec=spec,
        best=min(history, key=lambda row: row["validation_negative_elbo"]),
        curves=_curves(history),
        latent=_latent(metrics["kl_per_dim"], ACTIVE_KL),
        pairs=_pairs(*pairs, spec["window_frames"] * spec["hop_length"] / spec["sample_rate"]),
        threshold=ACTIVE_KL,
    )
    handle, part = tempfile.mkstemp(prefix=".part-", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(part, 0o644)
    os.replace(part, path)
