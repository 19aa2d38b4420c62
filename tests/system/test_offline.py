"""The local engine needs nothing but this machine, and says nothing that people would have to know to ignore."""

import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import Made
from tests.system.lakes import Command, ledger_rows, shards, table_rows

# What a command says of its own while it works; libraries' lines would have other words, whoever prints them.
PROGRESS = re.compile(r"soundlake: (extracting|encoding): .*")


def offline(*arguments: str | Path) -> str:
    """Run a command without a network; what it says on stderr beside its progress."""
    command = Command(*arguments, offline=True)
    assert command.end() == 0, command.err
    return "\n".join(line for line in command.err.splitlines() if not PROGRESS.fullmatch(line))


@pytest.mark.parametrize("how", [(), ("-v",), ("--", "--runner=DirectRunner")])
def test_extract_encode_and_search(made: Made, tmp_path: Path, how: tuple[str, ...]) -> None:
    lake = tmp_path / "lake"
    assert offline("extract", made.audio, "--lake", lake, *how) == ""
    there = Path(made.lake.root)
    assert shards(lake) == shards(there)
    assert ledger_rows(lake) == ledger_rows(there)

    shutil.copytree(there / "models", lake / "models")
    assert offline("encode", "--lake", lake, *how) == ""
    assert len(table_rows(lake)) == len(table_rows(there)) > 0

    recording = sorted(made.audio.glob("**/*.wav"))[0]
    assert offline("search", recording, "--lake", lake, *[word for word in how if word == "-v"]) == ""
