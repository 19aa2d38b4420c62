"""The training loop: steps, validations, checkpoints, early stop; it runs identically on each of several hosts.

A run that is killed and started again ends with the same weights.
"""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from soundlake.model import durable
from soundlake.model.errors import InputError
from soundlake.model.judging import evaluate
from soundlake.model.reports import Report
from soundlake.model.training.hosts import Hosts
from soundlake.model.training.trainer import Trainer

log = logging.getLogger(__name__)

# A training has diverged, and will not recover, if its validation error exceeds the least one so far by this factor.
DIVERGED = 4.0
# Figures of a training step: −log p(x|z), KL, mean square error, contrastive term.
TERMS = ("nll", "kl", "mse", "contrastive")


class _Stop:
    """Records a request to stop (Ctrl-C, or a scheduler's SIGTERM)."""

    asked = False

    def ask(self, *_: Any) -> None:
        self.asked = True


@contextmanager
def _stopping() -> Iterator[_Stop]:
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _own_checkpoints(folder: Path) -> str:
    """The path of a checkpoint folder, after a check that its index file names no checkpoint outside it.

    TensorFlow reads checkpoints, and deletes the oldest, at the paths in a text file of the folder.

    Raises
    ------
    InputError
        If that file names a checkpoint outside the folder.
    """
    index = tf.train.get_checkpoint_state(str(folder))
    for path in [] if index is None else [index.model_checkpoint_path, *index.all_model_checkpoint_paths]:
        if os.path.dirname(os.path.abspath(path)) != os.path.abspath(folder):
            raise InputError(
                f"{folder / 'checkpoint'} names a checkpoint outside its folder ({path[:200]}): do not trust "
                "it; move the folder away"
            )
    return str(folder)


class Loop:
    """Steps, validations, checkpoints, and their state, which a resumed run restores."""

    def __init__(
        self, trainer: Trainer, directory: Path, here: Hosts, *, report: Report, saved: Callable[[Path], None]
    ) -> None:
        self.trainer, self.directory, self.here, self.report, self.saved = trainer, directory, here, report, saved
        self.history: list[dict[str, float]] = []
        self.best, self.best_step, self.waited, self.reason = float("inf"), 0, 0, ""
        self.seconds_before, self.sums = 0.0, np.zeros(len(TERMS))
        self._state = tf.Variable("", dtype=tf.string)
        with trainer.strategy.scope():
            checkpoint = tf.train.Checkpoint(model=trainer.model, optimizer=trainer.optimizer, state=self._state)
        newest, best = (_own_checkpoints(directory / name) for name in ("checkpoints", "checkpoints/best"))
        self._newest = tf.train.CheckpointManager(checkpoint, newest, max_to_keep=2, checkpoint_name="step")
        # Both managers save model and optimizer: a restore of weights alone would warn in a resumed run.
        self._best = tf.train.CheckpointManager(checkpoint, best, max_to_keep=1, checkpoint_name="best")
        latest = self._newest.latest_checkpoint if here.is_chief else None
        if latest:
            checkpoint.restore(latest).assert_existing_objects_matched()
        # All hosts start from the state of the chief, whether or not it comes from a checkpoint.
        self._share()
        if state := json.loads(here.from_chief(self._state.numpy()) or "{}"):
            self.history, self.best, self.best_step = state["history"], state["best"], state["best_step"]
            self.waited, self.reason, self.seconds_before = state["waited"], state["reason"], state["seconds"]
            self.sums = np.asarray(state["sums"])
            here.kept_step = self.step
            log.info("resumed at step %d", self.step)
        self._kept = checkpoint
        self._started = time.monotonic()

    @property
    def step(self) -> int:
        """Number of completed steps."""
        return int(self.trainer.optimizer.iterations.numpy())

    def _share(self) -> None:
        self.here.share([*self.trainer.model.variables, *self.trainer.optimizer.variables])

    def _save(self, manager: Any) -> None:
        state = {"history": self.history, "best": self.best, "best_step": self.best_step, "waited": self.waited}
        state |= {"sums": self.sums.tolist(), "reason": self.reason}
        state["seconds"] = self.seconds_before + time.monotonic() - self._started
        self._state.assign(json.dumps(state))
        if self.here.is_chief:
            path = Path(manager.save(checkpoint_number=self.step))
            # TensorFlow does not sync the new checkpoint, and has just removed an older one.
            for file in (*path.parent.glob(f"{path.name}.*"), path.parent / "checkpoint", path.parent):
                durable.sync(file)
        self.here.kept_step = self.step

    def run(self, training: Any, validation: Any) -> None:
        """Train until the step budget is spent or nothing improves, then restore the best weights."""
        settings = self.trainer.settings
        first, started = self.step, time.monotonic()
        self.report("compiling the training step")
        with _stopping() as stop:
            writer = tf.summary.create_noop_writer()
            if self.here.is_chief:
                writer = tf.summary.create_file_writer(str(self.directory / "logs"))
            batches = self.trainer.distributed(training)
            while not self.reason and self.step < settings.max_steps:
                # All hosts stop at the same step: the sum over hosts shows whether any of them was asked to stop.
                asked = tf.constant(float(stop.asked))
                *terms, asked = self.trainer.train_step(next(batches), asked).numpy()
                step = self.step
                if not np.isfinite(terms).all():
                    described = ", ".join(f"{name} {value:.4g}" for name, value in zip(TERMS, terms, strict=True))
                    raise self._diverged(f"step {step} gave {described}")
                self.sums += terms
                steps_since = (step - 1) % settings.evaluate_every + 1
                self._advance(self.sums / steps_since, first=first, started=started)
                if step % settings.evaluate_every == 0 or step == settings.max_steps:
                    self._validate(self.sums / steps_since, validation, writer)
                    self.sums = np.zeros(len(TERMS))
                    self._save(self._newest)
                    self.saved(self.directory)
                if asked:
                    self._save(self._newest)
                    self.saved(self.directory)
                    raise KeyboardInterrupt
        writer.close()
        if self.here.is_chief:
            self._kept.restore(self._best.latest_checkpoint).assert_existing_objects_matched()
        self._share()  # `step` is now the step of the best weights

    def _validate(self, training: Any, validation: Any, writer: Any) -> None:
        """Measure, save the weights if they are the best so far, and decide whether to stop."""
        step, settings = self.step, self.trainer.settings
        self.report("training", step, settings.max_steps, f"step {step} of {settings.max_steps}, validating")
        # The learned variance follows the errors of training and falls with them. On held-out recordings it would soon
        # make small errors count as large ones, and training would seem to be over.
        figures = self.trainer.evaluate(validation, calibrated=True)
        row = dict(zip(TERMS, map(float, training), strict=True)) | {"step": step}
        row |= {f"validation_{name}": figures[name] for name in ("nll", "kl", "mse", "negative_elbo")}
        row["active_dimensions"] = evaluate.active_dimensions(figures["kl_per_dim"])
        self.history.append(row)
        with writer.as_default(step=step):
            for name, value in row.items():
                tf.summary.scalar(name, value)
            for number, kl in enumerate(figures["kl_per_dim"]):
                tf.summary.scalar(f"kl_per_dim/{number:03d}", kl)
        least = min(earlier["validation_mse"] for earlier in self.history)
        if not np.isfinite(figures["negative_elbo"]) or figures["mse"] > DIVERGED * least:
            raise self._diverged(
                f"after step {step} the validation error is {figures['mse']:.3g}, once it was {least:.3g}"
            )
        if figures["negative_elbo"] < self.best:
            self.best, self.best_step, self.waited = figures["negative_elbo"], step, 0
            self._save(self._best)
        else:
            self.waited += 1
        if self.waited >= settings.patience:
            self.reason = "no better validation ELBO"
        elif step >= settings.max_steps:
            self.reason = "step budget"

    def _diverged(self, what: str) -> InputError:
        folder = self.directory / "checkpoints" / "best"
        kept = (
            f"the last good weights, of step {self.best_step}, are in {folder}"
            if self.best_step
            else "no good weights were saved"
        )
        return InputError(f"the training diverged: {what}; {kept}; use a lower --learning-rate")

    def _advance(self, terms: Any, *, first: int, started: float) -> None:
        """Report the progress, and the mean loss since the last validation."""
        settings, step = self.trainer.settings, self.step
        hours = settings.batch_size * self.trainer.spec.window_seconds / 3600
        rate = (step - first) * hours / max(time.monotonic() - started, 1e-3)
        note = f"step {step} of {settings.max_steps}, loss {terms[0] + terms[1]:.0f} nats, {rate:.2f} audio-hours/s"
        if self.history:
            note += f", validation error {self.history[-1]['validation_mse']:.3f}"
        self.report("training", step, settings.max_steps, note)
