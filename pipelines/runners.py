"""The one place that turns a runner and its options, given after ``--``, into Beam's."""

import logging
import os
import re
from collections.abc import Sequence
from typing import Any, cast

from model.errors import InputError, TryLaterError


def beam_options(arguments: Sequence[str], *, workers: int = 0) -> Any:
    """Beam's pipeline options.

    Parameters
    ----------
    arguments : sequence of str
        What followed ``--`` on the command line, such as ``--runner=DataflowRunner``. Without a runner the pipeline
        runs in this process.
    workers : int
        Threads of the local runner; 0 for one a core.

    Returns
    -------
    apache_beam.options.pipeline_options.PipelineOptions

    Raises
    ------
    InputError
        If an argument is none that Beam knows.
    """
    from apache_beam.options.pipeline_options import PipelineOptions

    given = list(arguments)
    for argument in given:
        if not argument.startswith("--"):
            raise InputError(
                f"what follows `--` are Beam's options, such as --runner=SparkRunner; {argument!r} is none"
            )
    # Plain DirectRunner would first try to download another engine.
    if not any(argument.split("=")[0] == "--runner" for argument in given):
        given += ["--runner=FnApiRunner"]
    if any(argument in ("--runner=FnApiRunner", "--runner=DirectRunner") for argument in given):
        given = [a.replace("--runner=DirectRunner", "--runner=FnApiRunner") for a in given]
        # Decoding, resampling and FFT leave the interpreter's lock: threads scale as processes do, and start at once.
        if not any(argument.startswith("--direct_running_mode") for argument in given):
            given += ["--direct_running_mode=multi_threading"]
        if not any(argument.startswith("--direct_num_workers") for argument in given):
            given += [f"--direct_num_workers={workers or len(os.sched_getaffinity(0))}"]
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    options = PipelineOptions(given)
    unknown = sorted(set(a.split("=")[0] for a in given) - _known_flags(options))
    if unknown:
        raise InputError(f"Beam has no option {unknown[0]}; see the runner's page in Beam's documentation")
    return options


def _known_flags(options: Any) -> set[str]:
    """Every flag that any of Beam's option classes declares."""
    import argparse

    from apache_beam.options.pipeline_options import PipelineOptions

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for options_class in PipelineOptions.__subclasses__():
        options_class._add_argparse_args(cast(Any, parser))
    return set(parser._option_string_actions)


def run_pipeline(build: Any, options: Any) -> None:
    """Build and run a pipeline to its end.

    Parameters
    ----------
    build : callable
        Takes the pipeline and applies the transforms.
    options : PipelineOptions

    Raises
    ------
    InputError, TryLaterError
        If a worker raised one.
    RuntimeError
        If a worker raised anything else, or the runner ends in another state than DONE.
    """
    import apache_beam as beam

    pipeline = beam.Pipeline(options=options)
    build(pipeline)
    try:
        state = pipeline.run().wait_until_finish()
    except Exception as error:
        raise _worker_error(error) from error
    if str(state) != "DONE":
        raise RuntimeError(f"the pipeline ended as {state}: see the runner's own log")


def _worker_error(error: Exception) -> Exception:
    """What a worker raised: runners hand it on as text, with the traceback of the worker before it."""
    found = re.findall(
        r"model\.errors\.(InputError|TryLaterError): (.*?)(?: \[while running .*)?$", str(error), re.MULTILINE
    )
    if not found:
        return error
    kind, message = found[-1]
    return (InputError if kind == "InputError" else TryLaterError)(message)
