"""extract --recheck: what a newer decoder reads otherwise is decoded again, the rest stays, nothing is done twice."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import soundfile

from soundlake.model.features.records import decode, read_framed
from soundlake.pipelines import commands
from soundlake.pipelines.cli.program import main
from soundlake.pipelines.extract import plan
from soundlake.pipelines.lake import ledger, lookup
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.upkeep import recheck
from tests.upgrade.conftest import SPEC_ID, Old


def rows(lake: Lake) -> dict[str, dict[str, Any]]:
    columns = ledger.SCHEMA.names
    return {row["uri"]: row for row in ledger.read(ledger.open_ledger(lake, SPEC_ID), columns)}


def shards(lake: Lake) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in Path(lake.root).glob("features/*/shards/*.tfrecord")}


def stored(lake: Lake, row: dict[str, Any]) -> set[int]:
    """Windows that training and encoding read of a row's recording."""
    found = []
    for bundle in row["bundles"]:
        for data in read_framed(io.BytesIO(shards(lake)[bundle])):
            record = decode(data, window_frames=16, n_mels=16)
            if record.recording_id == row["recording_id"]:
                found.append(record.window)
    assert len(found) == len(set(found)) == row["windows"]
    return set(found)


def extract(old: Old, **given: Any) -> dict[str, Any]:
    return commands.extract(old.lake, str(old.audio), spec=lookup.parse_spec(old.spec), **given)


def parts(chain: Path) -> list[float]:
    """Seconds of each of the chained streams, decoded by itself."""
    data = chain.read_bytes()
    second = data.index(b"OggS\0\2", 4)
    return [soundfile.info(io.BytesIO(part)).duration for part in (data[:second], data[second:])]


def test_an_old_lake_gets_its_second_halves(old_3: Old, capsys: pytest.CaptureFixture[str]) -> None:
    before, files = rows(old_3.lake), shards(old_3.lake)
    chain = str(old_3.audio / "chain.ogg")
    first, second = parts(old_3.audio / "chain.ogg")
    # Without being asked nothing is decoded again: files at another place are known by content, as they were.
    plain = extract(old_3)
    assert (plain["done"], plain["recordings"]) == (17, 0)
    assert shards(old_3.lake) == files
    assert {row["decoder"] for row in rows(old_3.lake).values()} == {None}
    assert rows(old_3.lake)[chain]["duration_s"] == pytest.approx(first, abs=0.01)
    assert main(["status", "--json", "--lake", old_3.lake.root]) == 0
    told = json.loads(capsys.readouterr().out)["specs"][SPEC_ID]["older_decoder"]
    assert told == {"/tmp/soundlake-fixture/audio": 17, str(old_3.audio): 17}

    planned = commands.plan(old_3.lake, str(old_3.audio), spec=lookup.parse_spec(old_3.spec))
    assert (planned["unchanged"], planned["older_decoder"], planned["recordings"]) == (17, 17, 0)

    found = extract(old_3, recheck=True)["recheck"]
    # Copies in another corpus, which is not there, are of the same recordings.
    assert found == {"same": 32, "different": 2, "unreachable": 0, "example": None}
    after = rows(old_3.lake)
    assert {row["decoder"] for row in after.values()} == {2}
    # A tenth of a second: the second stream may start later than it by its own stamps.
    assert after[chain]["duration_s"] == pytest.approx(first + second, abs=0.15)
    assert len(stored(old_3.lake, after[chain])) > before["/tmp/soundlake-fixture/audio/chain.ogg"]["windows"]
    assert after[chain]["bundles"] == after["/tmp/soundlake-fixture/audio/chain.ogg"]["bundles"]
    # All others stay where they are, and the old shards as they were.
    assert shards(old_3.lake).items() >= files.items()
    assert len(shards(old_3.lake)) == len(files) + 1
    for uri, row in before.items():
        if "chain" not in uri:
            now = after[uri]
            assert {k: now[k] for k in ("bundles", "windows", "duration_s", "label", "corpus")} == {
                k: row[k] for k in ("bundles", "windows", "duration_s", "label", "corpus")
            }
            stored(old_3.lake, now)

    # A second call has nothing to do, and makes no version.
    version, now = ledger.open_ledger(old_3.lake, SPEC_ID).version, shards(old_3.lake)
    assert extract(old_3, recheck=True)["recheck"]["same"] == 0
    assert ledger.open_ledger(old_3.lake, SPEC_ID).version == version
    assert shards(old_3.lake) == now
    # The table follows.
    encoded = commands.encode(old_3.lake)
    assert encoded["encoded"] == after[chain]["windows"]


def test_killed_before_its_commit(old_3: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was decoded is found again, byte for byte; a plain extract takes nothing of it for its own."""

    def killed(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    extract(old_3)
    files, before = shards(old_3.lake), rows(old_3.lake)
    with monkeypatch.context() as patch:
        patch.setattr(recheck.fragments, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            extract(old_3, recheck=True)
    (made,) = shards(old_3.lake).keys() - files.keys()
    path = Path(old_3.lake.root) / "features" / SPEC_ID / "shards" / f"{made}.tfrecord"
    moment = path.stat().st_mtime_ns
    assert extract(old_3)["done"] == 0
    assert rows(old_3.lake) == before
    assert extract(old_3, recheck=True)["recheck"]["different"] == 2
    assert path.stat().st_mtime_ns == moment
    assert rows(old_3.lake)[str(old_3.audio / "chain.ogg")]["bundles"] == [made]


def test_what_is_gone_damaged_or_rejected(old_3: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of a few bundles: what cannot be read stays, a damaged shard is left behind, a reject is heard."""
    monkeypatch.setattr(recheck, "ROUND_WINDOWS", 60)
    (old_3.audio / "empty.wav").write_bytes(b"")
    (old_3.audio / "text.wav").write_bytes(b"no sound at all" * 100)
    extract(old_3)
    lake = old_3.lake
    # As an older version would have left them: one rejected at its probe, one whose sound its decoder did not find.
    dataset = ledger.open_ledger(lake, SPEC_ID)
    silent = str(old_3.audio / "rain-05.flac")
    dataset.update({"decoder": "CAST(NULL AS INT)"})
    dataset.update(
        {"status": "'rejected'", "stage": "'features'", "reason": "'silent'"}, where="uri LIKE '%rain-05.flac'"
    )
    bundle = rows(lake)[str(old_3.audio / "bell-01.flac")]["bundles"][0]
    shard = Path(lake.root) / "features" / SPEC_ID / "shards" / f"{bundle}.tfrecord"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 255
    shard.write_bytes(data)
    gone, recheck_files = rows(lake)["/tmp/soundlake-fixture/audio/wind-07.flac"], recheck.recheck

    def later(*given: Any, **named: Any) -> dict[str, Any]:
        (old_3.audio / "wind-07.flac").unlink()
        return recheck_files(*given, **named)

    monkeypatch.setattr(recheck, "recheck", later)
    found = extract(old_3, recheck=True)["recheck"]
    assert (found["unreachable"], found["example"]) == (2, str(old_3.audio / "wind-07.flac"))
    after = rows(lake)
    assert after["/tmp/soundlake-fixture/audio/wind-07.flac"] == gone
    assert after[silent]["status"] == "done"
    assert {after[str(old_3.audio / name)]["decoder"] for name in ("text.wav", "empty.wav")} == {2}
    others = [row for row in after.values() if row["status"] == "done" and "wind-07" not in row["uri"]]
    assert {row["decoder"] for row in others} == {2}
    # The damaged shard is read no further than its damage: what lies behind it went elsewhere.
    behind = [row for row in others if bundle not in row["bundles"]]
    assert len(behind) > found["unreachable"]
    for row in behind:
        stored(lake, row)


def test_a_bundle_has_another_name_for_another_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = lookup.parse_spec("general")
    segment = plan.Segment("ab" * 32, 0, None, 3)
    now = plan.bundle_id(spec, [segment])
    monkeypatch.setattr(plan, "DECODER_VERSION", 3)
    assert plan.bundle_id(spec, [segment]) != now
