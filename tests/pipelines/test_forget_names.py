"""Forget, what it does with names: one of several, gone ones, unknown ones, lists; and with runs that are at work."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import lance
import pytest

from soundlake.model.errors import InputError, TryLaterError
from soundlake.model.features.log_mel import PRESETS
from soundlake.pipelines import commands
from soundlake.pipelines.cli.program import main
from soundlake.pipelines.encode import finish as finish_encode
from soundlake.pipelines.extract import finish
from soundlake.pipelines.extract.bundle import read_outcomes
from soundlake.pipelines.lake import fragments, ledger
from soundlake.pipelines.lake.forgotten import Memory
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.runs import Run, run_manifest
from soundlake.pipelines.upkeep import erasure
from soundlake.pipelines.upkeep.forget import forget
from tests.conftest import Made
from tests.pipelines.opened import holding
from tests.pipelines.test_extract import corpus, rows, run, sha256, shards, windows_of, write

SPEC = PRESETS["general"].spec_id


@pytest.fixture
def extracted(tmp_path: Path) -> tuple[Path, Lake]:
    audio = corpus(tmp_path / "audio")
    lake = Lake.at(str(tmp_path / "lake"))
    run(lake, audio)
    return audio, lake


def names_left(lake: Lake, *paths: Path) -> dict[str, set[str]]:
    """Files of the lake that know of a recording, by its path, name or digest."""
    needles = {str(path): [str(path).encode(), path.name.encode()] for path in paths}
    return holding(Path(lake.root), needles)


def test_one_of_two_names_goes_and_the_content_with_the_last(made: Made, tmp_path: Path) -> None:
    lake = made.copy(tmp_path)
    original = sorted(made.audio.glob("bell/*"))[0]
    copy = tmp_path / "copies" / f"copy{original.suffix}"
    copy.parent.mkdir()
    shutil.copyfile(original, copy)
    recording_id = sha256(copy)
    assert run(lake, copy.parent)["done"] == 1
    commands.encode(lake)
    before = windows_of(lake)
    first, last = sorted((original, copy), key=str)
    told = forget(lake, [str(first)])
    assert (told["recordings"], told["names"]) == (0, 1)
    assert told["models"] == []  # the content stays
    assert names_left(lake, first) == {str(first): set()}
    assert windows_of(lake) == before
    (path,) = Path(lake.root).glob("tables/*.lance")
    table = lance.dataset(path).to_table(filter=f"recording_id = '{recording_id}'").to_pylist()
    assert {row["uri"] for row in table} == {str(last)}
    assert {row["id"] for row in table} == {f"{recording_id}:{window}" for one, window in before if one == recording_id}
    assert {row["recording_id"]: row["uri"] for row in rows(lake).values()}[recording_id] == str(last)
    (said,) = [
        row
        for bundle in rows(lake)[str(last)]["bundles"]
        for row in read_outcomes(lake, SPEC, bundle) or ()
        if row["recording_id"] == recording_id
    ]
    assert (said["uri"], said["mtime_ns"]) == (str(last), last.stat().st_mtime_ns)
    again = run(lake, first.parent)
    assert (again["forgotten"], again["gone"]) == (1, 0)
    assert str(first) not in rows(lake)

    told = forget(lake, [str(last)])
    assert (told["recordings"], told["names"]) == (1, 1)
    assert not [key for key in windows_of(lake) if key[0] == recording_id]
    assert holding(Path(lake.root), {"digest": [recording_id.encode()]}) == {"digest": set()}


def test_a_recording_goes_with_all_its_names_and_other_content_may_take_one(extracted: tuple[Path, Lake]) -> None:
    audio, lake = extracted
    shutil.copyfile(audio / "6.wav", audio / "same.wav")
    run(lake, audio)
    recording_id = sha256(audio / "6.wav")
    told = forget(lake, recordings=[recording_id])
    assert (told["recordings"], told["names"]) == (1, 2)
    assert names_left(lake, audio / "6.wav", audio / "same.wav") == {
        str(audio / "6.wav"): set(),
        str(audio / "same.wav"): set(),
    }
    # Not read again: its digest is not asked for as long as it is the same file.
    os.rename(audio / "6.wav", audio / "renamed.wav")
    found = run(lake, audio)
    assert (found["forgotten"], found["listed"], found["unchanged"]) == (2, 8, 6)
    assert names_left(lake, audio / "renamed.wav") == {str(audio / "renamed.wav"): set()}
    memory = Memory.of(lake)
    info = (audio / "renamed.wav").stat()
    assert memory.known(str(audio / "renamed.wav"), info.st_size, info.st_mtime_ns)
    # A recording was forgotten, and not the name: what comes under it now is another one.
    write(audio / "same.wav", 5.0, seed=99)
    found = run(lake, audio)
    assert (found["forgotten"], found["done"]) == (1, 1)
    assert commands.plan(lake, str(audio), spec=PRESETS["general"])["forgotten"] == 1


def test_a_name_stays_forgotten_whatever_the_file_holds(extracted: tuple[Path, Lake]) -> None:
    audio, lake = extracted
    forget(lake, [str(audio / "6.wav")])
    write(audio / "6.wav", 9.0, seed=77)
    assert run(lake, audio)["forgotten"] == 1
    assert str(audio / "6.wav") not in rows(lake)


def test_what_left_the_ledger_before_is_still_in_the_lake(extracted: tuple[Path, Lake]) -> None:
    """Deleted from the corpus: its windows, outcomes and old versions stay until it is forgotten."""
    audio, lake = extracted
    gone, recording_id = audio / "6.wav", sha256(audio / "6.wav")
    gone.unlink()
    run(lake, audio)
    assert str(gone) not in rows(lake)
    assert names_left(lake, gone)[str(gone)]
    told = forget(lake, [str(gone)])
    assert (told["recordings"], told["names"]) == (1, 1)
    assert names_left(lake, gone) == {str(gone): set()}
    assert recording_id not in {key[0] for key in windows_of(lake)}


def test_many_at_once_write_a_shard_once(extracted: tuple[Path, Lake], tmp_path: Path) -> None:
    audio, lake = extracted
    names = tmp_path / "names.txt"
    listed = [audio / f"{i}.wav" for i in (2, 3, 4)]
    names.write_text("\n".join([*map(str, listed[:2]), "", sha256(listed[2]), "/nowhere/x.wav"]) + "\n")
    kept = {key: value for key, value in windows_of(lake).items() if key[0] not in set(map(sha256, listed))}
    assert main(["forget", "--file", str(names), "--lake", lake.root, "--json"]) == 0
    assert windows_of(lake) == kept
    assert len(shards(lake)) == 1
    assert names_left(lake, *listed) == {str(path): set() for path in listed}


def test_words(extracted: tuple[Path, Lake], capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    audio, lake = extracted
    monkeypatch.chdir(audio)
    at = ["--lake", lake.root]
    assert main(["forget", "nothing.wav", "6.wav", *at]) == 2
    said = capsys.readouterr().err
    assert f"knows no file {audio / 'nothing.wav'}" in said
    assert "nothing was forgotten" in said
    assert str(audio / "6.wav") in rows(lake)
    assert main(["forget", *at]) == 2
    assert main(["forget", "--recording", "a" * 64, *at]) == 2
    capsys.readouterr()
    assert main(["forget", "6.wav", f"file://{audio}/5.wav", *at]) == 0
    assert "forgotten: 2 recordings, 2 names" in capsys.readouterr().out
    assert main(["forget", str(audio / "6.wav"), *at]) == 0
    assert "already forgotten" in capsys.readouterr().out
    assert main(["forget", "--recording", sha256(audio / "6.wav"), *at]) == 0
    assert "already forgotten" in capsys.readouterr().out
    # Names tell seconds: those of runs in one second are in any order.
    manifest = max(Path(lake.root, "runs").glob("*-forget-*"), key=lambda path: path.stat().st_mtime_ns)
    assert json.loads(manifest.read_text())["counts"]["already"] == 1
    main(["extract", str(audio), *at])
    assert "5 files are unchanged, 2 forgotten" in capsys.readouterr().out


def test_a_run_that_planned_before_does_not_bring_it_back(extracted: tuple[Path, Lake], monkeypatch: Any) -> None:
    """Forget comes between an extract's pipeline and its commit."""
    audio, lake = extracted
    path = write(audio / "late.wav", 8.0, seed=5)
    run(lake, audio)
    path.touch()  # another time of change: a row to write
    write(audio / "new.wav", 4.0, seed=6)
    real, calls = finish.extract, []

    def between(run: Run, *given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            forget(lake, [str(path), str(audio / "6.wav")])
        return real(run, *given, **more)

    monkeypatch.setattr(finish, "extract", between)
    found = run(lake, audio)
    assert len(calls) == 2
    assert (found["forgotten"], found["done"]) == (2, 1)
    assert names_left(lake, path, audio / "6.wav") == {str(path): set(), str(audio / "6.wav"): set()}


def test_a_first_extract_finds_out_without_a_ledger(tmp_path: Path, monkeypatch: Any) -> None:
    """What a killed first extract left knows the recording; another one, planned before, has yet to commit."""
    audio, lake = corpus(tmp_path / "audio"), Lake.at(str(tmp_path / "lake"))
    real, calls = finish.extract, []

    def between(run: Run, *given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            assert ledger.open_ledger(lake, SPEC) is None
            assert forget(lake, [str(audio / "6.wav")])["recordings"] == 1
        return real(run, *given, **more)

    monkeypatch.setattr(finish, "extract", between)
    found = run(lake, audio)
    assert (len(calls), found["forgotten"], found["listed"]) == (2, 1, 7)
    assert names_left(lake, audio / "6.wav") == {str(audio / "6.wav"): set()}


def test_an_encode_that_planned_before_does_not_bring_it_back(made: Made, tmp_path: Path, monkeypatch: Any) -> None:
    lake = made.copy(tmp_path)
    new = [write(tmp_path / "more" / f"new{i}.wav", 5.0, seed=60 + i) for i in range(2)]
    run(lake, tmp_path / "more")
    real, calls = finish_encode.encode, []

    def between(*given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            assert forget(lake, [str(new[0])])["recordings"] == 1
        return real(*given, **more)

    monkeypatch.setattr(finish_encode, "encode", between)
    assert commands.encode(lake)["encoded"] > 0
    assert len(calls) == 2
    (path,) = Path(lake.root).glob("tables/*.lance")
    uris = set(lance.dataset(path).to_table()["uri"].to_pylist())
    assert (str(new[0]) in uris, str(new[1]) in uris) == (False, True)
    assert names_left(lake, new[0]) == {str(new[0]): set()}


def test_what_fails_meanwhile_may_go_through_later_and_names_nothing(extracted: tuple[Path, Lake]) -> None:
    audio, lake = extracted

    def fail() -> None:
        with run_manifest(lake, "encode", {}):
            forget(lake, [str(audio / "6.wav")])
            raise InputError(f"the shard of {audio / '6.wav'} is missing")

    with pytest.raises(TryLaterError, match="forgotten meanwhile"):
        fail()
    assert names_left(lake, audio / "6.wav") == {str(audio / "6.wav"): set()}


def test_a_damaged_memory_brings_nothing_back(extracted: tuple[Path, Lake]) -> None:
    audio, lake = extracted
    forget(lake, [str(audio / "6.wav")])
    Path(lake.root, "forgotten.json").write_text("{}")
    with pytest.raises(InputError, match="restore it from a copy"):
        Memory.of(lake)
    assert main(["extract", str(audio), "--lake", lake.root]) != 0
    assert str(audio / "6.wav") not in rows(lake)


def test_a_tag_is_told(extracted: tuple[Path, Lake]) -> None:
    audio, lake = extracted
    known = ledger.open_ledger(lake, SPEC)
    known.tags.create("keep", 1)
    with pytest.raises(InputError, match=r"tags \(keep\).*run the same command again"):
        forget(lake, [str(audio / "6.wav")])
    known.tags.delete("keep")
    forget(lake, [str(audio / "6.wav")])
    assert names_left(lake, audio / "6.wav") == {str(audio / "6.wav"): set()}


def test_only_what_holds_it_is_written_anew(tmp_path: Path) -> None:
    lake = Lake.at(str(tmp_path / "lake"))
    for i in range(4):
        run(lake, write(tmp_path / f"c{i}" / f"only{i}.wav", 6.0, seed=i).parent)
    before, files = fragments.numbers(ledger.open_ledger(lake, SPEC)), shards(lake)
    forget(lake, [str(tmp_path / "c2" / "only2.wav")])
    assert len(set(before) & set(fragments.numbers(ledger.open_ledger(lake, SPEC)))) == 3
    assert shards(lake).items() < files.items()


def test_what_cannot_be_looked_through_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged shard whose outcomes are gone, too: what is in it cannot be ruled out."""
    lake = Lake.at(str(tmp_path / "lake"))
    first, second = (write(tmp_path / f"c{i}" / f"only{i}.wav", 6.0, seed=i) for i in range(2))
    run(lake, first.parent)
    (bundle,) = rows(lake)[str(first)]["bundles"]
    run(lake, second.parent)
    shard = Path(lake.root, Lake.shard(SPEC, bundle))
    shard.write_bytes(shard.read_bytes()[:20])
    (outcomes,) = Path(lake.root).rglob(f"{bundle}.parquet")
    outcomes.unlink()
    forget(lake, [str(second)])
    (told,) = (record.getMessage() for record in caplog.records if "behind the damage" in record.getMessage())
    assert str(shard) in told
    assert "extract AUDIO --repair" in told


def test_the_memory_tells_nothing(extracted: tuple[Path, Lake]) -> None:
    """Digests are keyed: nobody finds a recording in it by hashing what it might be."""
    audio, lake = extracted
    forget(lake, [str(audio / "6.wav")])
    said = json.loads(Path(lake.root, "forgotten.json").read_text())
    assert {name: len(said[name]) for name in ("names", "recordings", "files")} == {
        "names": 1,
        "recordings": 1,
        "files": 1,
    }
    import hmac

    uri = json.dumps(["name", str(audio / "6.wav")]).encode()
    assert said["names"] == [hmac.new(bytes.fromhex(said["key"]), uri, "sha256").hexdigest()]
    assert len(bytes.fromhex(said["key"])) == 32
    assert erasure.mark_swept(lake, SPEC) == Memory.of(lake).mark
