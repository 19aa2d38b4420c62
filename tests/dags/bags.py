"""The DAGs of this repository with settings of one's own. Imports Airflow where it is needed, and not before."""

from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DAGS = REPOSITORY / "dags"

# Corpora of both kinds, and every number another than its default: one that is not passed on shows.
SETTINGS = """
lake = "/srv/my lake"
command = ["/opt/soundlake/bin/soundlake"]
spec = "wildlife"
alert = "http://127.0.0.1:9/hook"
inherit = ["SSL_CERT_FILE"]

[corpora.birds]
audio = "/srv/birds"
by_folder = true

[corpora.attic]
audio = "gs://bucket/attic"
by_folder = true
labels = "gs://bucket/attic.csv"

[corpora.city]
audio = "/srv/city"
labels = "/srv/city.csv"

[schedule]
extract = "15 3 * * *"
train = "30 4 * * 1"
maintain = "45 5 * * 2"

[training]
grown = 0.5
preset = "seed"
steps = 700

[limits]
side_by_side = 5
retries = 4
retry_minutes = 2
longest_retry_minutes = 30
hours = 6
late_hours = 8
recall = 0.8
max_rejects = 40

[environment]
TF_NUM_INTRAOP_THREADS = "2"

[kubernetes]
image = "example.org/soundlake:1"
namespace = "sounds"
service_account = "lake-keeper"
cpu = "3"
memory = "5Gi"
claim = "lake"
mounted_at = "/srv"

[beam]
dataflow = ["--project=p", "--region=europe-west3", "--temp_location=gs://bucket/tmp"]
spark = ["--spark_master_url=spark://127.0.0.1:7077"]
flink = ["--flink_master=127.0.0.1:8081", "--parallelism=8"]
"""


def bag_of(file: Path) -> Any:
    """All DAGs, as Airflow loads them with these settings."""
    from airflow.dag_processing.dagbag import DagBag

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUNDLAKE_SETTINGS", str(file))
        return DagBag(dag_folder=str(DAGS))


def bag_with(folder: Path, text: str) -> Any:
    """The same, from the text of a settings file."""
    file = folder / "soundlake.toml"
    file.write_text(text)
    return bag_of(file)
