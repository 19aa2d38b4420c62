"""How far a long step is: whoever calls it passes a function that is told.

`model/` knows no terminal; `pipelines.cli.display` has one.
"""

from typing import Protocol


class Report(Protocol):
    """Is told what is being done, in the words of a user, and how far it is."""

    def __call__(self, name: str, done: float = 0.0, total: float | None = None, note: str = "") -> None:
        """Take note.

        Parameters
        ----------
        name : str
            What is being done; another name than before begins another stage.
        done, total : float
            How much is done, and how much there is to do; None where nobody knows.
        note : str
            More about it, such as ``"step 10 of 100"``.
        """


def unheard(name: str, done: float = 0.0, total: float | None = None, note: str = "") -> None:
    """Nobody listens."""
