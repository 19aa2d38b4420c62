"""A lake in a bucket and its twin on a disk, made by the same commands, and compared to the last number."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soundlake.model.features.records import decode, read_framed
from tests.buckets.server import Server
from tests.system.lakes import Command, half_made, ledger_rows, shards, table_rows


def windows(lake: Path, rows: list[dict[str, Any]]) -> dict[tuple[str, int], bytes]:
    """Records of all recordings, by recording and window, as the ledger's rows name their bundles."""
    found: dict[tuple[str, int], bytes] = {}
    for recording_id, bundles in {row["recording_id"]: row["bundles"] for row in rows if row["windows"]}.items():
        for bundle in bundles:
            (path,) = lake.glob(f"features/*/shards/{bundle}.tfrecord")
            with open(path, "rb") as file:
                for data in read_framed(file):
                    record = decode(data, window_frames=128, n_mels=128)
                    if record.recording_id == recording_id:
                        assert (recording_id, record.window) not in found
                        found[recording_id, record.window] = data
    return found


@dataclass(frozen=True)
class Trained:
    """A lake on a disk, and two models of it.

    Which models they are follows from what was heard, not from where: they are those of any lake of the same corpus.
    """

    lake: Path
    first: str
    second: str


@dataclass
class Twins:
    """A lake in a bucket and one on a disk, each with a corpus of its own that holds the same.

    Attributes
    ----------
    server, bucket, folder : Server, str, Path
        Where they lie.
    environment : dict of str to str
        Of commands on the lake in the bucket.
    again : list of str
        What commands said that had to be called again.
    """

    server: Server
    bucket: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)

    @property
    def audio(self) -> Path:
        return self.folder / "audio"

    @property
    def near(self) -> Path:
        return self.folder / "near"

    @property
    def far(self) -> str:
        return f"s3://{self.bucket}/lake"

    @property
    def far_audio(self) -> str:
        return f"s3://{self.bucket}/audio"

    def started(self, name: str, *arguments: str, **environment: str) -> Command:
        """A command on the lake in the bucket."""
        call = [name, *arguments, "--lake", self.far]
        return Command(*call, small=True, environment=self.environment | environment)

    def done(self, name: str, *arguments: str, **environment: str) -> Command:
        """The same to its end, which must be a good one; what may go through later is called again, and counted."""
        for _ in range(5):
            command = self.started(name, *arguments, **environment)
            if command.end() != 75:
                break
            self.again.append(f"{name}: {command.err.splitlines()[-1]}")
        assert command.process.returncode == 0, command.err
        return command

    def fetched(self) -> Path:
        """A copy of the lake as it is, to look at."""
        shutil.rmtree(self.folder / "far", ignore_errors=True)
        return self.server.download(self.bucket, "lake", self.folder / "far")

    def same(self, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of either lake without what says where and when a file was written."""
        named = []
        for row in found:
            one = {key: value for key, value in row.items() if key not in ("mtime_ns", "corpus")}
            named.append(one | {"uri": row["uri"].replace(self.far_audio, str(self.audio))})
        return sorted(named, key=lambda row: (row["uri"], row.get("window", 0)))

    def compare(self, *, table: bool = True, bundles: bool = True) -> None:
        """Nothing lost, nothing doubled, nothing half made.

        Of `bundles`, where both packed the same work: two writers of parts that overlap pack it otherwise.
        """
        far, near = self.fetched(), self.near
        rows = [self.same(ledger_rows(lake)) for lake in (far, near)]
        if bundles:
            assert shards(far) == shards(near)
        else:
            assert windows(far, rows[0]) == windows(near, rows[1])
            rows = [[row | {"bundles": None} for row in found] for found in rows]
        assert rows[0] == rows[1]
        assert not list(half_made(far))
        if table:
            assert self.same(table_rows(far)) == self.same(table_rows(self.near))

    def give(self, trained: Trained) -> None:
        """Both lakes the same models, to the byte, none in use: every number of the tables can be compared."""
        for model in (trained.first, trained.second):
            source = trained.lake / "models" / model
            shutil.copytree(source, self.near / "models" / model)
            self.server.upload(source, self.bucket, f"lake/models/{model}")

    def put(self, path: Path) -> None:
        self.server.client().upload_file(str(path), self.bucket, f"audio/{path.relative_to(self.audio)}")

    def drop(self, path: Path) -> None:
        path.unlink()
        self.server.client().delete_object(Bucket=self.bucket, Key=f"audio/{path.relative_to(self.audio)}")
