"""Progress of a long step: the caller passes a function, and the step calls it with its progress.

`model/` does not depend on a terminal; `pipelines.cli.display` writes to one.
"""

from typing import Protocol


class Report(Protocol):
    """Receives the progress of a step, in words for the user."""

    def __call__(self, name: str, done: float = 0.0, total: float | None = None, note: str = "") -> None:
        """Receive the progress so far.

        Parameters
        ----------
        name : str
            What is being done; a new name begins a new stage.
        done, total : float
            How much is done, and how much there is to do in all; `total` is None where it is not known.
        note : str
            A detail, such as ``"step 10 of 100"``.
        """


def unheard(name: str, done: float = 0.0, total: float | None = None, note: str = "") -> None:
    """Ignore the progress: the default `Report`."""
