"""Search: a cut finds its file and its place; filters, play lists, and queries that are no good."""

import os
import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import soundfile

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import PRESETS
from soundlake.model.saved import artifact
from soundlake.pipelines import commands
from soundlake.pipelines.cli.playlist import playlist
from soundlake.pipelines.corpus import files
from soundlake.pipelines.lake import lookup, table
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.query import search
from soundlake.pipelines.query.search import Hit
from tests.conftest import Made


def cut_of(path: Path, target: Path, start: float, seconds: float = 2.0) -> Path:
    sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    soundfile.write(target, sound[round(start * rate) : round((start + seconds) * rate)], rate, subtype="FLOAT")
    return target


@pytest.mark.parametrize("kind", ["bell", "bird", "drum", "engine", "rain", "voice", "wind"])
def test_a_cut_finds_its_file_and_place(made: Made, tmp_path: Path, kind: str) -> None:
    path = sorted(made.audio.glob(f"{kind}/*"))[1]
    found = commands.search(
        made.lake, [str(cut_of(path, tmp_path / "cut.wav", 1.37))], k=5, where=None, by="recordings"
    )
    best = found["results"][0]["hits"][0]
    assert best.uri == str(path)
    assert best.same_sound
    # Half a hop is 8 ms.
    assert best.start_s == pytest.approx(1.37, abs=0.02)
    assert best.end_s == pytest.approx(3.37, abs=0.03)
    assert best.label == kind


def test_span_of_a_file_is_that_cut(made: Made, tmp_path: Path) -> None:
    path = sorted(made.audio.glob("voice/*"))[0]
    cut = commands.search(made.lake, [str(cut_of(path, tmp_path / "c.wav", 1.0))], k=5, where=None, by="windows")
    span = commands.search(made.lake, [f"{path}@1-3"], k=5, where=None, by="windows")
    assert [h.uri for h in cut["results"][0]["hits"]][:2] == [h.uri for h in span["results"][0]["hits"]][:2]


def test_filter_comes_before_the_search(made: Made) -> None:
    path = sorted(made.audio.glob("bird/*"))[0]
    found = commands.search(made.lake, [str(path)], k=3, where="label = 'wind'", by="recordings")
    hits = found["results"][0]["hits"]
    assert len(hits) == 3
    assert {hit.label for hit in hits} == {"wind"}
    assert not any(hit.same_sound for hit in hits)


def test_filter_alone_lists(made: Made) -> None:
    hits = commands.search(made.lake, [], k=100, where="label = 'bell'", by="recordings")["results"][0]["hits"]
    assert [hit.uri for hit in hits] == [str(path) for path in sorted(made.audio.glob("bell/*"))]


def test_filter_alone_lists_windows(made: Made) -> None:
    dataset = table.need_table(made.lake, made.result["model"]["model_id"])
    rows = dataset.to_table(columns=["uri", "window", "start_s", "end_s"], filter="label = 'bell'").to_pylist()
    for k in (4, 1000):
        found = commands.search(made.lake, [], k=k, where="label = 'bell'", by="windows")["results"][0]["hits"]
        assert [(h.uri, h.window, h.start_s, h.end_s) for h in found] == [tuple(row.values()) for row in rows[:k]]


def test_a_recording_finds_others(made: Made) -> None:
    row = table.need_table(made.lake, made.result["model"]["model_id"]).to_table(limit=1).to_pylist()[0]
    hits = commands.search(made.lake, [row["recording_id"]], k=5, where=None, by="recordings")["results"][0]["hits"]
    assert len(hits) == 5
    assert row["recording_id"] not in {hit.recording_id for hit in hits}
    assert [hit.distance for hit in hits] == sorted(hit.distance for hit in hits)


@pytest.mark.parametrize("where", [None, "label != 'bell' AND window != 1"])
def test_recordings_are_ranked_by_runs_of_windows(made: Made, where: str | None) -> None:
    """Against every stretch of every recording, of as many windows as the query has, that the filter lets pass."""
    dataset = table.need_table(made.lake, made.result["model"]["model_id"])
    rows = dataset.to_table(columns=["recording_id", "window", "start_s", "end_s", "label", "embedding"]).to_pylist()
    every: dict[str, dict[int, dict[str, object]]] = {}
    for row in rows:
        every.setdefault(row["recording_id"], {})[row["window"]] = row
    query = max(sorted(every), key=lambda name: len(every[name]))
    count = len(every[query])
    assert count > 2
    mean = np.mean([row["embedding"] for row in every.pop(query).values()], axis=0)
    wanted = []
    for name, windows in every.items():
        passing = [row for n, row in sorted(windows.items()) if where is None or (row["label"] != "bell" and n != 1)]
        stretches = [passing[first : first + count] for first in range(max(1, len(passing) - count + 1))]
        for part in stretches if passing else []:
            distance = float(np.sum((np.mean([row["embedding"] for row in part], axis=0) - mean) ** 2))
            wanted.append((distance, name, part[0]["start_s"], part[-1]["end_s"], len(part)))
    best: dict[str, tuple[object, ...]] = {}
    for one in sorted(wanted):
        best.setdefault(one[1], one)
    hits = commands.search(made.lake, [query], k=5, where=where, by="recordings")["results"][0]["hits"]
    got = [(hit.distance, hit.recording_id, hit.start_s, hit.end_s, hit.windows) for hit in hits]
    for hit, one in zip(got, list(best.values())[:5], strict=True):
        assert hit[0] == pytest.approx(one[0], rel=1e-4)
        assert hit[1:] == one[1:]


def test_a_file_as_query_is_ranked_as_its_recording(made: Made, tmp_path: Path) -> None:
    """Neighbours of a file are those of the recording with its windows: the same mean, the same runs."""
    path = sorted(made.audio.glob("wind/*"))[0]
    dataset = table.need_table(made.lake, made.result["model"]["model_id"])
    row = dataset.to_table(columns=["recording_id", "uri"], filter=f"uri = '{path}'").to_pylist()[0]
    both = [
        commands.search(made.lake, [asked], k=8, where=None, by="recordings")["results"][0]["hits"]
        for asked in (str(path), row["recording_id"])
    ]
    same = {hit.recording_id for hit in both[0] if hit.same_sound}
    by_file, by_recording = ([hit for hit in hits if hit.recording_id not in same] for hits in both)
    assert [hit.recording_id for hit in by_file][:5] == [hit.recording_id for hit in by_recording][:5]
    assert by_file[0].windows > 1
    assert by_file[0].distance == pytest.approx(by_recording[0].distance, rel=1e-3)


@pytest.mark.parametrize("where", [None, "label = 'wind'"])
def test_one_recording_does_not_crowd_out_the_others(made: Made, where: str | None) -> None:
    """Where all that is near are windows of one recording, those of others are found all the same."""
    model = artifact.load(Path(made.result["report"]).parent)
    dataset = table.need_table(made.lake, made.result["model"]["model_id"])
    rows = dataset.to_table(columns=["recording_id", "label", "embedding"]).to_pylist()
    vectors = np.array([row["embedding"] for row in rows], np.float32)
    distance = ((vectors - vectors[3]) ** 2).sum(axis=1)
    least: dict[str, float] = {}
    for row, one in zip(rows, distance, strict=True):
        if row["recording_id"] != rows[3]["recording_id"] and (where is None or row["label"] == "wind"):
            least[row["recording_id"]] = min(one, least.get(row["recording_id"], np.inf))
    searcher = search.Searcher(made.lake, model, dataset)
    asked = [(vectors[3], None)]
    out = [rows[3]["recording_id"]]
    found = searcher._nearest(asked, wanted=2, k=4, where=where, by="recordings", without=out)
    names = list(dict.fromkeys(row["recording_id"] for row in sorted(found.values(), key=lambda r: r["_distance"])))
    assert names[:4] == sorted(least, key=lambda name: least[name])[:4]
    assert len(searcher._nearest(asked, wanted=2, k=4, where=where, by="windows", without=out)) == 2


def test_nearest_is_numpys(made: Made) -> None:
    dataset = table.need_table(made.lake, made.result["model"]["model_id"])
    everything = dataset.to_table(columns=["id", "embedding"]).to_pylist()
    vectors = np.array([row["embedding"] for row in everything])
    order = np.argsort(((vectors - vectors[3]) ** 2).sum(axis=1), kind="stable")[:5]
    found = table.nearest(dataset, vectors[3].astype(np.float32), k=5, where=None, columns=["id"])
    assert [row["id"] for row in found] == [everything[i]["id"] for i in order]


@pytest.mark.parametrize("where", ["nonsense = 3", "label =", "1; DROP TABLE x", "label = 'a' OR"])
def test_a_wrong_filter_is_one_line(made: Made, where: str) -> None:
    with pytest.raises(InputError, match="cannot use the filter") as caught:
        commands.search(made.lake, [], k=5, where=where, by="recordings")
    assert "\n" not in str(caught.value)
    assert "_rowid" not in str(caught.value)


def test_silence_is_said(made: Made, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(32_000), 16_000)
    with pytest.raises(InputError, match="no sound"):
        commands.search(made.lake, [str(tmp_path / "silent.wav")], k=5, where=None, by="recordings")


@pytest.mark.parametrize(("end", "said"), [("0.0001", "too short"), ("0.00001", "shorter than a sample")])
def test_too_short_is_no_silence(made: Made, tmp_path: Path, end: str, said: str) -> None:
    soundfile.write(tmp_path / "quiet.wav", np.full(32_000, 1e-4), 16_000)
    with pytest.raises(InputError, match=said):
        commands.search(made.lake, [f"{tmp_path / 'quiet.wav'}@0-{end}"], k=5, where=None, by="recordings")


def test_a_name_that_is_not_utf8(made: Made, tmp_path: Path) -> None:
    path = sorted(made.audio.glob("bell/*"))[0]
    odd = os.fsencode(tmp_path) + b"/b\xff" + os.fsencode(path.suffix)
    shutil.copy(path, odd)
    found = [
        commands.search(made.lake, [query], k=3, where=None, by="recordings")["results"][0]["hits"]
        for query in (os.fsdecode(odd), files.uri_of(odd), str(path))
    ]
    assert found[0] == found[1] == found[2]
    assert found[0][0].uri == str(path)


@pytest.mark.parametrize(("kind", "said"), [("folder", "directory: This is"), ("pipe", "named-pipe: This is")])
def test_what_is_no_file(made: Made, tmp_path: Path, kind: str, said: str) -> None:
    (tmp_path / "x").mkdir() if kind == "folder" else os.mkfifo(tmp_path / "x")
    with pytest.raises(InputError, match=said):
        commands.search(made.lake, [str(tmp_path / "x")], k=3, where=None, by="recordings")


def test_mostly_silent_query(made: Made, tmp_path: Path) -> None:
    """0.4 s of a file, the rest silence: what is silent elsewhere is no answer."""
    path = sorted(made.audio.glob("drum/*"))[0]
    sound, rate = soundfile.read(path, dtype="float32")
    part = np.zeros(2 * rate, np.float32)
    part[-round(0.4 * rate) :] = sound[rate : rate + round(0.4 * rate)]
    soundfile.write(tmp_path / "late.wav", part, rate, subtype="FLOAT")
    hits = commands.search(made.lake, [str(tmp_path / "late.wav")], k=5, where=None, by="recordings")["results"][0][
        "hits"
    ]
    assert not any(hit.same_sound and hit.label != "drum" for hit in hits)


@pytest.mark.parametrize(("samples", "said"), [(1, None), (400, None), (16_000 * 601, "longer than 600 s")])
def test_very_short_and_too_long(made: Made, tmp_path: Path, samples: int, said: str | None) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "q.wav", 0.5 + 0.1 * rng.random(samples), 16_000)
    if said is None:
        assert commands.search(made.lake, [str(tmp_path / "q.wav")], k=3, where=None, by="recordings")["results"][0][
            "hits"
        ]
    else:
        with pytest.raises(InputError, match=said):
            commands.search(made.lake, [str(tmp_path / "q.wav")], k=3, where=None, by="recordings")


def test_a_missing_shard_costs_only_the_exact_match(made: Made, tmp_path: Path) -> None:
    lake = made.copy(tmp_path)
    for shard in Path(lake.root).glob("features/*/shards/*"):
        shard.unlink()
    path = sorted(made.audio.glob("bell/*"))[0]
    found = commands.search(lake, [str(path)], k=3, where=None, by="recordings")
    assert found["notes"]
    assert found["results"][0]["hits"]


def test_each_shard_is_opened_once(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a lake in a bucket, each time that a shard is opened takes some hundredths of a second."""
    opened: list[str] = []
    true = Lake.open

    def counted(lake: Lake, name: str, *, block: int = 8 << 20) -> BinaryIO:
        opened.append(name)
        return true(lake, name, block=block)

    monkeypatch.setattr(Lake, "open", counted)
    path = sorted(made.audio.glob("bell/*"))[0]
    found = commands.search(made.lake, [f"{path}@1-1.3"], k=3, where=None, by="recordings")
    assert found["results"][0]["hits"][0].same_sound
    shards = [name for name in opened if "/shards/" in name]
    assert len(shards) == len(set(shards)) > 1


def test_play_list_names_file_and_place(tmp_path: Path) -> None:
    odd = os.fspath(tmp_path / "two\nlines.wav")
    hits = [
        Hit("/a/b c.wav", "0" * 64, 3, 1.5, 3.25, 0.1, True, None, None),
        Hit(odd, "1" * 64, 0, 0.0, 2.0, 0.2, False, None, None),
    ]
    lines = playlist(hits).splitlines()
    assert lines[0] == "#EXTM3U"
    assert lines[1:5] == [
        "#EXTINF:2,b c.wav 1.50-3.25 s",
        "#EXTVLCOPT:start-time=1.500",
        "#EXTVLCOPT:stop-time=3.250",
        "/a/b c.wav",
    ]
    assert lines[-1] == "file://" + odd.replace("\n", "%0A")


def test_search_needs_no_tensorflow(made: Made) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from soundlake.pipelines.cli.program import main; "
        f"main(['search', {str(sorted(made.audio.glob('bell/*'))[0])!r}, '--lake', {made.lake.root!r}]); "
        "print(sorted({'tensorflow', 'keras', 'apache_beam'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    assert [line.split()[1] for line in out.splitlines()[1:2]] == ["="]


def test_model_of_the_lake_verifies(made: Made) -> None:
    assert artifact.load(made.result["report"].rsplit("/", 1)[0]).model_id == made.result["model"]["model_id"]


def test_a_model_of_another_spec_than_the_one_named(made: Made, tmp_path: Path) -> None:
    model_id, spec = made.result["model"]["model_id"], PRESETS["general"]
    for name in ("general", spec.spec_id):
        assert lookup.find_model(made.lake, model_id, name).model_id == model_id
    other = tmp_path / "other.json"
    other.write_text(spec.model_copy(update={"n_mels": 32}).model_dump_json())
    for call in (
        lambda: commands.search(made.lake, [], k=1, where="true", by="windows", spec=str(other), model_id=model_id),
        lambda: commands.encode(made.lake, spec=str(other), model_id=model_id),
    ):
        with pytest.raises(InputError, match=f"{model_id} has the spec {spec.spec_id}, but --spec {other}"):
            call()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff\xfe{}", "not valid: Invalid JSON"),
        (b"{", "not valid: Invalid JSON"),
        (b'{"n_fft": 1}', "valid: sample_rate: "),
    ],
)
def test_files_that_hold_no_spec(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "s.json").write_bytes(data)
    with pytest.raises(InputError, match=said):
        lookup.parse_spec(str(tmp_path / "s.json"))
    with pytest.raises(InputError, match="too long"):
        lookup.parse_spec("x" * 300)


def test_searcher_keeps_k(made: Made) -> None:
    path = sorted(made.audio.glob("wind/*"))[0]
    for by in ("recordings", "windows"):
        hits = commands.search(made.lake, [str(path)], k=4, where=None, by=by)["results"][0]["hits"]
        assert len(hits) == 4
        assert hits[0].uri == str(path)
    assert search.MIN_CANDIDATES >= 4
