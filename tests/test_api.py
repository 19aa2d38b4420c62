"""The public interface: `import soundlake`, its lake, and the examples of its docstrings."""

import doctest
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soundlake
from soundlake.pipelines.api.results import Result
from soundlake.pipelines.cli.program import main
from tests.conftest import Made


def test_import_loads_nothing_heavy() -> None:
    program = (
        "import sys, soundlake; dir(soundlake); soundlake.SoundlakeError; soundlake.__version__; "
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = ("tensorflow", "keras", "apache_beam", "librosa", "typer", "lance", "pyarrow", "numpy", "scipy")
    assert not [name for name in heavy if repr(name) in done.stdout]


def test_every_name_is_there() -> None:
    for name in soundlake.__all__:
        assert getattr(soundlake, name) is not None
    assert set(soundlake.__all__) == set(dir(soundlake))
    with pytest.raises(AttributeError, match="no attribute 'laek'"):
        _ = soundlake.laek  # type: ignore[attr-defined]


def test_the_errors_have_one_root() -> None:
    for error in (soundlake.InputError, soundlake.TryLaterError, soundlake.HeldError, soundlake.Rejected):
        assert issubclass(error, soundlake.SoundlakeError)


def examples() -> list[doctest.DocTest]:
    """Examples of the class and its methods, in the order of the source."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = finder.find(soundlake.Lake, "Lake") + finder.find(soundlake.load_audio, "load_audio")
    # The class says how a lake is made; the others go on with it.
    return sorted((test for test in found if test.examples), key=lambda test: (test.name == "load_audio", test.lineno))


def test_examples_of_the_docstrings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each method has one, they run one after the other on one lake, and nothing is printed."""
    assert main(["synth", str(tmp_path / "audio"), "--recordings", "16"]) == 0
    tests = examples()
    methods = {name for name in vars(soundlake.Lake) if not name.startswith("_")} - {"root"}
    assert {test.name.removeprefix("Lake.") for test in tests} >= methods
    capsys.readouterr()
    shared: dict[str, Any] = {"soundlake": soundlake, "folder": tmp_path}
    runner = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST)
    said: list[str] = []
    for test in tests:
        test.globs = shared
        result = runner.run(test, out=said.append, clear_globs=False)
        assert not result.failed, "".join(said)
    assert capsys.readouterr().out == ""


def test_results_are_what_json_says(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    lake = soundlake.Lake(made.lake.root)
    for command, result in (("status", lake.status()), ("encode", lake.encode())):
        assert main([command, "--lake", lake.root, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(result.to_dict()))
    with pytest.raises(TypeError, match="unexpected keyword"):
        type(result).of({**result.to_dict(), "more": 1})
    assert isinstance(result, Result)


def test_hits(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    lake = soundlake.Lake(made.lake.root)
    clip = min(made.audio.glob("bird/*"))
    hits = lake.search(clip, start=0.5, end=2.5, k=4)
    assert main(["search", f"{clip}@0.5-2.5", "--lake", lake.root, "-k", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["hits"] == json.loads(json.dumps(hits.to_dicts()))
    assert len(hits) == 4
    assert [hit.uri for hit in hits[:2]] == [hit.uri for hit in hits][:2]
    arrow = hits.to_arrow()
    assert arrow.column("uri").to_pylist() == [hit.uri for hit in hits]
    assert arrow.schema.metadata[b"soundlake:model_id"].decode() == hits.model_id
    assert list(hits.to_pandas()["rank"]) == [1, 2, 3, 4]
    page = hits._repr_html_()
    assert page.count("<audio") == 4
    assert page.count("data:audio/wav;base64,UklGR") == 4
    with pytest.raises(soundlake.InputError, match="need a query"):
        lake.search(start=1, where="label = 'bird'")


def test_a_page_of_hits_escapes_names(made: Made) -> None:
    lake = soundlake.Lake(made.lake.root)
    hits = lake.search(where="label = 'bird'", k=1)
    odd = replace(hits[0], uri="/x/<b>&.wav")
    page = soundlake.Hits(hits.model_id, None, (odd,), (), lake.audio)._repr_html_()
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;.wav" in page
    # The file is not there: the page says so where the player would be.
    assert "<audio" not in page


def test_embed_gives_the_rows_of_the_table(made: Made) -> None:
    lake = soundlake.Lake(made.lake.root)
    clip = min(made.audio.glob("bell/*.flac"))
    computed = lake.embed(*soundlake.load_audio(clip))
    rows = lake.table().to_table(columns=["window", "embedding"], filter=f"uri = '{clip}'").to_pylist()
    assert rows
    for row in rows:
        # Shards hold log-mel in 16 bits.
        np.testing.assert_allclose(row["embedding"], computed[row["window"]], atol=2e-3)
    samples, rate = soundlake.load_audio(clip)
    stereo = np.stack([samples, samples], axis=1)
    np.testing.assert_array_equal(lake.embed(stereo, rate), computed)
    for wrong in (np.zeros(0), np.full(4000, np.nan), np.zeros((2, 2, 2))):
        with pytest.raises(soundlake.InputError, match="cannot embed"):
            lake.embed(wrong, rate)


def test_a_file_that_changed_is_not_played(made: Made, tmp_path: Path) -> None:
    lake = soundlake.Lake(made.lake.root)
    hit = lake.search(where="label = 'bird'", k=1)[0]
    samples, rate = lake.audio(hit)
    assert len(samples) > rate
    other = tmp_path / "other.wav"
    other.write_bytes(min(made.audio.glob("bell/*")).read_bytes())
    with pytest.raises(soundlake.InputError, match="has changed since it was extracted"):
        lake.audio(replace(hit, uri=str(other)))
    with pytest.raises(soundlake.InputError):
        lake.audio(replace(hit, uri=str(tmp_path / "gone.wav")))
