"""Evaluate, on a lake that the real commands made: its figures by other routes, and its words."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from soundlake.model.features import splits
from soundlake.model.features.log_mel import dequantise, log_mel
from soundlake.model.saved import artifact
from soundlake.pipelines.audio.reading import probe
from soundlake.pipelines.audio.resampling import resampled
from soundlake.pipelines.cli.program import main
from soundlake.pipelines.lake import ledger, lookup, table
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.learning import judging, sampling
from tests.conftest import Made


@pytest.fixture(scope="module")
def lake(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A copy: evaluate writes into the model's folder."""
    return made.copy(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="module")
def clips(lake: Lake) -> list[sampling.Clip]:
    spec = lookup.spec_of_lake(lake, None)
    known = ledger.open_ledger(lake, spec.spec_id)
    return sampling.sample(lake, spec, known, ledger.training_input(known)[1])


def test_a_sample_is_the_first_by_digest(
    lake: Lake, clips: list[sampling.Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "WINDOWS", 5)
    monkeypatch.setattr(sampling, "WINDOWS_EACH", 2)
    spec = lookup.spec_of_lake(lake, None)
    known = ledger.open_ledger(lake, spec.spec_id)
    found = sampling.sample(lake, spec, known, ledger.training_input(known)[1])
    wanted, total = [], 0
    for clip in clips:
        if total < 5:
            wanted.append(clip.recording_id)
            total += min(len(clip.windows), 2)
    assert [clip.recording_id for clip in found] == wanted
    assert all(len(clip.windows) <= 2 for clip in found)


def test_the_sample_is_the_lake(lake: Lake, clips: list[sampling.Clip]) -> None:
    spec = lookup.spec_of_lake(lake, None)
    rows = ledger.open_ledger(lake, spec.spec_id).to_table(filter="status = 'done'").to_pylist()
    assert [clip.recording_id for clip in clips] == sorted({row["recording_id"] for row in rows})
    by_id = {row["recording_id"]: row for row in rows}
    for clip in clips:
        row = by_id[clip.recording_id]
        assert (len(clip.windows), clip.label) == (row["windows"], row["label"])


def test_frames_are_those_of_the_recording(lake: Lake, clips: list[sampling.Clip]) -> None:
    spec = lookup.spec_of_lake(lake, None)
    rows = ledger.open_ledger(lake, spec.spec_id).to_table(filter="status = 'done' AND silent_windows = 0").to_pylist()
    row = max(rows, key=lambda row: row["windows"])
    clip = next(clip for clip in clips if clip.recording_id == row["recording_id"])
    assert len(clip.windows) > 2
    wanted = log_mel(np.concatenate(list(resampled(row["uri"], probe(row["uri"]), spec.sample_rate))), spec)
    np.testing.assert_allclose(clip.frames(spec), wanted, atol=1e-3)


def held_out(clips: list[sampling.Clip]) -> set[str]:
    """Recordings that training has not seen, by the rule of the split."""
    groups = {clip.recording_id: "" if clip.group == clip.recording_id else clip.group for clip in clips}
    return {name for name, split in splits.assign(groups).items() if split != splits.TRAIN}


def test_figures_by_other_routes(lake: Lake, clips: list[sampling.Clip]) -> None:
    found = judging.evaluate(lake)
    model = lookup.find_model(lake, None)
    spec = model.spec
    held = held_out(clips)
    assert (found["recordings"], found["held_out_recordings"]) == (len(clips), len(held))
    # The table holds each window's error over its frames of sound.
    columns = ["recording_id", "reconstruction_error", "start_s", "end_s"]
    rows = [row for row in table.need_table(lake, model.model_id).to_table(columns=columns).to_pylist()]
    rows = [row for row in rows if row["recording_id"] in held]
    frames = [row["end_s"] - row["start_s"] for row in rows]
    wanted = np.average([row["reconstruction_error"] for row in rows], weights=frames)
    assert found["mse"]["model"] == pytest.approx(wanted, rel=1e-4)

    # Principal components as singular vectors.
    def unit(wanted: bool) -> np.ndarray:
        parts = [clip.values for clip in clips if (clip.recording_id in held) == wanted]
        return model.normalise(dequantise(np.concatenate(parts), spec)).astype(np.float64)

    seen, unseen = unit(False).reshape(-1, spec.window_frames * spec.n_mels), unit(True)
    centre = seen.mean(axis=0)
    count = min(model.settings["latent_dim"], len(seen))
    basis = np.linalg.svd(seen - centre, full_matrices=False)[2][:count]
    rest = unseen.reshape(len(unseen), -1) - centre
    error = np.square(rest - rest @ basis.T @ basis).reshape(unseen.shape).mean(axis=2)
    valid = np.concatenate([clip.valid for clip in clips if clip.recording_id in held])
    sound = np.arange(spec.window_frames) < valid[:, None]
    assert found["mse"]["PCA"] == pytest.approx(error[sound].mean(), rel=0.02)
    assert list(found["probes"]) == [
        "embedding",
        "latent",
        "log-mel",
        "PCA",
        "statistics",
        "untrained",
        "log-mel, 3 statistics",
        "MFCC",
    ]
    assert all(0 <= share <= 1 for one in found["consistency"].values() for share in one.values())
    assert found["latent"]["fidelity"][-1] == pytest.approx(1.0)
    kept = json.loads((model.directory / artifact.METRICS).read_text())
    assert Path(found.pop("report")) == model.directory / artifact.REPORT
    assert kept == json.loads(json.dumps(found))
    again = judging.evaluate(lake)
    assert {key: again[key] for key in found} | {"run_id": 0} == found | {"run_id": 0}
    assert artifact.load(model.directory).model_id == model.model_id


def test_a_recording_that_was_trained_on_is_not_held_out(
    lake: Lake, clips: list[sampling.Clip], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever groups the labels have now."""
    model = lookup.find_model(lake, None)
    groups = {clip.recording_id: clip.group for clip in clips}
    trained = {name for name, split in splits.assign(groups).items() if split == splits.TRAIN}
    assert list(model.trained()) == sorted(int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) for name in trained)
    assert {
        c.recording_id for c, held in zip(clips, sampling.held_out_of(clips, groups, model), strict=True) if held
    } == (groups.keys() - trained)
    assert not caplog.records
    alone = dict.fromkeys(groups, "")
    held = sampling.held_out_of(clips, alone, model)
    rule = splits.assign(alone)
    assert not {clip.recording_id for clip, is_held in zip(clips, held, strict=True) if is_held} & trained
    lost = sum(rule[name] != splits.TRAIN for name in trained)
    assert lost
    assert f"of the recordings held out now, {lost} were trained on" in caplog.text


def test_what_it_says(lake: Lake, clips: list[sampling.Clip], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--lake", lake.root]) == 0
    said = capsys.readouterr().out
    assert "points ahead of the best baseline: linear probe" in said
    assert re.search(r"\n  \[latent\] +0\.\d", said)
    # What training has seen, counted by its own split of the recordings.
    training = {c.recording_id for c in clips} - held_out(clips)
    words = " ".join(said.split())
    assert f"The probes use all {len(clips)} labelled recordings" in words
    assert f"{len(training)} of which the model was trained on" in words
    report = Path(re.search(r"^report +(.+)$", said, re.MULTILINE)[1]).read_text()
    assert f"{len(training)} of which the model was trained on" in report
    assert "log-mel, 3 statistics" in said
    assert max(len(line) for line in said.splitlines()) <= 120


def test_a_lake_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--lake", str(tmp_path / "nowhere")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
