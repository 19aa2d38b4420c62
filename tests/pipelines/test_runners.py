"""Options after `--`: the local engine by default, Beam's own otherwise, and a clear word on a wrong one."""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from model.errors import InputError, TryLaterError
from pipelines.runners import Concurrently, _worker_error, beam_options, run_pipeline


@pytest.mark.parametrize("given", [[], ["--runner=DirectRunner"], ["--runner=FnApiRunner"]])
def test_local_by_default(given: list[str]) -> None:
    engine = beam_options(given, workers=3)
    assert engine.options.view_as(StandardOptions).runner == "FnApiRunner"
    direct = engine.options.view_as(DirectOptions)
    assert (direct.direct_running_mode, direct.direct_num_workers) == ("in_memory", 1)
    assert engine.threads == 3


def test_what_is_given_stays() -> None:
    engine = beam_options(["--direct_num_workers=2", "--direct_running_mode=multi_processing"])
    direct = engine.options.view_as(DirectOptions)
    assert (direct.direct_running_mode, direct.direct_num_workers) == ("multi_processing", 2)
    assert engine.threads == 1
    portable = beam_options(["--runner=PortableRunner", "--job_endpoint=localhost:8099"])
    assert portable.options.view_as(StandardOptions).runner == "PortableRunner"


def test_the_mode_that_loses_records_is_refused() -> None:
    with pytest.raises(InputError, match="multi_threading loses records"):
        beam_options(["--direct_running_mode=multi_threading", "--direct_num_workers=2"])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_concurrently_gives_what_a_flat_map_gives(threads: int) -> None:
    with TestPipeline(runner="FnApiRunner") as pipeline:
        out = (
            pipeline
            | beam.Create(range(37))
            | beam.ParDo(Concurrently(_each_and_odd, threads)).with_outputs("odd", main="all")
        )
        assert_that(out.all, equal_to([i // 2 for i in range(74)]), label="all")
        assert_that(out.odd, equal_to(list(range(1, 37, 2))), label="odd")


def _each_and_odd(number: int) -> Iterator[Any]:
    yield number
    yield number
    if number % 2:
        yield beam.pvalue.TaggedOutput("odd", number)


@pytest.mark.parametrize("given", ["--no-such-option=1", "folder", "-x"])
def test_a_wrong_option_is_named(given: str) -> None:
    with pytest.raises(InputError, match=given.split("=")[0]):
        beam_options([given])


@pytest.mark.parametrize("kind", [InputError, TryLaterError])
def test_a_workers_error_is_itself_again(kind: type[Exception]) -> None:
    def fail(_: int) -> None:
        raise kind("the shard /x/y is damaged: delete it")

    with pytest.raises(kind, match=r"^the shard /x/y is damaged: delete it$"):
        run_pipeline(lambda p: p | beam.Create([1]) | beam.Map(fail), beam_options([], workers=1))


def test_any_other_error_stays_what_it_is() -> None:
    error = RuntimeError("ValueError: x")
    assert _worker_error(error) is error
