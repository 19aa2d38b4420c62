"""An Airflow of its own for these tests, set up before anything imports it: a folder that goes when they end."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.dags.bags import DAGS, SETTINGS

HOME = Path(tempfile.mkdtemp(prefix="soundlake-airflow-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
(HOME / "soundlake.toml").write_text(SETTINGS)

for name in [name for name in os.environ if name.startswith(("AIRFLOW", "SOUNDLAKE"))]:
    del os.environ[name]
# With it every process that imports Airflow compiles it, and keeps nothing.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ |= {
    "AIRFLOW_HOME": str(HOME),
    "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "PYTHONPATH": str(DAGS),
    "SOUNDLAKE_SETTINGS": str(HOME / "soundlake.toml"),
}
sys.path.insert(0, str(DAGS))


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        # Of Airflow's own use of pathspec, at each look into a folder.
        "ignore:GitWildMatchPattern",
        # Of the server that dag.test has within its process.
        "ignore:Using `httpx` with `starlette.testclient`",
        "ignore:The anyio.abc.BlockingPortal alias",
        "error::airflow.utils.deprecation_tools.DeprecatedImportWarning",
        "error::airflow.sdk.exceptions.RemovedInAirflow4Warning",
    ):
        config.addinivalue_line("filterwarnings", line)
