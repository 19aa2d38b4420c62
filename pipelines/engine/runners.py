"""Runs of pipelines; the only place that turns the runner and options after ``--`` into Beam's options."""

import contextlib
import json
import logging
import os
import re
import shutil
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, cast

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, StandardOptions
from apache_beam.pipeline import PipelineVisitor
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from soundlake.model.errors import InputError, TryLaterError
from soundlake.pipelines.audio import isolation
from soundlake.pipelines.engine import flink, job_server, worker_boot
from soundlake.pipelines.engine.machine import cores
from soundlake.pipelines.engine.template import is_template
from soundlake.pipelines.lake.runs import HandedOver

# How long a worker of Spark or Flink may be idle between steps of its pipeline.
WORKER_MILLISECONDS = 300_000
# A soundlake error as Java repeats it, with the name of the step that Beam appends.
OUR_ERROR = r"soundlake\.model\.errors\.(InputError|TryLaterError): (.*?)(?: \[while running .*)?$"


@dataclass(frozen=True)
class Engine:
    """Where and how pipelines run.

    Attributes
    ----------
    options : apache_beam.options.pipeline_options.PipelineOptions
    threads : int
        Calls that a step runs side by side. In this process, where Beam itself runs one element after the other, one
        for each core by default; 1 on a runner that brings its own workers.
    local : bool
        Whether all workers are on this machine.
    cluster : job_server.Cluster or None
        The cluster, if a job server of Beam is between this process and the workers. The server is started unless the
        options name one.
    asked : tuple of str
        Options that Beam's Python side does not have. A job server has options of its own; once it runs, it is asked
        for them.
    template : bool
        Whether pipelines are written as templates for a service that runs them later: nobody waits for them.
    """

    options: Any
    threads: int = 1
    local: bool = True
    cluster: job_server.Cluster | None = None
    asked: tuple[str, ...] = ()
    template: bool = False


class _Options(PipelineOptions):
    """Beam's options with cached views: a view takes a millisecond, and building a pipeline asks for a thousand."""

    def view_as(self, cls: Any) -> Any:
        views: dict[Any, Any] = self.__dict__.setdefault("_views", {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        return views[cls]


def beam_options(arguments: Sequence[str], *, workers: int = 0) -> Engine:
    """The engine for some arguments: Beam's pipeline options, and how many calls run side by side.

    Parameters
    ----------
    arguments : sequence of str
        The arguments after ``--`` on the command line, such as ``--runner=DataflowRunner``. Without a runner the
        pipeline runs in this process.
    workers : int
        Calls side by side in this process; 0 for one per core.

    Raises
    ------
    InputError
        If an argument is no option of Beam, is one of its S3 options, or selects a mode that loses records.
    TryLaterError
        If a Flink cluster is named and does not answer.
    """
    flags = list(arguments)
    for argument in flags:
        if not argument.startswith("--"):
            raise InputError(
                f"unexpected argument {argument!r}; what follows `--` must be options of Beam, such as "
                "--runner=SparkRunner"
            )
    if "--direct_running_mode=multi_threading" in flags:
        # In this mode a timer in another thread empties the worker's buffers without a lock.
        raise InputError(
            "Beam's mode multi_threading loses records on large corpora: leave it out (--workers gives threads), "
            "or use --direct_running_mode=multi_processing"
        )
    if any(argument.startswith("--s3_") for argument in flags):
        # Beam's own S3 client reads the same variables. So does soundlake's access to lake and corpus, which would
        # ignore these options.
        raise InputError(
            "address and credentials of a bucket come from the environment (AWS_ENDPOINT_URL, AWS_REGION, "
            "AWS_ACCESS_KEY_ID …; docs/storage.md), not from Beam's --s3_ options: leave those out"
        )
    # The plain DirectRunner would first try to download another engine.
    flags = [flag.replace("--runner=DirectRunner", "--runner=FnApiRunner") for flag in flags]
    if not any(argument.split("=")[0] == "--runner" for argument in flags):
        flags += ["--runner=FnApiRunner"]
    local = "--runner=FnApiRunner" in flags
    threads = 1
    if local and not any(flag.startswith("--direct_") for flag in flags):
        flags += ["--direct_running_mode=in_memory", "--direct_num_workers=1"]
        threads = workers or cores()
    # Accept these options with a dash, the spelling of Spark's own programs.
    flags = [re.sub("^--(spark|flink)-master=", _master, argument) for argument in flags]
    cluster = next((c for name, c in job_server.CLUSTERS.items() if f"--runner={name}" in flags), None)
    if cluster is not None:
        flags = _with_workers(flags, cluster)
    if "--runner=FlinkRunner" in flags:
        flags = flink.with_defaults(flags)
    # From the local engine or a job server, an error comes back as an exception, so Beam need not log it as well.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL if local or cluster else logging.ERROR)
    # Dataflow's errors come back, too, as text; its client would also print the worker's traceback.
    logging.getLogger("apache_beam.runners.dataflow").setLevel(logging.CRITICAL)
    options = _Options(flags)
    unknown = tuple(sorted(set(flag.split("=")[0] for flag in flags) - _known_flags(options)))
    if unknown and cluster is None:
        raise _no_option(unknown[0])
    # For file access before the pipeline starts; workers set this themselves.
    FileSystems.set_options(options)
    return Engine(options, threads, local, cluster, unknown, is_template(flags))


def _no_option(name: str) -> InputError:
    return InputError(f"Beam has no option {name}; see the runner's page in Beam's documentation")


def _master(found: re.Match[str]) -> str:
    return {"spark": "--spark_master_url=", "flink": "--flink_master="}[found[1]]


def _with_workers(given: Sequence[str], cluster: job_server.Cluster) -> list[str]:
    """Add options so that the workers of a cluster run `soundlake` itself, unless the options start others.

    The paths of `soundlake` and of the Java classes are those of this machine: workers must have both there, too.
    """
    value = dict(argument.partition("=")[::2] for argument in given)
    added = []
    if not value.keys() & {f"--environment_{name}" for name in ("type", "config", "option", "options")}:
        program = os.path.join(sysconfig.get_path("scripts"), "soundlake")
        config = json.dumps({"command": program, "env": {worker_boot.WORKER: "1"}})
        added += ["--environment_type=PROCESS", f"--environment_config={config}"]
    # Without this option each step of a pipeline starts workers of its own.
    if "--environment_cache_millis" not in value:
        added.append(f"--environment_cache_millis={WORKER_MILLISECONDS}")
    if cluster.on_workers and "--job_endpoint" not in value and "--files_to_stage" not in value:
        # Beam needs at least one jar to stage. One is enough: workers load their own older classes before staged ones.
        added.append(f"--files_to_stage={job_server.smallest(cluster, value.get(f'--{cluster.jars}'))}")
    return [*given, *added]


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

    Beam's local engine processes one element after the other; its own threaded mode loses records.

    Parameters
    ----------
    work : callable
        Takes one element, returns its outputs.
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
        """Outputs of calls that have ended, until fewer than `below` calls are pending."""
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
    """Removes resource hints: a runner that does not choose machines starts another worker for each kind of hint."""

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
        If a worker raised anything else, or the runner ends in a state other than DONE.
    HandedOver
        If the pipeline was written as a template.
    """
    with _submitting(engine) as endpoint:
        pipeline, result = beam.Pipeline(options=engine.options), None
        try:
            build(pipeline)
            if engine.options.view_as(StandardOptions).runner != "DataflowRunner":
                pipeline.visit(_WithoutHints())
        except BaseException:
            # Beam removes this folder after a run, but not if the pipeline never ran.
            shutil.rmtree(pipeline.local_tempdir, ignore_errors=True)
            raise
        try:
            result = pipeline.run()
            state = result.wait_until_finish()
        except Exception as error:
            raise _worker_error(error, endpoint) from error
        except BaseException:
            if endpoint and result is not None:
                # A server that someone else started would go on with the job.
                with contextlib.suppress(Exception):
                    result.cancel()
            raise
        finally:
            # After an error or Ctrl-C, calls may still be at work, and the interpreter would wait for them at exit.
            _stop()
    if engine.template:
        raise HandedOver
    if str(state) != "DONE":
        raise RuntimeError(f"the pipeline ended as {state}: see the runner's own log")


@contextlib.contextmanager
def _submitting(engine: Engine) -> Iterator[str | None]:
    """Give the address of a cluster's job server, and set it in Beam's options meanwhile; None without a cluster."""
    options = engine.options.view_as(PortableOptions)
    named = options.job_endpoint
    if engine.cluster is None:
        yield None
        return
    if named:
        job_server.find(named)
    endpoint = named or job_server.endpoint(engine.cluster, engine.options)
    if engine.asked:
        unknown = sorted(set(engine.asked) - job_server.options_of(endpoint))
        if unknown:
            raise _no_option(unknown[0])
    options.job_endpoint = endpoint
    # Beam would log the job server's messages line by line, and the last of them comes back as an exception anyway.
    root_logger = logging.getLogger()
    root_logger.addFilter(_not_of_the_server)
    try:
        yield endpoint
    finally:
        root_logger.removeFilter(_not_of_the_server)
        options.job_endpoint = named


def _not_of_the_server(record: logging.LogRecord) -> bool:
    return record.funcName != "read_messages"


def _stop() -> None:
    stopped = bool(_pools)
    while _pools:
        _pools.pop().shutdown(wait=False, cancel_futures=True)
    if stopped:
        isolation.stop()


def _worker_error(error: Exception, endpoint: str | None = None) -> Exception:
    """The error to raise for a failed pipeline: the soundlake error that a worker raised, if there is one.

    Beam passes on a worker's error as itself, with the name of the step added, or as text after the worker's traceback.

    Parameters
    ----------
    error : Exception
    endpoint : str or None
        Of the job server, which also passes on errors of the cluster; None without one.
    """
    if isinstance(error, InputError | TryLaterError):
        return type(error)(re.sub(r" \[while running .*\]$", "", str(error)))
    text = str(error)
    matches = re.findall(OUR_ERROR, text, re.MULTILINE)
    if matches:
        kind, message = matches[-1]
        return (InputError if kind == "InputError" else TryLaterError)(message)
    if endpoint is None or "Traceback (most recent call last)" in text:
        # For a job that was cancelled, Dataflow's client gives no reason.
        ending, no_reason, _ = text.partition(", Error:\nNone")
        return RuntimeError(f"{ending}: see the job's own log") if no_reason else error
    missing = re.search(r'Cannot run program "([^"]*)"', text)
    if missing:
        return InputError(
            f"workers of the cluster have no {missing[1]}: install soundlake there at the same path, or set "
            "--environment_type and --environment_config"
        )
    return TryLaterError(
        job_server.death(endpoint)
        or f"the cluster gave up: {job_server.telling(text)}; finished work is kept, run the same command to continue"
    )
