"""A line on stderr that shows a pipeline at work: what it has written so far, by looking at the lake."""

import contextlib
import sys
import threading
from collections.abc import Iterator

from pipelines.lake import Lake


@contextlib.contextmanager
def watching(lake: Lake, folder: str, *, verb: str, what: str) -> Iterator[None]:
    """Show how many files of `folder` have come since the block began; on a terminal only.

    It looks at the lake and asks no runner, so it tells the same of a pipeline in this process and of one on a cluster.
    """
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    over = threading.Event()
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(f"{verb} …", total=None)
        before = len(lake.names(folder))

        def look() -> None:
            while not over.wait(1.0):
                with contextlib.suppress(OSError):
                    bar.update(task, description=f"{verb}: {len(lake.names(folder)) - before} {what} written")

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
