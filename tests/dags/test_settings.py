"""The settings file: all of it read, and whatever is wrong told in one line with its place."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest
from soundlake_airflow import settings
from soundlake_airflow.settings import Corpus, SettingsError, load, parse

from tests.dags.bags import SETTINGS

LEAST = 'lake = "/srv/lake"\n[corpora.birds]\naudio = "/srv/birds"\n'


def test_everything_is_read() -> None:
    assert asdict(parse(SETTINGS, "here")) == {
        "lake": "/srv/my lake",
        "corpora": {
            "birds": {"audio": "/srv/birds", "labels": None, "by_folder": True},
            "attic": {"audio": "gs://bucket/attic", "labels": "gs://bucket/attic.csv", "by_folder": True},
            "city": {"audio": "/srv/city", "labels": "/srv/city.csv", "by_folder": False},
        },
        "command": ("/opt/soundlake/bin/soundlake",),
        "spec": "wildlife",
        "where": "local",
        "alert": "http://127.0.0.1:9/hook",
        "inherit": ("SSL_CERT_FILE",),
        "schedule": {"extract": "15 3 * * *", "train": "30 4 * * 1", "maintain": "45 5 * * 2"},
        "training": {"grown": 0.5, "preset": "seed", "steps": 700},
        "limits": {
            "side_by_side": 5,
            "retries": 4,
            "retry_minutes": 2,
            "longest_retry_minutes": 30,
            "hours": 6,
            "late_hours": 8,
            "recall": 0.8,
            "max_rejects": 40,
        },
        "kubernetes": {
            "image": "example.org/soundlake:1",
            "namespace": "sounds",
            "service_account": "lake-keeper",
            "cpu": "3",
            "memory": "5Gi",
            "claim": "lake",
            "mounted_at": "/srv",
        },
        "beam": {
            "dataflow": ("--project=p", "--region=europe-west3", "--temp_location=gs://bucket/tmp"),
            "spark": ("--spark_master_url=spark://127.0.0.1:7077",),
            "flink": ("--flink_master=127.0.0.1:8081", "--parallelism=8"),
        },
        "environment": {"TF_NUM_INTRAOP_THREADS": "2"},
    }


def test_a_lake_and_a_corpus_are_enough() -> None:
    found = parse(LEAST, "here")
    assert (found.lake, found.corpora) == ("/srv/lake", {"birds": Corpus("/srv/birds")})
    assert (found.where, found.command, found.environment, found.inherit) == ("local", ("soundlake",), {}, ())


@pytest.mark.parametrize(
    "more",
    [
        "[limits]\nretries = 0\nrecall = 0\nhours = 0.5",
        "[limits]\nrecall = 1",
        "[limits]\nmax_rejects = 0",
        "[training]\ngrown = 0\nsteps = 1",
        '[schedule]\nextract = ""\ntrain = "@hourly"\nmaintain = "*/5 1-3 * * 1,2"',
        '[kubernetes]\nclaim = "lake"\nmounted_at = "/lake"',
        '[corpora.a-1_b]\naudio = "s3://bucket/a"\nlabels = "s3://bucket/a.parquet"',
    ],
)
def test_what_may_stand_there(more: str) -> None:
    assert parse(LEAST + more, "here") != parse(LEAST, "here")


# Wrong text, and what the line says of it: the place, and what is wrong.
WRONG = {
    "no lake": (LEAST.partition("\n")[2], "settings lacks 'lake'"),
    "no corpora": ('lake = "/srv/lake"', "settings lacks 'corpora'"),
    "an empty table of corpora": ('lake = "/srv/lake"\n[corpora]', "corpora must be at least one"),
    "a corpus without audio": (LEAST + "[corpora.city]", "settings.corpora.city lacks 'audio'"),
    "a corpus that is no table": (
        'lake = "/l"\ncorpora.birds = "/srv/birds"',
        "settings.corpora.birds must be a table",
    ),
    "corpora that are no table": ('lake = "/l"\ncorpora = 1', "settings.corpora must be a table, not 1"),
    "unknown at the top": ('colour = "red"\n' + LEAST, "settings has no setting 'colour'; it has: lake, corpora"),
    "unknown table": (LEAST + "[limit]\nhours = 1", "settings has no setting 'limit'"),
    "unknown in a table": (LEAST + "[limits]\nhour = 1", "settings.limits has no setting 'hour'; it has: side_by_side"),
    "unknown in a corpus": (LEAST + "folders = true", "settings.corpora.birds has no setting 'folders'"),
    "text for a number": (LEAST + '[limits]\nhours = "6"', "settings.limits.hours must be a number, not '6'"),
    "share for a count": (LEAST + "[limits]\nretries = 1.5", "settings.limits.retries must be a number, not 1.5"),
    "truth for a number": (LEAST + "[training]\nsteps = true", "settings.training.steps must be a number, not True"),
    "number for a text": ("spec = 1\n" + LEAST, "settings.spec must be a text, not 1"),
    "text for truth": (LEAST + 'by_folder = "yes"', "settings.corpora.birds.by_folder must be true or false"),
    "text for a list": ('command = "soundlake"\n' + LEAST, "settings.command must be a list of texts"),
    "numbers in a list": ("inherit = [1]\n" + LEAST, "settings.inherit must be a list of texts, not [1]"),
    "number in the environment": (LEAST + "[environment]\nA = 1", "settings.environment.A must be a text, not 1"),
    "text for Beam's options": (LEAST + '[beam]\nspark = "--x"', "settings.beam.spark must be a list of texts"),
    "corpus name in capitals": (LEAST + '[corpora.City]\naudio = "/c"', "corpora.City: a name is made of a-z"),
    "corpus name with a slash": (LEAST + '[corpora."a/b"]\naudio = "/c"', "corpora.a/b: a name is made of"),
    "corpus name too long": (LEAST + f'[corpora.{"a" * 64}]\naudio = "/c"', "a name is made of"),
    "no such place": ('where = "moon"\n' + LEAST, "where must be one of local, dataflow, spark, flink, kubernetes"),
    "Beam's options for no runner": (LEAST + "[beam]\nlocal = []", "beam.local is no place with a runner"),
    "a secret among Beam's options": (
        LEAST + '[beam]\nspark = ["--s3_secret_access_key=hidden"]',
        "beam.spark: --s3_secret_access_key would be seen in logs",
    ),
    "a password in a URI": (LEAST.replace("/srv/lake", "s3://me:hidden@b/lake"), "lake holds a password, which would"),
    "no command": ("command = []\n" + LEAST, "command must be the program"),
    "an empty command": ('command = [""]\n' + LEAST, "command must be the program"),
    "relative lake": (LEAST.replace("/srv/lake", "lake"), "lake must be an absolute path or a URI, not 'lake'"),
    "relative corpus": (LEAST.replace("/srv/birds", "./birds"), "corpora.birds.audio must be an absolute path"),
    "home is not looked up": (LEAST.replace("/srv/birds", "~/birds"), "corpora.birds.audio must be an absolute"),
    "relative labels": (LEAST + 'labels = "labels.csv"', "corpora.birds.labels must be an absolute path or a URI"),
    "relative spec": ('spec = "mine.json"\n' + LEAST, "spec must be an absolute path or a URI, not 'mine.json'"),
    "pods without an image": ('where = "kubernetes"\n' + LEAST, "kubernetes.image must be the pipelines' image"),
    "a claim without its place": (LEAST + '[kubernetes]\nclaim = "c"', "kubernetes.mounted_at must be an absolute"),
    "negative hours": (LEAST + "[limits]\nhours = -1", "limits.hours must be more than 0, and less than a million"),
    "endless hours": (LEAST + "[limits]\nlate_hours = inf", "limits.late_hours must be more than 0"),
    "no hours": (LEAST + "[limits]\nretry_minutes = nan", "limits.retry_minutes must be more than 0"),
    "negative pause": (LEAST + "[limits]\nlongest_retry_minutes = 0", "limits.longest_retry_minutes must be more"),
    "nothing side by side": (LEAST + "[limits]\nside_by_side = 0", "limits.side_by_side must be more than 0"),
    "no such preset": (LEAST + '[training]\npreset = "big"', "training.preset must be default or seed, not 'big'"),
    "negative retries": (LEAST + "[limits]\nretries = -1", "limits.retries must be 0 or more, not -1"),
    "negative rejects": (LEAST + "[limits]\nmax_rejects = -1", "limits.max_rejects must be 0 or more, not -1"),
    "a share of rejects": (LEAST + "[limits]\nmax_rejects = 0.5", "limits.max_rejects must be a number, not 0.5"),
    "an alert to a file": ('alert = "file:///etc/passwd"\n' + LEAST, "alert must be a URL such as https://"),
    "an alert without a scheme": ('alert = "example.org/hook"\n' + LEAST, "alert must be a URL such as https://"),
    "an alert by mail": ('alert = "me@example.org"\n' + LEAST, "alert must be a URL such as https://"),
    "an alert with a user": ('alert = "https://me:hidden@a.org/"\n' + LEAST, "alert must be a URL such as https://"),
    "an alert without a host": ('alert = "https:///hook"\n' + LEAST, "alert must be a URL such as https://"),
    "an alert in two lines": ('alert = "https://a.org/x\\ny"\n' + LEAST, "alert must be a URL such as https://"),
    "recall in percent": (LEAST + "[limits]\nrecall = 90", "limits.recall must be from 0 to 1, not 90"),
    "negative share": (LEAST + "[training]\ngrown = -0.1", "training.grown must be 0 or more, not -0.1"),
    "negative steps": (LEAST + "[training]\nsteps = -5", "training.steps must be more than 0, not -5"),
    "no cron": (LEAST + '[schedule]\ntrain = "weekly"', "schedule.train must be five fields of cron, one of @hourly"),
    "no preset": (LEAST + '[schedule]\nextract = "@dialy"', "schedule.extract must be five fields of cron"),
    "no TOML": (LEAST + "[limits", "Expected ']'"),
    "a key twice": (LEAST + 'audio = "/b"', "Cannot overwrite a value"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_in_one_line(name: str) -> None:
    text, said = WRONG[name]
    with pytest.raises(SettingsError, match=f"^/etc/here.toml: .*{re.escape(said)}") as error:
        parse(text, "/etc/here.toml")
    assert "\n" not in str(error.value)
    assert "hidden" not in str(error.value)


def test_the_file_is_the_one_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.toml"
    monkeypatch.setenv("SOUNDLAKE_SETTINGS", str(file))
    with pytest.raises(SettingsError, match=f"^cannot read the settings {file}: No such file or directory; "):
        load()
    file.write_bytes(LEAST.replace("birds", "grünfink").encode("latin-1"))
    with pytest.raises(SettingsError, match=f"^{file}: it is not in UTF-8$"):
        load()
    file.write_text(LEAST)
    assert load() == parse(LEAST, "here")


def test_by_default_it_lies_beside_the_dags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOUNDLAKE_SETTINGS")
    monkeypatch.setattr(settings, "__file__", str(tmp_path / "soundlake_airflow" / "settings.py"))
    (tmp_path / "soundlake.toml").write_text(LEAST)
    assert load() == parse(LEAST, "here")
