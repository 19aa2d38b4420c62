"""Options after `--`: the local engine by default, Beam's own otherwise, and a clear word on a wrong one."""

import pytest
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions

from model.errors import InputError, TryLaterError
from pipelines.runners import _worker_error, beam_options, run_pipeline


@pytest.mark.parametrize("given", [[], ["--runner=DirectRunner"], ["--runner=FnApiRunner"]])
def test_local_by_default(given: list[str]) -> None:
    options = beam_options(given, workers=3)
    assert options.view_as(StandardOptions).runner == "FnApiRunner"
    direct = options.view_as(DirectOptions)
    assert (direct.direct_running_mode, direct.direct_num_workers) == ("multi_threading", 3)


def test_what_is_given_stays() -> None:
    options = beam_options(["--direct_num_workers=1", "--direct_running_mode=in_memory"])
    direct = options.view_as(DirectOptions)
    assert (direct.direct_running_mode, direct.direct_num_workers) == ("in_memory", 1)
    portable = beam_options(["--runner=PortableRunner", "--job_endpoint=localhost:8099"])
    assert portable.view_as(StandardOptions).runner == "PortableRunner"


@pytest.mark.parametrize("given", ["--no-such-option=1", "folder", "-x"])
def test_a_wrong_option_is_named(given: str) -> None:
    with pytest.raises(InputError, match=given.split("=")[0]):
        beam_options([given])


@pytest.mark.parametrize("kind", [InputError, TryLaterError])
def test_a_workers_error_is_itself_again(kind: type[Exception]) -> None:
    import apache_beam as beam

    def fail(_: int) -> None:
        raise kind("the shard /x/y is damaged: delete it")

    with pytest.raises(kind, match=r"^the shard /x/y is damaged: delete it$"):
        run_pipeline(lambda p: p | beam.Create([1]) | beam.Map(fail), beam_options([], workers=1))


def test_any_other_error_stays_what_it_is() -> None:
    error = RuntimeError("ValueError: x")
    assert _worker_error(error) is error
