"""The one place that turns a runner and its options, given after ``--``, into Beam's."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, cast

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.pipeline import PipelineVisitor
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from model.errors import InputError, TryLaterError
from pipelines import isolation
from pipelines.lake import HandedOver
from pipelines.options import is_template


@dataclass(frozen=True)
class Engine:
    """Where pipelines run.

    Attributes
    ----------
    options : apache_beam.options.pipeline_options.PipelineOptions
    threads : int
        Calls that a step runs side by side: one a core in this process, where Beam itself runs one element after the
        other; 1 on a runner that brings its own workers.
    local : bool
        Whether all of it is on this machine.
    template : bool
        Whether pipelines are written down for a service that runs them later: nobody waits for them.
    """

    options: Any
    threads: int = 1
    local: bool = True
    template: bool = False


class _Options(PipelineOptions):
    """Beam's options with each view made once: one takes a millisecond, and building a pipeline asks for a thousand."""

    def view_as(self, cls: Any) -> Any:
        views: dict[Any, Any] = self.__dict__.setdefault("_views", {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        return views[cls]


def beam_options(arguments: Sequence[str], *, workers: int = 0) -> Engine:
    """Beam's pipeline options, and how many calls run side by side.

    Parameters
    ----------
    arguments : sequence of str
        What followed ``--`` on the command line, such as ``--runner=DataflowRunner``. Without a runner the pipeline
        runs in this process.
    workers : int
        Calls side by side in this process; 0 for one a core.

    Raises
    ------
    InputError
        If an argument is none that Beam knows, or a mode that loses records.
    """
    given = list(arguments)
    for argument in given:
        if not argument.startswith("--"):
            raise InputError(
                f"what follows `--` are Beam's options, such as --runner=SparkRunner; {argument!r} is none"
            )
    if "--direct_running_mode=multi_threading" in given:
        # Its embedded worker empties its buffers by a clock, in another thread, without a lock.
        raise InputError(
            "Beam's mode multi_threading loses records on large corpora: leave it out (--workers gives threads), "
            "or use --direct_running_mode=multi_processing"
        )
    # Plain DirectRunner would first try to download another engine.
    given = [a.replace("--runner=DirectRunner", "--runner=FnApiRunner") for a in given]
    if not any(argument.split("=")[0] == "--runner" for argument in given):
        given += ["--runner=FnApiRunner"]
    local = "--runner=FnApiRunner" in given
    threads = 1
    if local and not any(a.startswith("--direct_") for a in given):
        given += ["--direct_running_mode=in_memory", "--direct_num_workers=1"]
        threads = workers or len(os.sched_getaffinity(0))
    # In this process an error comes back as an exception, and is told once.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL if local else logging.ERROR)
    # So does Dataflow's, as text; its client would print the worker's traceback besides.
    logging.getLogger("apache_beam.runners.dataflow").setLevel(logging.CRITICAL)
    options = _Options(given)
    unknown = sorted(set(a.split("=")[0] for a in given) - _known_flags(options))
    if unknown:
        raise InputError(f"Beam has no option {unknown[0]}; see the runner's page in Beam's documentation")
    # For what is looked at before the pipeline starts; workers do this by themselves.
    FileSystems.set_options(options)
    return Engine(options, threads, local, template=is_template(given))


def keep_freed_memory(keep: bool) -> None:
    """Whether freed blocks of a megabyte and more stay with this process, where the C library can be told.

    The local engine moves all that is shuffled in one block a step, and several copies of it: kept, they add up. The
    batches of a model come and go a thousand times: given back, each costs a page fault every 4 kB.

    Parameters
    ----------
    keep : bool
    """
    import ctypes

    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(m_mmap_threshold, 32 << 20 if keep else 1 << 20)
        mallopt(m_trim_threshold, 512 << 20 if keep else 1 << 17)
        mallopt(m_arena_max, 2)


def _known_flags(options: Any) -> set[str]:
    """Every flag that any of Beam's option classes declares."""
    import argparse

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for options_class in PipelineOptions.__subclasses__():
        options_class._add_argparse_args(cast(Any, parser))
    return set(parser._option_string_actions)


_pools: list[ThreadPoolExecutor] = []


class Concurrently(beam.DoFn):
    """FlatMap whose calls run side by side in threads, for work that waits for other processes.

    Beam's local engine hands out one element after the other; its own threaded mode loses records.

    Parameters
    ----------
    work : callable
        Of one element, gives the outputs.
    threads : int
    """

    def __init__(
        self,
        work: Callable[[Any], Iterable[Any]],
        threads: int,
        *,
        emitted: Callable[[Any], None] = lambda output: None,
    ) -> None:
        self.work, self.threads, self.emitted = work, threads, emitted

    def start_bundle(self) -> None:
        self.pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None
        self.pending: set[Future[list[Any]]] = set()
        if self.pool is not None:
            _pools.append(self.pool)

    def _run(self, element: Any) -> list[Any]:
        return list(self.work(element))

    def _taken(self, *, below: int) -> Iterator[Any]:
        """Outputs of what has ended, until fewer than `below` calls are pending."""
        while len(self.pending) >= max(1, below):
            ended, self.pending = wait(self.pending, return_when=FIRST_COMPLETED)
            for future in ended:
                yield from future.result()

    def process(self, element: Any) -> Iterator[Any]:
        if self.pool is None:
            yield from self.work(element)
            return
        self.pending.add(self.pool.submit(self._run, element))
        yield from self._taken(below=2 * self.threads)

    def finish_bundle(self) -> Iterator[Any]:
        for output in self._taken(below=1):
            tag = output.tag if isinstance(output, beam.pvalue.TaggedOutput) else None
            value = WindowedValue(
                output if tag is None else output.value, GlobalWindow().max_timestamp(), (GlobalWindow(),)
            )
            yield value if tag is None else beam.pvalue.TaggedOutput(tag, value)
        if self.pool is not None:
            self.pool.shutdown()
            _pools.remove(self.pool)


class _WithoutHints(PipelineVisitor):
    """Takes resource hints off: for each kind of them a runner that chooses no machines starts another worker."""

    def enter_composite_transform(self, transform_node: Any) -> None:
        transform_node.resource_hints = {}

    def visit_transform(self, transform_node: Any) -> None:
        transform_node.resource_hints = {}


def run_pipeline(build: Callable[[beam.Pipeline], None], engine: Engine) -> None:
    """Build and run a pipeline to its end.

    Parameters
    ----------
    build : callable
        Takes the pipeline and applies the transforms.
    engine : Engine

    Raises
    ------
    InputError, TryLaterError
        If a worker raised one.
    RuntimeError
        If a worker raised anything else, or the runner ends in another state than DONE.
    HandedOver
        If the pipeline is a template now.
    """
    pipeline = beam.Pipeline(options=engine.options)
    build(pipeline)
    if engine.options.view_as(StandardOptions).runner != "DataflowRunner":
        pipeline.visit(_WithoutHints())
    try:
        state = pipeline.run().wait_until_finish()
    except Exception as error:
        raise _worker_error(error) from error
    finally:
        # After an error or Ctrl-C calls may still be at work, and the interpreter would wait for them at its exit.
        _stop()
    if engine.template:
        raise HandedOver
    if str(state) != "DONE":
        raise RuntimeError(f"the pipeline ended as {state}: see the runner's own log")


def _stop() -> None:
    stopped = bool(_pools)
    while _pools:
        _pools.pop().shutdown(wait=False, cancel_futures=True)
    if stopped:
        isolation.stop()


def _worker_error(error: Exception) -> Exception:
    """What a worker raised: itself with the step's name added, or as text after the traceback of the worker."""
    if isinstance(error, InputError | TryLaterError):
        return type(error)(re.sub(r" \[while running .*\]$", "", str(error)))
    found = re.findall(
        r"model\.errors\.(InputError|TryLaterError): (.*?)(?: \[while running .*)?$", str(error), re.MULTILINE
    )
    if not found:
        # Of a job that was cancelled, Dataflow's client has no more to say.
        told, nothing, _ = str(error).partition(", Error:\nNone")
        return RuntimeError(f"{told}: see the job's own log") if nothing else error
    kind, message = found[-1]
    return (InputError if kind == "InputError" else TryLaterError)(message)
