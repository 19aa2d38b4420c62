"""What `infra/` holds against what it must agree with: the settings' schema, the DAGs, Airflow's own configuration, the
schemas of compose and Kubernetes, and the files of this repository. Nothing is built or started.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.fernet import Fernet
from soundlake_airflow import settings
from soundlake_airflow.settings import PLACES, Settings, parse

from tests.dags.bags import REPOSITORY, bag_with

AIRFLOW = REPOSITORY / "infra/airflow"
EXAMPLE = (AIRFLOW / "soundlake.toml").read_text()
VALUES = yaml.safe_load((AIRFLOW / "values.yaml").read_text())
COMPOSE_TEXT = (AIRFLOW / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("init", "api-server", "scheduler", "dag-processor", "triggerer")
MANIFEST_FILES = [AIRFLOW / "rbac.yaml", AIRFLOW / "lake-claim.yaml"]
MANIFESTS = [one for path in MANIFEST_FILES for one in yaml.safe_load_all(path.read_text())]
JOBSET_FILE = REPOSITORY / "infra/kubernetes/jobset.yaml"
JOBSET = yaml.safe_load(JOBSET_FILE.read_text())
DOCKERFILES = [REPOSITORY / "infra/containers/Dockerfile", AIRFLOW / "Dockerfile"]


def run(program: str, *arguments: str | Path) -> None:
    """Run a checker of Airflow's environment."""
    line = [str(Path(sys.executable).with_name(program)), *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# Settings.


def test_the_example_shows_the_defaults() -> None:
    shown = parse(EXAMPLE, "example")
    assert shown == Settings(lake=shown.lake, corpora=shown.corpora)
    assert set(shown.corpora) == {"birds"}


@pytest.mark.parametrize("kind", [Settings, settings.Corpus, settings.Schedule, settings.Training, settings.Limits])
def test_the_example_has_every_setting(kind: type) -> None:
    for one in dataclasses.fields(kind):
        assert re.search(rf"^#?\[?{one.name}\b", EXAMPLE, re.MULTILINE), one.name


def test_the_example_s_kubernetes_section_is_whole() -> None:
    section = EXAMPLE.split("[kubernetes]")[1].split("\n[")[0]
    assert re.findall(r"^(\w+) =", section, re.MULTILINE) == [
        one.name for one in dataclasses.fields(settings.Kubernetes)
    ]


def test_what_has_no_default_is_a_setting_too() -> None:
    """A # right before a word hides a setting, a # and a space is prose."""
    shown = parse(re.sub(r"^#(?=\w)", "", EXAMPLE, flags=re.MULTILINE), "example")
    assert shown.corpora["birds"].labels
    assert shown.training.preset
    assert shown.training.steps
    assert set(shown.beam) == set(settings.RUNNERS)
    assert shown.environment


def placed(where: str) -> str:
    """The example, with its one line that moves the tasks changed, and the image that one place asks for."""
    return EXAMPLE.replace('where = "local"', f'where = "{where}"').replace('image = ""', 'image = "soundlake:1"')


@pytest.mark.parametrize("where", PLACES)
def test_every_place_loads_and_pools_are_those_of_the_dags(where: str, tmp_path: Path) -> None:
    bag = bag_with(tmp_path, placed(where))
    assert bag.import_errors == {}
    used = {task.pool for dag in bag.dags.values() for task in dag.tasks} - {"default_pool"}
    pools = json.loads((AIRFLOW / "pools.json").read_text())
    assert set(pools) == used
    assert sorted(pool["slots"] for pool in pools.values()) == [1, 4]
    # What `airflow pools import` asks of each.
    assert all({"slots", "description"} <= set(pool) for pool in pools.values())


# By the schemas of others.


def test_compose_is_of_its_schema() -> None:
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", AIRFLOW / "compose.yaml")


def test_manifests_are_of_kubernetes_schema() -> None:
    run("kubernetes-validate", "--strict", *MANIFEST_FILES)


def test_yaml_is_tidy() -> None:
    run("yamllint", "--strict", "--config-file", AIRFLOW / ".yamllint", AIRFLOW, JOBSET_FILE.parent)


def known_settings() -> set[tuple[str, str]]:
    """Section and key of every setting of Airflow itself, from the file that describes them."""
    spec = find_spec("airflow")
    assert spec is not None
    assert spec.submodule_search_locations
    described = yaml.safe_load((Path(spec.submodule_search_locations[0]) / "config_templates/config.yml").read_text())
    return {(section, key) for section, one in described.items() for key in one["options"]}


def test_airflow_knows_every_setting() -> None:
    known = known_settings()
    assert ("core", "executor") in known
    texts = [path.read_text() for path in AIRFLOW.iterdir() if path.suffix in {".yaml", ".sh"} or "Docker" in path.name]
    named = {name for text in texts for name in re.findall(r"\bAIRFLOW__(\w+?)__(\w+)", text)}
    assert len(named) > 10
    assert {(section.lower(), key.lower()) for section, key in named} <= known
    assert {(section, key) for section, keys in VALUES["config"].items() for key in keys} <= known


# Compose.


def test_processes_agree() -> None:
    common = COMPOSE["x-environment"]
    for name in OURS:
        assert common.items() <= SERVICES[name]["environment"].items()
        assert SERVICES[name]["image"] == "soundlake-airflow"
        assert SERVICES[name]["pull_policy"] == "never"
    more = {(name, variable) for name in OURS for variable in set(SERVICES[name]["environment"]) - set(common)}
    assert more == {("api-server", "ADMIN_PASSWORD")}
    assert set(SERVICES) == {"db", *OURS}


def test_every_service_is_bounded() -> None:
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
        # Nobody is root: a number from .env, which new-env.sh does not let be 0, or a user of the image.
        assert service["user"] == ("postgres" if name == "db" else "${OWNER:?see new-env.sh}:0")
        assert service["restart"] == ("no" if name == "init" else "unless-stopped")
        assert ("healthcheck" in service) == (name != "init")
        assert name == "db" or service["init"] is True


def test_they_start_one_after_the_other() -> None:
    order = {
        name: {other: one["condition"] for other, one in service.get("depends_on", {}).items()}
        for name, service in SERVICES.items()
    }
    after_init = {"init": "service_completed_successfully"}
    assert order == {
        "db": {},
        "init": {"db": "service_healthy"},
        "api-server": after_init,
        "scheduler": after_init | {"api-server": "service_healthy"},
        "dag-processor": after_init,
        "triggerer": after_init,
    }


def test_only_the_scheduler_sees_lake_and_corpora() -> None:
    seen = {
        (name, volume["target"], volume.get("read_only", False))
        for name, service in SERVICES.items()
        for volume in service.get("volumes", [])
        if isinstance(volume, dict)
    }
    assert seen == {("scheduler", "/lake", False), ("scheduler", "/corpora", True)}
    shown = parse(EXAMPLE, "example")
    assert shown.lake == "/lake"
    assert all(corpus.audio.startswith("/corpora/") for corpus in shown.corpora.values())


def test_ports_are_of_loopback() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:8080:8080"]
    assert all(service.get("network_mode") is None for service in SERVICES.values())


# Secrets.


def test_secrets_are_asked_for_and_have_no_default() -> None:
    asked = re.findall(r"\$\{(\w+)([^}]*)\}", COMPOSE_TEXT)
    assert {form for _, form in asked} == {":?see new-env.sh"}
    secret = re.compile("PASSWORD|SECRET|FERNET|SQL_ALCHEMY_CONN")
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            if secret.search(name) and not name.endswith("_FILE"):
                assert re.search(r"\$\{\w+:\?see new-env.sh\}", value), name


def test_the_chart_gets_secrets_by_name() -> None:
    def leaves(found: Any, path: str = "") -> Any:
        each = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
        for name, value in each:
            yield from leaves(value, f"{path}.{name}")
        if not isinstance(found, dict | list):
            yield path, found

    secret = re.compile("secret|password|fernet|token|connection|pass$", re.IGNORECASE)
    named = {path: value for path, value in leaves(VALUES) if secret.search(path.rsplit(".", 1)[1])}
    names = {path: value for path, value in named.items() if path.lower().endswith("secretname")}
    assert len(names) == 5
    assert set(names.values()) == {"soundlake-airflow"}
    assert {path.rsplit(".", 1)[1]: value for path, value in named.items() if path not in names} == {
        "automountServiceAccountToken": False,
        "simple_auth_manager_passwords_file": "/tmp/passwords.json",
    }
    # Each key of the secret that the head of the file makes, and the chart looks up.
    head = (AIRFLOW / "values.yaml").read_text().split("airflowVersion")[0]
    made = re.findall(r"--from-literal=([\w.-]+)=", head)
    assert made == ["connection", "fernet-key", "api-secret-key", "jwt-secret", "passwords.json"]


def test_nothing_in_infra_looks_like_a_secret() -> None:
    """No long run of characters that a person would not write."""
    for path in (REPOSITORY / "infra").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and path.name != ".env":
            # What a requirement is held to is no secret.
            text = re.sub(r"--hash=sha256:[0-9a-f]{64}\b", "", path.read_text())
            for word in re.findall(r"[A-Za-z0-9+/_=-]{32,}", text):
                assert not re.search(r"\d.*\d.*\d.*\d", word), f"{path.name}: {word}"


def made_env(folder: Path) -> dict[str, str]:
    """The .env that a copy of new-env.sh makes, for a lake that is not root's."""
    (folder / "infra").mkdir()
    shutil.copy(AIRFLOW / "new-env.sh", folder / "infra")
    lake, corpora = folder / "a lake", folder / "corpora"
    for one in (lake, corpora):
        one.mkdir()
    if os.geteuid() == 0:
        os.chown(lake, 1234, 1234)
    subprocess.run(["sh", folder / "infra/new-env.sh", lake, corpora], check=True, cwd="/")
    lines = (folder / "infra/.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def test_new_env_gives_compose_all_that_it_asks_for(tmp_path: Path) -> None:
    found = made_env(tmp_path)
    assert set(found) == set(re.findall(r"\$\{(\w+):", COMPOSE_TEXT))
    assert found["LAKE"] == f"'{tmp_path}/a lake'"
    assert found["OWNER"] == str((tmp_path / "a lake").stat().st_uid)
    assert (tmp_path / "infra/.env").stat().st_mode & 0o777 == 0o600
    Fernet(found["FERNET_KEY"])
    # Airflow's tokens are signed by HMAC-SHA-512.
    assert len(found["JWT_SECRET"]) >= 64
    words = [found[name] for name in ("FERNET_KEY", "API_SECRET", "JWT_SECRET", "DB_PASSWORD", "ADMIN_PASSWORD")]
    assert len(set(words)) == len(words)
    # Unchanged in a URL, in JSON, and in a file of the environment.
    assert all(re.fullmatch("[A-Za-z0-9_-]{16,}=?", word) for word in words)


def test_new_env_never_replaces_one(tmp_path: Path) -> None:
    before = made_env(tmp_path)
    again = subprocess.run(
        ["sh", tmp_path / "infra/new-env.sh", tmp_path / "a lake", tmp_path / "corpora"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode != 0
    assert "exist" in again.stderr
    assert before["FERNET_KEY"] in (tmp_path / "infra/.env").read_text()


def test_new_env_tells_what_is_wrong(tmp_path: Path) -> None:
    call = ["sh", AIRFLOW / "new-env.sh"]
    for arguments in ([], [tmp_path], [tmp_path / "none", tmp_path]):
        done = subprocess.run([*call, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert done.stderr
    if os.geteuid() == 0:
        done = subprocess.run([*call, tmp_path, tmp_path], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "belongs to root" in done.stderr


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="not a checkout of git")
def test_git_leaves_env_out() -> None:
    ignored = subprocess.run(
        ["git", "check-ignore", "infra/airflow/.env"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert ignored.stdout == "infra/airflow/.env\n"


# Kubernetes.


def test_rights_are_the_least() -> None:
    (role,) = [one for one in MANIFESTS if one["kind"] == "Role"]
    rights = {resource: rule["verbs"] for rule in role["rules"] for resource in rule["resources"]}
    assert rights == {
        "pods": ["create", "get", "list", "watch", "patch", "delete"],
        "pods/log": ["get"],
        "pods/exec": ["get", "create"],
        "events": ["list"],
    }
    assert not [one for one in MANIFESTS if one["kind"].startswith("Cluster")]
    (binding,) = [one for one in MANIFESTS if one["kind"] == "RoleBinding"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": VALUES["scheduler"]["serviceAccount"]["name"], "namespace": "airflow"}
    ]
    assert VALUES["allowPodLaunching"] is False


def test_commands_have_an_account_without_rights() -> None:
    (account,) = [one for one in MANIFESTS if one["kind"] == "ServiceAccount"]
    assert account["metadata"]["name"] == settings.Kubernetes().service_account
    assert account["automountServiceAccountToken"] is False
    spaces = {one["metadata"].get("namespace", one["metadata"]["name"]) for one in MANIFESTS}
    assert spaces == {"soundlake"}


def test_the_chart_s_containers_are_bounded() -> None:
    contexts = VALUES["securityContexts"]
    assert contexts["pod"]["runAsNonRoot"] is True
    assert contexts["containers"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for name in ("scheduler", "apiServer", "dagProcessor", "triggerer", "migrateDatabaseJob"):
        assert VALUES[name]["resources"]["requests"]
        assert VALUES[name]["resources"]["limits"]["memory"]
        assert name == "scheduler" or VALUES[name]["serviceAccount"]["automountServiceAccountToken"] is False


# Training on several hosts.


def host_job() -> dict[str, Any]:
    """The spec of the one Job in the JobSet."""
    (replicated,) = JOBSET["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    return replicated["template"]["spec"]


def test_the_jobset_s_job_is_of_kubernetes_schema(tmp_path: Path) -> None:
    """A JobSet is a definition of its own, which is not in the schema; the Job in it, nearly all of it, is."""
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "train-host-0"}, "spec": host_job()}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    run("kubernetes-validate", "--strict", tmp_path / "job.yaml")
    assert (JOBSET["apiVersion"], JOBSET["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(JOBSET["spec"]) == {"network", "failurePolicy", "replicatedJobs"}
    assert set(JOBSET["spec"]["network"]) == {"enableDNSHostnames", "subdomain"}
    assert set(JOBSET["spec"]["failurePolicy"]) == {"maxRestarts", "rules"}


def test_each_host_of_the_jobset_finds_itself_and_the_others() -> None:
    """Names of pods are those that JobSet gives: JOBSET-JOB-0-INDEX.SUBDOMAIN."""
    job = host_job()
    (container,) = job["template"]["spec"]["containers"]
    environment = {one["name"]: one for one in container["env"]}
    # What Kubernetes puts into a value must be named before it.
    assert list(environment) == ["INDEX", "TF_CONFIG"]
    found = environment["INDEX"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert found == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"] == 2
    assert JOBSET["spec"]["network"]["enableDNSHostnames"] is True
    name, subdomain = JOBSET["metadata"]["name"], JOBSET["spec"]["network"]["subdomain"]
    (port,) = container["ports"]
    for index in range(2):
        config = json.loads(environment["TF_CONFIG"]["value"].replace("$(INDEX)", str(index)))
        assert config["task"] == {"type": "worker", "index": index}
        assert config["cluster"] == {
            "worker": [f"{name}-host-0-{i}.{subdomain}:{port['containerPort']}" for i in range(2)]
        }


def test_the_jobset_begins_again_where_that_helps() -> None:
    """Not after an exit code that says that the same call ends in the same way; after 75, and a kill, it does."""
    job = host_job()
    (container,) = job["template"]["spec"]["containers"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule == {
        "action": "FailJob",
        "onExitCodes": {"containerName": container["name"], "operator": "In", "values": [1, 2, 3]},
    }
    (on_failure,) = JOBSET["spec"]["failurePolicy"]["rules"]
    assert (on_failure["action"], on_failure["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    # One lost pod fails the Job at once, and all of it begins again.
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_hosts_of_the_jobset_are_bounded() -> None:
    pod = host_job()["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"USER {pod['securityContext']['runAsUser']}" in DOCKERFILES[0].read_text()
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["resources"]["limits"]["memory"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"]
    claims = {one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"]}
    assert claims == {one["metadata"]["name"] for one in MANIFESTS if one["kind"] == "PersistentVolumeClaim"}
    assert JOBSET["metadata"]["namespace"] == "soundlake"
    mounted = {one["mountPath"] for one in container["volumeMounts"]}
    assert container["args"][:3] == ["train", "--lake", *mounted]


# Images.


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.parent.name)
def test_images_take_what_is_there(file: Path) -> None:
    text = file.read_text()
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    assert copies
    for source in " ".join(copies).split():
        assert (REPOSITORY / source).exists(), source
    ignored = file.with_name(file.name + ".dockerignore")
    if ignored.exists():
        taken = {line[1:] for line in ignored.read_text().splitlines() if line.startswith("!")}
        assert taken == set(" ".join(copies).split())
    # The last word on the user, and not root's.
    assert int(re.findall(r"^USER (\d+)$", text, re.MULTILINE)[-1]) > 0
    # What a comment tells to build.
    for path in re.findall(r"docker build .*?-f (\S+)", text):
        assert (REPOSITORY / path).exists(), path


def test_both_images_have_one_interpreter_and_one_place_for_the_pipelines() -> None:
    pipelines, airflow = (path.read_text() for path in DOCKERFILES)
    bases = [re.findall(r"^FROM (python:\S+)", text, re.MULTILINE) for text in (pipelines, airflow)]
    assert bases == [["python:3.11-slim"]] * 2
    assert "python -m venv /opt/soundlake/venv" in pipelines
    assert "COPY --from=pipelines /opt/soundlake/venv /opt/soundlake/venv" in airflow
    # Where compose and the chart look for it.
    assert "COPY infra/airflow/pools.json /opt/soundlake/" in airflow
    for job in (SERVICES["init"]["command"], VALUES["migrateDatabaseJob"]["args"]):
        assert job[-1].endswith("airflow pools import /opt/soundlake/pools.json")


def test_users_are_those_that_pods_run_as() -> None:
    from soundlake_airflow.pod import pod_settings

    asked = pod_settings(settings.Kubernetes(), {})["security_context"].run_as_user
    assert f"USER {asked}" in DOCKERFILES[0].read_text()
    assert f"USER {VALUES['securityContexts']['pod']['runAsUser']}" in DOCKERFILES[1].read_text()


def test_the_airflow_of_the_lock_is_the_chart_s() -> None:
    lock = (REPOSITORY / "requirements-airflow.lock").read_text()
    (version,) = re.findall(r"^apache-airflow==(\S+)", lock, re.MULTILINE)
    assert VALUES["airflowVersion"] == version


@pytest.mark.parametrize("file", sorted(AIRFLOW.glob("*.md")), ids=lambda path: path.name)
def test_pages_name_what_is_there(file: Path) -> None:
    for path in re.findall(r"\b((?:infra|dags|docs)/[\w./-]+\.\w+)", file.read_text()):
        assert (REPOSITORY / path).exists(), path
