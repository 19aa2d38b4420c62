"""Reading a query, and cutting it as extract cuts a recording."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import PRESETS, dequantise
from soundlake.model.saved import artifact
from soundlake.pipelines.encode import encoder
from soundlake.pipelines.lake import table
from soundlake.pipelines.query.query import cuts, load_query, parse_query
from tests.conftest import Made


@pytest.mark.parametrize("kind", ["bell", "bird", "drum", "rain"])
def test_a_whole_file_is_cut_as_extract_cut_it(made: Made, kind: str) -> None:
    """Windows on the grid are those of the shard bit for bit, and their embeddings those of the table."""
    path = sorted(made.audio.glob(f"{kind}/*"))[0]
    model = artifact.load(Path(made.result["report"]).parent)
    rows = table.need_table(made.lake, model.model_id).to_table(filter=f"uri = '{path}'").to_pylist()
    rows.sort(key=lambda row: row["window"])
    shards = {row["bundle"] for row in rows}
    records = [record for name in shards for record, _ in encoder.read_shard(made.lake, model.spec, name)]
    stored = {record.window: record.values for record in records if record.recording_id == rows[0]["recording_id"]}
    seen = [cut.seen for cut in cuts(load_query(str(path), model.spec)) if cut.on_grid]
    assert len(seen) == len(rows) == len(stored)
    for window, cut in enumerate(seen):
        np.testing.assert_array_equal(cut, dequantise(stored[window], model.spec))
    found = model.encoder().encode(np.stack(seen)).embedding
    np.testing.assert_allclose(found, [row["embedding"] for row in rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("span", ["1.0-3.0", "0.777-1.3", "0-0.9", "0.5-"])
def test_a_stretch_has_the_frames_that_the_whole_file_has_there(made: Made, span: str) -> None:
    path = sorted(made.audio.glob("voice/*"))[0]
    spec = artifact.load(Path(made.result["report"]).parent).spec
    whole, part = (load_query(query, spec) for query in (str(path), f"{path}@{span}"))
    start = float(span.partition("-")[0])
    first = -(-round(start * spec.sample_rate) // spec.hop_length)
    assert part.start + part.first_frame() == first * spec.hop_length
    frames = part.phases[0]
    np.testing.assert_array_equal(frames, whole.phases[0][first : first + len(frames)])
    # All of them: the frames centred between the stretch's first sample and its last, the attack included.
    end = float(span.partition("-")[2] or whole.seconds)
    assert len(frames) == int(end * spec.sample_rate) // spec.hop_length - first + 1
    np.testing.assert_array_equal(
        part.samples, whole.samples[round(start * spec.sample_rate) : round(end * spec.sample_rate)]
    )


def test_a_short_file_is_asked_for_as_if_it_began_later(tmp_path: Path) -> None:
    """As the same sound behind so much silence is cut, but for the frames before it, which see its beginning."""
    spec = PRESETS["general"]
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, spec.sample_rate // 4).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, spec.sample_rate, subtype="FLOAT")
    found = [cut.seen for cut in cuts(load_query(str(tmp_path / "a.wav"), spec)) if not cut.on_grid][:3]
    for first, seen in zip((16, 32, 48), found, strict=True):
        silence = np.zeros(first * spec.hop_length, np.float32)
        soundfile.write(tmp_path / "b.wav", np.concatenate([silence, sound]), spec.sample_rate, subtype="FLOAT")
        behind = next(cut.seen for cut in cuts(load_query(str(tmp_path / "b.wav"), spec)) if cut.on_grid)
        np.testing.assert_array_equal(seen[first:], behind[first:])
        assert (seen[:first] == np.float32(spec.floor)).all()


def test_a_part_of_a_file_or_a_long_one_is_not_asked_for_later(tmp_path: Path) -> None:
    """Beyond its ends a part goes on, so nothing is known of silence before it."""
    spec = PRESETS["general"]
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * spec.sample_rate).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, spec.sample_rate, subtype="FLOAT")
    for query in (str(tmp_path / "a.wav"), f"{tmp_path}/a.wav@0.5-0.75"):
        floor = np.float32(spec.floor)
        assert not [cut for cut in cuts(load_query(query, spec)) if (cut.seen[:16] == floor).all()]


@pytest.mark.parametrize("query", ["x.wav", "x.wav@1-2", "0" * 64])
def test_no_such_file(query: str) -> None:
    with pytest.raises(InputError, match="no such file"):
        parse_query(query)


@pytest.mark.parametrize("query", ["", "@1-2"])
def test_no_name(query: str) -> None:
    with pytest.raises(InputError, match="names no file"):
        parse_query(query)


@pytest.mark.parametrize("query", ["s3://bucket", "s3://bucket/", "gs://bucket/folder/", "s3://bucket@1-2", "s3://"])
def test_a_bucket_is_no_file(query: str) -> None:
    with pytest.raises(InputError, match="name a file in the bucket"):
        parse_query(query)


SPANS = ["@", "@3", "@3-1", "@-1-2", "@a-b", "@1-2-3", "@nan-nan", "@0-nan", "@nan-", "@0-inf", "@inf-", "@1e300-"]


@pytest.mark.parametrize("span", SPANS)
def test_wrong_spans(tmp_path: Path, span: str) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    with pytest.raises(InputError, match="span"):
        parse_query(f"{tmp_path / 'a.wav'}{span}")


def test_an_at_sign_in_the_name(tmp_path: Path) -> None:
    path = tmp_path / "me@home-1.wav"
    path.write_bytes(b"x")
    assert parse_query(str(path)) == (str(path), None, None)
    assert parse_query(f"{path}@0.5-2") == (str(path), 0.5, 2.0)
