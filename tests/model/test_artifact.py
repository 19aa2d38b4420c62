"""The model directory: verified by digest, equal to the Keras model, readable without TensorFlow."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from model import artifact
from model.errors import InputError
from model.features import FeatureSpec
from model.train import TrainSettings, train
from model.vae import VaeConfig, build
from tests.model.conftest import SPEC, Tiny


@pytest.fixture(scope="module")
def directory(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = TrainSettings(batch_size=8, max_steps=4, evaluate_every=2, latent_dim=6)
    folder = tmp_path_factory.mktemp("models")
    return train(tiny.shards, SPEC, groups=tiny.groups, models_dir=folder, settings=settings, origin={}).directory


@pytest.fixture
def copy(directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(directory, tmp_path / directory.name))


def test_onnx_is_the_keras_model(directory: Path, tiny: Tiny) -> None:
    """Weights loaded into a fresh model, normalised by hand."""
    model = artifact.load(directory)
    vae = build(VaeConfig(n_frames=16, n_mels=16, latent_dim=6, likeness_dim=64))
    vae.load_weights(directory / artifact.WEIGHTS)
    raw = tiny.features(set(tiny.groups))[:11]
    mean, log_variance, likeness = map(keras.ops.convert_to_numpy, vae.encoded((raw - model.mean) / model.std))
    got = model.encoder().encode(raw)
    np.testing.assert_allclose(got.mean, mean, atol=1e-4)
    np.testing.assert_allclose(got.log_variance, log_variance, atol=1e-4)
    np.testing.assert_allclose(got.embedding, np.hstack([mean, likeness]), atol=1e-4)
    assert got.embedding.shape[1] == model.embedding_dim == 70
    decoded = keras.ops.convert_to_numpy(vae.decoder(mean))
    np.testing.assert_allclose(model.decoder().decode(mean), decoded, atol=1e-4)
    np.testing.assert_allclose(model.denormalise(model.normalise(raw)), raw, atol=1e-4)


@pytest.mark.parametrize("shape", [(16, 16), (24, 40), (128, 128)])
def test_a_window_does_not_depend_on_its_batch_at_any_size(shape: tuple[int, int], tmp_path: Path) -> None:
    """Orders of sums in ONNX Runtime change with shapes, and so does what is left over of whole vectors."""
    vae = build(VaeConfig(n_frames=shape[0], n_mels=shape[1], latent_dim=16, likeness_dim=24, contrastive=True))
    rng = np.random.default_rng(1)
    # The learned parts begin at zero: not what is to be compared.
    vae.set_weights([rng.normal(0, 0.05, w.shape).astype(np.float32) for w in vae.get_weights()])
    zeros, ones = np.zeros(shape[1], np.float32), np.ones(shape[1], np.float32)
    windows = rng.standard_normal((35, *shape)).astype(np.float32)
    artifact.export(vae, tmp_path, mean=zeros, std=ones, examples=windows[:3])
    encoder = artifact.Encoder(tmp_path / artifact.ENCODER, 1)
    together = encoder.encode(windows)
    for place in range(3):
        alone = np.concatenate([encoder.encode(window[None])[place] for window in windows])
        np.testing.assert_array_equal(together[place], alone)


def test_a_window_does_not_depend_on_its_batch(directory: Path, tiny: Tiny) -> None:
    encoder = artifact.load(directory).encoder()
    raw = tiny.features(set(tiny.groups))[:9]
    together = encoder.encode(raw).embedding
    alone = np.concatenate([encoder.encode(window[None]).embedding for window in raw])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("name", [artifact.WEIGHTS, artifact.ENCODER, artifact.DECODER])
def test_a_changed_file_is_named(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(InputError, match=name):
        artifact.load(copy)


@pytest.mark.parametrize("name", [artifact.MANIFEST, artifact.ENCODER])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(InputError, match=name):
        artifact.load(copy)


@pytest.mark.parametrize("change", [{"files": {"../secret": "0"}}, {"files": {"/etc/passwd": "0"}}])
def test_a_manifest_stays_in_its_folder(copy: Path, change: dict) -> None:
    manifest = json.loads((copy / artifact.MANIFEST).read_text())
    (copy / artifact.MANIFEST).write_text(json.dumps(manifest | change))
    with pytest.raises(InputError, match="outside its folder"):
        artifact.load(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format_version": 99}'])
def test_a_damaged_manifest(copy: Path, text: str) -> None:
    (copy / artifact.MANIFEST).write_text(text)
    with pytest.raises(InputError):
        artifact.load(copy)


def test_promotion_is_by_spec_and_remembered(directory: Path, tmp_path: Path) -> None:
    model = artifact.load(directory)
    assert artifact.promoted(tmp_path, SPEC.spec_id) is None
    artifact.promote(tmp_path, model, reason="first")
    artifact.promote(tmp_path, model, reason="again")
    assert artifact.promoted(tmp_path, SPEC.spec_id) == model.model_id
    other = FeatureSpec(**(SPEC.model_dump() | {"hop_length": 128}))
    assert artifact.promoted(tmp_path, other.spec_id) is None
    history = json.loads((tmp_path / "current.json").read_text())["history"]
    assert [entry["reason"] for entry in history] == ["first", "again"]


def test_reading_and_encoding_imports_no_tensorflow(directory: Path) -> None:
    code = (
        "import sys, numpy as np; from model import artifact; m = artifact.load(sys.argv[1]); "
        "m.decoder().decode(m.encoder().encode(np.zeros((2, 16, 16), np.float32)).mean); "
        "print(sorted({'tensorflow', 'keras', 'apache_beam'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(directory)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_onnx_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = build(VaeConfig(n_frames=16, n_mels=16, latent_dim=3))
    zeros, ones = np.zeros(16, np.float32), np.ones(16, np.float32)
    examples = np.random.default_rng(0).standard_normal((3, 16, 16)).astype(np.float32)
    assert artifact.export(vae, tmp_path, mean=zeros, std=ones, examples=examples) < 1e-5
    monkeypatch.setattr(artifact, "PARITY", -1.0)
    with pytest.raises(RuntimeError, match="differ"):
        artifact.export(vae, tmp_path, mean=zeros, std=ones, examples=examples)
