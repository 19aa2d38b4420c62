"""The model directory: verified by digest, equal to the Keras model, readable without TensorFlow."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import FeatureSpec
from soundlake.model.network.vae import VaeConfig, build
from soundlake.model.saved import artifact, promotion
from soundlake.model.training.train import TrainSettings, train
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
    vae = build(VaeConfig(n_frames=16, n_mels=16, latent_dim=6, likeness_dim=128))
    vae.load_weights(directory / artifact.WEIGHTS)
    raw = tiny.features(set(tiny.groups))[:11]
    mean, log_variance, likeness = map(keras.ops.convert_to_numpy, vae.encoded((raw - model.mean) / model.std))
    got = model.encoder().encode(raw)
    np.testing.assert_allclose(got.mean, mean, atol=1e-4)
    np.testing.assert_allclose(got.log_variance, log_variance, atol=1e-4)
    np.testing.assert_allclose(got.embedding, likeness, atol=1e-4)
    assert got.embedding.shape[1] == model.embedding_dim == 128
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
    # As of real sound: some places are loud, and most fade out.
    mean, std = np.full(shape[1], -6, np.float32), np.full(shape[1], 2.5, np.float32)
    windows = rng.normal(-6, 2.5, (35, *shape)).astype(np.float32)
    artifact.export(vae, tmp_path, mean=mean, std=std, examples=windows[:3])
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


@pytest.mark.parametrize("name", sorted(artifact.VERIFIED))
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


def changed(directory: Path, change: dict) -> None:
    """Write a model.json anew, with some keys changed."""
    manifest = json.loads((directory / artifact.MANIFEST).read_text())
    (directory / artifact.MANIFEST).write_text(json.dumps(manifest | change))


@pytest.mark.parametrize(
    "files", [{}, {"../secret": "0"}, {"/etc/passwd": "0"}, {artifact.ENCODER: "0"}, {"model.keras": "0"}]
)
def test_a_manifest_tells_the_digests_of_all_that_is_loaded_and_of_nothing_else(copy: Path, files: dict) -> None:
    changed(copy, {"files": files})
    with pytest.raises(InputError, match="names other files than a model has, or not all"):
        artifact.load(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_id": "0" * 16}, "belongs to another model"),
        ({"model_id": "../../elsewhere"}, "belongs to another model"),
        ({"normalisation": {"mean": [0.0], "std": [1.0]}}, "normalisation"),
        ({"normalisation": {"mean": [0.0] * 16, "std": [float("nan")] * 16}}, "normalisation"),
        ({"pooling": "median"}, "pooling is none of"),
        ({"files": ["weights.weights.h5"]}, "damaged"),
    ],
)
def test_a_manifest_that_does_not_fit(copy: Path, change: dict, said: str) -> None:
    changed(copy, change)
    with pytest.raises(InputError, match=said):
        artifact.load(copy)


def test_an_id_goes_nowhere_else(directory: Path) -> None:
    assert artifact.find(directory.parent, directory.name).model_id == directory.name
    for model_id in (f"../{directory.parent.name}/{directory.name}", str(directory), "", "..", f"{directory.name}/"):
        with pytest.raises(InputError, match="is not a valid model id"):
            artifact.find(directory.parent, model_id)


@pytest.mark.parametrize("name", [artifact.MANIFEST, artifact.WEIGHTS, artifact.ENCODER, "checkpoints", "report.html"])
def test_links_in_a_model_are_refused(copy: Path, tmp_path: Path, name: str) -> None:
    """Also of what is only written: it would be written elsewhere."""
    (copy / name).rename(tmp_path / "elsewhere")
    (copy / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"{name} is a symbolic link"):
        artifact.load(copy)
    with pytest.raises(InputError, match=f"{name} is a symbolic link"), artifact.being_made(copy):
        pass


def test_a_model_that_is_a_link_is_refused(directory: Path, tmp_path: Path) -> None:
    (tmp_path / directory.name).symlink_to(directory)
    with pytest.raises(InputError, match="is a symbolic link"):
        artifact.find(tmp_path, directory.name)
    # The models' own folder may be anywhere: whether it is one in the lake, the lake knows.
    (tmp_path / "models").symlink_to(directory.parent)
    assert artifact.find(tmp_path / "models", directory.name).model_id == directory.name


def test_the_lock_of_a_training_truncates_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="is a symbolic link"), artifact.being_made(tmp_path / "m"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("name", [artifact.MANIFEST, artifact.ENCODER])
def test_a_pipe_is_not_waited_for(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(InputError, match="is not a regular file"):
        artifact.load(copy)


def network(*, location: str | None) -> bytes:
    """An ONNX file that adds four numbers of its own, or of another file, to its input."""
    import onnx
    from onnx import TensorProto, helper

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    if location is None:
        weight.raw_data = np.arange(4, dtype=np.float32).tobytes()
    else:
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "16")):
            weight.external_data.add(key=key, value=value)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 9
    assert onnx.checker  # imported for `helper` alone, and to say which package this is
    return made.SerializeToString()


@pytest.mark.parametrize("location", ["w.bin", "../w.bin", "absolute", "link.bin", "/etc/passwd"])
def test_a_network_has_no_other_files(
    location: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where whoever planted it knew to give the right digest, and where the file lies beside it."""
    for folder in (copy, copy.parent):
        (folder / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    for cwd in (copy, copy.parent):
        monkeypatch.chdir(cwd)
        data = network(location=str(copy.parent / "w.bin") if location == "absolute" else location)
        (copy / artifact.ENCODER).write_bytes(data)
        manifest = json.loads((copy / artifact.MANIFEST).read_text())
        changed(copy, {"files": manifest["files"] | {artifact.ENCODER: hashlib.sha256(data).hexdigest()}})
        with pytest.raises(InputError, match="ONNX Runtime cannot use"):
            artifact.load(copy).encoder().run(np.zeros(4, np.float32))


def test_what_was_verified_is_what_runs(copy: Path) -> None:
    """A file put in the place of the other after it was looked at, or a file of the right kind with other weights."""
    sound = network(location=None)
    assert artifact.Decoder(_written(copy / "plain.onnx", sound), 1).run(np.ones(4, np.float32))[0].tolist() == [
        1,
        2,
        3,
        4,
    ]
    model = artifact.load(copy)
    encoder, decoder = model.encoder(), model.decoder()
    for name in (artifact.ENCODER, artifact.DECODER):
        (copy / name).write_bytes(sound)
    for opened in (encoder, decoder):
        with pytest.raises(InputError, match="has changed since the training"):
            opened.run(np.zeros(4, np.float32))


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", "[" * 100_000, '{"promoted": {}, "history": {}}', '{"promoted": {"SPEC": "../../m"}, "history": []}'],
)
def test_a_damaged_list_of_promotions(directory: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "current.json").write_text(text.replace("SPEC", SPEC.spec_id))
    with pytest.raises(InputError, match="damaged"):
        promotion.promoted(tmp_path, SPEC.spec_id)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format_version": 99}'])
def test_a_damaged_manifest(copy: Path, text: str) -> None:
    (copy / artifact.MANIFEST).write_text(text)
    with pytest.raises(InputError):
        artifact.load(copy)


def test_promotion_is_by_spec_and_remembered(directory: Path, tmp_path: Path) -> None:
    model = artifact.load(directory)
    assert promotion.promoted(tmp_path, SPEC.spec_id) is None
    promotion.promote(tmp_path, model, reason="first")
    promotion.promote(tmp_path, model, reason="again")
    assert promotion.promoted(tmp_path, SPEC.spec_id) == model.model_id
    other = FeatureSpec(**(SPEC.model_dump() | {"hop_length": 128}))
    assert promotion.promoted(tmp_path, other.spec_id) is None
    history = json.loads((tmp_path / "current.json").read_text())["history"]
    assert [entry["reason"] for entry in history] == ["first", "again"]


def test_reading_and_encoding_imports_no_tensorflow(directory: Path) -> None:
    code = (
        "import sys, numpy as np; from soundlake.model.saved import artifact; m = artifact.load(sys.argv[1]); "
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


def test_nothing_is_kept_of_who_uses_it(directory: Path, tmp_path: Path) -> None:
    """ONNX Runtime would write an id of the machine into the user's home, to report with."""
    script = (
        "import sys; from pathlib import Path; import numpy as np; "
        "from soundlake.model.saved import artifact; "
        "artifact.Encoder(Path(sys.argv[1]), 1).encode(np.zeros((1, 16, 16), np.float32))"
    )
    kept = {name: str(tmp_path) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"} | kept
    subprocess.run(
        [sys.executable, "-c", script, directory / artifact.ENCODER],
        check=True,
        cwd=Path(__file__).parents[2],
        env=environment,
        timeout=300,
    )
    assert list(tmp_path.rglob("*")) == []
