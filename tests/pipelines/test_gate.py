"""The promotion gate, with models that the real commands trained: what it compares, refuses, forces and logs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from soundlake.model.features import splits
from soundlake.model.features.log_mel import dequantise
from soundlake.model.saved import artifact, promotion
from soundlake.pipelines import commands
from soundlake.pipelines.cli.program import main
from soundlake.pipelines.lake import ledger, lookup, table
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.learning import gate, judging, sampling
from tests.conftest import Made


@pytest.fixture(scope="module")
def lake(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return made.copy(tmp_path_factory.mktemp("gated"))


@pytest.fixture(scope="module")
def worse(lake: Lake) -> str:
    """A model of two steps without a linear path."""
    settings = {"preset": "seed", "max_steps": 2, "batch_size": 8}
    result = commands.train(lake, settings=settings)
    assert not result["promoted"]
    return str(result["model_id"])


def log_of(lake: Lake, model_id: str) -> list[dict]:
    return json.loads((Path(lake.root) / "models" / model_id / promotion.PROMOTIONS).read_text())


def test_figures_by_other_routes(lake: Lake, worse: str) -> None:
    current, candidate = lookup.find_model(lake, None), lookup.find_model(lake, worse)
    found = gate.compare(lake, candidate, current)
    assert set(found) == {"error", "negative_elbo", "linear", "knn", "map", "search"}
    known = ledger.open_ledger(lake, current.spec.spec_id)
    groups = ledger.training_input(known)[1]
    split = splits.assign(groups)
    # The table holds the error of each window of the model in use, in its own unit variance, over frames of sound.
    rows = table.need_table(lake, current.model_id).to_table().to_pylist()
    each: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if split[row["recording_id"]] != splits.TRAIN:
            each.setdefault(row["recording_id"], []).append(
                (row["reconstruction_error"], row["end_s"] - row["start_s"])
            )
    wanted = np.mean([np.average([e for e, _ in one], weights=[w for _, w in one]) for one in each.values()])
    assert found["error"].current == pytest.approx(wanted, rel=1e-3)
    # The ELBO of log-mel, a window at a time, with the variance that the candidate was trained with: the seed's is 1.
    clips = [c for c in sampling.sample(lake, current.spec, known, groups) if split[c.recording_id] != splits.TRAIN]
    noise, losses = np.random.default_rng(0), []
    everyone = sampling.sample(lake, current.spec, known, groups)
    for clip in everyone:
        values = dequantise(clip.values, candidate.spec)
        mean, log_variance, _ = candidate.encoder().encode(values)
        z = mean + noise.standard_normal(mean.shape).astype(np.float32) * np.exp(log_variance / 2)
        rebuilt = candidate.denormalise(candidate.decoder().decode(z)).astype(np.float64)
        nll = 0.5 * (np.log(2 * np.pi) + 2 * np.log(candidate.std) + np.square((values - rebuilt) / candidate.std))
        kl = 0.5 * (np.exp(log_variance) + mean**2 - 1 - log_variance)
        if clip.recording_id in {c.recording_id for c in clips}:
            losses.append((nll.sum(axis=(1, 2)) + kl.sum(axis=1)).mean())
    assert found["negative_elbo"].candidate == pytest.approx(np.mean(losses), rel=1e-4)
    behind = found["error"].behind
    assert behind.value == pytest.approx(found["error"].candidate - found["error"].current)
    assert behind.low <= behind.value <= behind.high
    assert found["error"].worse


def test_a_worse_one_is_refused_and_the_log_says_why(
    lake: Lake, worse: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = lookup.find_model(lake, None).model_id
    assert main(["promote", worse, "--lake", lake.root]) == 3
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "mean square error" in err
    assert "--force" in err
    assert lookup.find_model(lake, None).model_id == before
    last = log_of(lake, worse)[-1]
    assert (last["promoted"], last["forced"], last["instead_of"]) == (False, False, before)
    assert last["measures"]["error"]["worse"]


def test_forced_and_back_again(lake: Lake, worse: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = lookup.find_model(lake, None).model_id
    assert main(["promote", worse, "--force", "--lake", lake.root]) == 0
    assert ", forced" in capsys.readouterr().out
    assert lookup.find_model(lake, None).model_id == worse
    assert log_of(lake, worse)[-1]["forced"]
    # The better one takes its place without force.
    assert main(["promote", before, "--lake", lake.root]) == 0
    out = capsys.readouterr().out
    assert f"in place of {worse}" in out
    assert "mean square error: 0." in out
    assert lookup.find_model(lake, None).model_id == before
    history = json.loads((Path(lake.root) / "models" / "current.json").read_text())["history"]
    assert [entry["reason"] for entry in history] == ["the first model of its spec", "forced", "promote"]
    assert main(["promote", before, "--lake", lake.root]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_run_that_trains_a_worse_one_keeps_the_old(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = made.copy(tmp_path)
    before = lookup.find_model(lake, None).model_id
    call = ["run", str(made.audio), "--lake", lake.root, "--train", "--preset", "seed", "--steps", "2"]
    assert main(call) == 3
    said = capsys.readouterr()
    assert f"{before} there already" in said.out
    assert "stays in use" in said.err
    assert lookup.find_model(lake, None).model_id == before


def test_the_same_model_is_not_worse_than_itself(lake: Lake) -> None:
    model = lookup.find_model(lake, None)
    found = gate.compare(lake, model, model)
    assert not any(one.worse for one in found.values())
    assert all(one.behind.value == 0 for one in found.values())


def test_a_small_loss_beyond_doubt_passes_and_a_large_one_in_doubt_too() -> None:
    groups = np.arange(40)
    noise = np.random.default_rng(0).standard_normal(40)
    sure_and_small = gate._measure(np.full(40, 0.1005), np.full(40, 0.1), np.full(40, 0.0005), groups, 0.001)
    assert not sure_and_small.worse
    assert sure_and_small.behind.low > 0
    assert not gate._measure(noise, 0 * noise, noise + 0.1, groups, 0.001).worse
    assert gate._measure(noise, 0 * noise, noise + 2.0, groups, 0.001).worse


def test_too_little_to_compare_by(made: Made, tmp_path: Path, worse: str, lake: Lake) -> None:
    """Then force alone promotes; without, the model is held."""
    small = made.copy(tmp_path)
    (Path(small.root) / "models" / worse).mkdir()
    for path in (Path(lake.root) / "models" / worse).iterdir():
        if path.is_file():
            (Path(small.root) / "models" / worse / path.name).write_bytes(path.read_bytes())
    model = lookup.find_model(small, worse)
    known = ledger.open_ledger(small, model.spec.spec_id)
    split = splits.assign(ledger.training_input(known)[1])
    keep = [name for name, where in split.items() if where == splits.TRAIN][:1]
    known.delete(f"recording_id not in ('{keep[0]}')")
    assert main(["promote", worse, "--lake", small.root]) == 3
    assert main(["promote", worse, "--force", "--lake", small.root]) == 0
    assert lookup.find_model(small, None).model_id == worse


def test_a_model_in_use_that_cannot_be_read_gives_way_to_force_only(
    lake: Lake, worse: str, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be restored; status lists it all the same. One of a format that is not read: `tests/upgrade/`."""
    old = made.copy(tmp_path)
    shutil.copytree(Path(lake.root) / "models" / worse, Path(old.root) / "models" / worse)
    there = Path(old.root) / "models" / made.result["model"]["model_id"] / artifact.MANIFEST
    manifest = json.loads(there.read_text())
    there.write_text(json.dumps(manifest | {"normalisation": {}}))
    assert main(["status", "--lake", old.root]) == 0
    assert "is damaged" in capsys.readouterr().out
    assert main(["promote", worse, "--lake", old.root]) == 3
    assert "cannot be compared" in capsys.readouterr().err
    assert "not_compared" in log_of(old, worse)[-1]
    # Nor does `run`, which goes on with the model in use, keep to itself what can be done.
    assert main(["run", str(made.audio), "--train", "--preset", "seed", "--steps", "1", "--lake", old.root]) == 3
    assert "--force" in capsys.readouterr().err
    assert main(["promote", worse, "--force", "--lake", old.root]) == 0
    assert lookup.find_model(old, None).model_id == worse


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_folds_of_a_file(lake: Lake, made: Made, tmp_path: Path, ending: str) -> None:
    """Fold 0, a number in Parquet, is a fold like another; recordings without one do not count."""
    rows = ledger.open_ledger(lake, lookup.find_model(lake, None).spec.spec_id).to_table(filter="status = 'done'")
    uris = sorted(rows["uri"].to_pylist())[:-2]
    target = tmp_path / f"folds.{ending}"
    if ending == "csv":
        target.write_text("uri,fold\n" + "".join(f"{uri},{i % 2}\n" for i, uri in enumerate(uris)))
    else:
        parquet.write_table(pa.table({"uri": uris, "fold": [i % 2 for i in range(len(uris))]}), target)
    found = judging.evaluate(lake, folds=str(target))
    assert found["folds"] == "the 2 folds that the file gives"
    labelled = {row["uri"] for row in rows.to_pylist() if row["label"] is not None}
    assert found["labelled"] == len(labelled & set(uris))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("uri,fold\nelsewhere.wav,1\nother.wav,2\n", "names 0 recordings of the sample"),
        ("uri,label\na.wav,1\n", "needs columns `uri` and `fold`"),
        ("name\na\n", "no column `uri`"),
    ],
)
@pytest.mark.parametrize("command", [["evaluate"], ["promote", "MODEL"], ["promote", "MODEL", "--force"]])
def test_folds_that_are_none(
    lake: Lake,
    worse: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    text: str,
    said: str,
    command: list[str],
) -> None:
    target = tmp_path / "folds.csv"
    target.write_text(text)
    call = [worse if part == "MODEL" else part for part in command]
    before = lookup.find_model(lake, None).model_id
    code = main([*call, "--folds", str(target), "--lake", lake.root])
    assert said in capsys.readouterr().err + caplog.text
    if "--force" in call and "names 0" in said:
        # Force goes on without the comparison, and says so.
        assert code == 0
        judging.promote(lake, before, force=True)
        return
    assert code == (3 if "names 0" in said and command[0] == "promote" else 2)
    assert lookup.find_model(lake, None).model_id == before
