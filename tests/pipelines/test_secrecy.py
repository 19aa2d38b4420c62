"""Secrets are neither written down nor said."""

import json
import shutil
from pathlib import Path

import pytest

from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.runs import run_manifest
from soundlake.pipelines.storage.secrecy import refuse_secrets, without_secrets
from tests.conftest import Made
from tests.pipelines.hostile import call

CANARIES = {
    "AWS_ACCESS_KEY_ID": "canary-key-id-51",
    "AWS_SECRET_ACCESS_KEY": "canary-secret-52",
    "AWS_SESSION_TOKEN": "canary-session-53",
    "GOOGLE_APPLICATION_CREDENTIALS": "/nowhere/canary-google-54.json",
    "AZURE_STORAGE_CONNECTION_STRING": "canary-azure-55",
    "SOME_PASSWORD": "canary-other-56",
}


def test_no_secret_is_written_down_or_said(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    lake = made.copy(tmp_path)
    audio = tmp_path / "audio"
    shutil.copytree(made.audio, audio)
    refused = ["--s3_secret_access_key=canary-option-57"]
    secret = ["--azure_connection_string=canary-option-58", "--azure_managed_identity_client_id=me"]
    uri = "s3://user:canary-password-59@bucket/audio"
    said = ""
    for code, *arguments in [
        (0, "extract", str(audio), "--lake", lake.root, "--json", "--", *secret),
        (2, "extract", str(audio), "--lake", lake.root, "--", *refused),
        (2, "extract", str(audio), "--lake", lake.root, "--", *secret, "--bogus=1"),
        (2, "-v", "extract", uri, "--lake", lake.root),
        (2, "extract", uri, "--lake", lake.root),
        (2, "extract", f"{uri}?secret_key=canary-query-60", "--lake", lake.root),
        (2, "extract", str(audio), "--lake", "s3://user:canary-password-61@bucket/lake"),
        (2, "extract", str(audio), "--lake", "s3://bucket/lake?access_key=a&secret_key=canary-query-62"),
        (2, "extract", str(audio), "--lake", lake.root, "--labels", f"{uri}/labels.csv"),
        (2, "search", f"{uri}/a.wav", "--lake", lake.root),
        (2, "evaluate", "--folds", f"{uri}/folds.csv", "--lake", lake.root),
        (0, "status", "--lake", lake.root, "--json"),
        (0, "maintain", "--lake", lake.root, "--json"),
    ]:
        found, out, err = call(capsys, *arguments)
        assert found == code or (found == 2 and arguments[0] == "-v"), (arguments, err)
        said += out + err
    assert "canary" not in said
    for path in tmp_path.rglob("*"):
        assert "canary" not in path.name
        if path.is_file():
            assert b"canary" not in path.read_bytes(), path
    manifest = json.loads(max(Path(lake.root, "runs").glob("*-extract-*.json")).read_text())
    assert manifest["settings"]["beam"] == ["--azure_connection_string=…", secret[1]]


def test_a_failed_run_keeps_no_secret(tmp_path: Path) -> None:
    lake = Lake.at(str(tmp_path))
    with pytest.raises(RuntimeError), run_manifest(lake, "x", {"beam": ["--azure_connection_string=canary"], "n": 1}):
        raise RuntimeError("oh")
    (path,) = tmp_path.glob("runs/*.json")
    assert "canary" not in path.read_text()
    assert json.loads(path.read_text())["settings"]["n"] == 1


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/audio",
        "/home/a:b@c/audio",
        "s3://bucket/a:b@c/x.wav",
        "abfs://container@account.dfs.core.windows.net/lake",
        "s3://bucket/what?.wav",
        "FILE@1-2",
        "gs://b/token.wav",
    ],
)
def test_uris_without_secrets(uri: str) -> None:
    refuse_secrets(uri)


def test_options_without_secrets() -> None:
    plain = ["--runner=DataflowRunner", "--dataflow_kms_key=projects/p", "--no_auth", "secret=1", {"a": ("b", 2, None)}]
    assert without_secrets(plain) == [*plain[:4], {"a": ["b", 2, None]}]
