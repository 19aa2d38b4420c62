"""What the commands say, in words."""

from collections.abc import Callable
from typing import Any

from pipelines.audio import REASONS


def files(totals: dict[str, Any]) -> str:
    """One line on what extract did."""
    new = totals["done"] + totals["rejected"] + totals["gone"]
    left = f", {totals['left_out']} left out by name" if totals["left_out"] else ""
    gone = f", {totals['gone']} gone" if totals["gone"] else ""
    if not new:
        return f"nothing to do: all {totals['listed']} files are as they were{left}"
    return (
        f"{totals['listed']} files: {totals['unchanged']} unchanged, {totals['done']} done, "
        f"{totals['rejected']} rejected{gone}{left}"
    )


def rejects(summary: dict[str, Any], say: Callable[[str], None]) -> None:
    """Say a line for each reason of rejection, the most frequent first, with an example."""
    for reason, found in summary["rejects"].items():
        say(f"    {found['count']:>6}  {reason}: {REASONS.get(reason, '')} Such as {shown(found['example'])}")


def shown(name: str) -> str:
    """A name on one line, whatever is in it."""
    return name if name.isprintable() else repr(name)


def elbo(metrics: dict[str, Any]) -> str:
    """A model's loss on held-out windows, in words."""
    found = metrics["validation"]
    return (
        f"validation loss {found['negative_elbo']:.0f} nats a window "
        f"(−log p(x|z) {found['nll']:.0f} + KL {found['kl']:.1f}), "
        f"mean square error {found['mse']:.3f}"
    )
