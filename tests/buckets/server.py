"""A real S3 server, in a process of its own on loopback, and what uses it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.buckets.faults import FaultyProxy

# As the Makefile has it.
VERSION = "v1.8.0"
KEYS = {"AWS_ACCESS_KEY_ID": "soundlake", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_REGION": "us-east-1"}


def program() -> Path:
    """The server, set up by ``make test-s3``."""
    given = os.environ.get("SOUNDLAKE_S3_SERVER")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "soundlake" / "versitygw" / VERSION
    found = Path(given) if given else folder / "versitygw"
    if not found.exists():
        pytest.fail(f"no S3 server at {found}: `make test-s3` sets it up", pytrace=False)
    return found


@dataclass(frozen=True)
class Server:
    """A running S3 server.

    Attributes
    ----------
    port : int
    """

    port: int

    @property
    def address(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self, address: str | None = None, **more: str) -> dict[str, str]:
        """What a command is told to use it by; through another address, such as a proxy's."""
        return {**KEYS, "AWS_ENDPOINT_URL": address or self.address, "NO_PROXY": "127.0.0.1", **more}

    def faulty(self, **given: Any) -> FaultyProxy:
        """A proxy before it."""
        return FaultyProxy(("127.0.0.1", self.port), **given)

    def client(self) -> Any:
        """A client of another kind, for what tests do themselves."""
        import boto3

        keys = {"aws_access_key_id": KEYS["AWS_ACCESS_KEY_ID"], "region_name": KEYS["AWS_REGION"]}
        secret = KEYS["AWS_SECRET_ACCESS_KEY"]
        return boto3.client("s3", endpoint_url=self.address, aws_secret_access_key=secret, **keys)

    def upload(self, folder: Path, bucket: str, prefix: str) -> None:
        """Copy a folder into a bucket."""
        client = self.client()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder)}")

    def download(self, bucket: str, prefix: str, folder: Path) -> Path:
        """Copy a prefix out of a bucket, so that it is compared as any lake on a disk is."""
        client = self.client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
            for item in page.get("Contents", []):
                target = folder / item["Key"].removeprefix(f"{prefix}/")
                target.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(bucket, item["Key"], str(target))
        return folder
