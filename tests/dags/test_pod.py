"""The pod of a command: what Kubernetes would be sent, and what the end of such a pod means."""

import stat
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.sdk.execution_time.context import OutletEventAccessors
from kubernetes.client import ApiClient
from kubernetes.client import models as k8s
from soundlake_airflow import command_lines
from soundlake_airflow.pod import SCRIPT, SoundlakePodOperator, pod_settings
from soundlake_airflow.settings import Kubernetes, parse

from tests.dags.bags import SETTINGS, bag_with

LINE = ["extract", "/srv/my birds", "--partition=-x", "--json"]


def an_operator(**more: Any) -> SoundlakePodOperator:
    settings = parse(SETTINGS, "these tests")
    place = pod_settings(settings.kubernetes, settings.environment)
    return SoundlakePodOperator(task_id="one", arguments=list(LINE), **place, **more)


def sent(one: SoundlakePodOperator) -> dict[str, Any]:
    """The pod in the words of Kubernetes' API; checked against its schema."""
    # A dry run leaves out what asks the cluster: whether Airflow itself runs in it, which is a label.
    pod = ApiClient().sanitize_for_serialization(one.build_pod_request_obj(dry_run=True))
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    return pod


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_the_pod() -> None:
    pod = sent(an_operator())
    spec = pod["spec"]
    base, sidecar = spec["containers"]
    assert (pod["kind"], pod["metadata"]["namespace"]) == ("Pod", "sounds")
    assert (spec["restartPolicy"], spec["serviceAccountName"]) == ("Never", "lake-keeper")
    user = {"fsGroup": 10001, "runAsNonRoot": True, "runAsUser": 10001}
    assert spec["securityContext"] == user | {"seccompProfile": {"type": "RuntimeDefault"}}
    assert (base["name"], base["image"]) == ("base", "example.org/soundlake:1")
    assert base["command"] == ["sh", "-c", SCRIPT, "soundlake"]
    assert base["args"] == LINE
    assert base["env"] == [{"name": "TF_NUM_INTRAOP_THREADS", "value": "2"}]
    assert base["resources"] == {"requests": {"cpu": "3", "memory": "5Gi"}, "limits": {"memory": "5Gi"}}
    alone = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert base["securityContext"] == sidecar["securityContext"] == alone
    assert base["terminationMessagePolicy"] == "FallbackToLogsOnError"
    # Where the script leaves the result is what the sidecar of the provider reads.
    mounts = {mount["name"]: mount["mountPath"] for mount in base["volumeMounts"]}
    assert mounts == {"lake": "/srv", "xcom": "/airflow/xcom"}
    assert {mount["name"]: mount["mountPath"] for mount in sidecar["volumeMounts"]} == {"xcom": "/airflow/xcom"}
    volumes = {volume.pop("name"): volume for volume in spec["volumes"]}
    assert volumes == {"lake": {"persistentVolumeClaim": {"claimName": "lake"}}, "xcom": {"emptyDir": {}}}


def test_a_pod_without_a_claim() -> None:
    place = pod_settings(Kubernetes(image="example.org/soundlake:1"), {})
    pod = sent(SoundlakePodOperator(task_id="one", arguments=list(LINE), **place))
    base = pod["spec"]["containers"][0]
    assert [mount["name"] for mount in base["volumeMounts"]] == ["xcom"]
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["xcom"]
    assert (pod["metadata"]["namespace"], pod["spec"]["serviceAccountName"]) == ("default", "soundlake")
    assert base["resources"] == {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "4Gi"}}


def test_texts_are_no_templates() -> None:
    # Folders of a corpus, which anyone may have named.
    one = an_operator(title="birds/{{ x }}")
    one.arguments = ["--partition={{ conn.lake.password }}", "{% raise %}"]
    one.render_template_fields({})
    assert one.title == "birds/{{ x }}"
    assert sent(one)["spec"]["containers"][0]["args"] == ["--partition={{ conn.lake.password }}", "{% raise %}"]


def test_every_command_of_the_dags_makes_a_pod(tmp_path: Path) -> None:
    settings = parse('where = "kubernetes"\n' + SETTINGS, "these tests")
    dags = bag_with(tmp_path, 'where = "kubernetes"\n' + SETTINGS).dags
    found = {}
    for name, dag in dags.items():
        for task in dag.tasks:
            if not task.is_mapped and isinstance(task, SoundlakePodOperator) and isinstance(task.arguments, list):
                found[name, task.task_id] = sent(task)["spec"]["containers"][0]["args"]
    assert found == {
        ("extract_features", "features"): command_lines.status(settings),
        ("encode_corpus", "status"): command_lines.status(settings),
        ("encode_corpus", "table"): command_lines.encode(settings),
        ("maintain_table", "maintain"): command_lines.maintain(settings),
    }


# --- the script ------------------------------------------------------------------------------------------------------


def run_script(folder: Path, program: str) -> tuple[int, str, str]:
    """Exit code, result and stdout of the pod's script, with its two files in a folder."""
    (folder / "soundlake").write_text(f"#!/bin/sh\n{program}\n")
    (folder / "soundlake").chmod(stat.S_IRWXU)
    assert SCRIPT.count("/tmp/result") == 2
    assert SCRIPT.count("/airflow/xcom/return.json") == 1
    script = SCRIPT.replace("/tmp/result", f"{folder}/out").replace("/airflow/xcom", str(folder))
    environment = {"PATH": f"{folder}:/usr/bin:/bin"}
    command = ["sh", "-c", script, "soundlake", *LINE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.returncode, (folder / "return.json").read_text(), done.stdout


@pytest.mark.parametrize("code", [0, 3, 75])
def test_the_script_keeps_exit_code_and_last_line(tmp_path: Path, code: int) -> None:
    program = f'echo words; for one in "$@"; do printf \'[%s]\' "$one"; done; echo; exit {code}'
    said = "[extract][/srv/my birds][--partition=-x][--json]\n"
    assert run_script(tmp_path, program) == (code, said, "")


def test_a_command_without_output_has_an_empty_result(tmp_path: Path) -> None:
    assert run_script(tmp_path, "exit 2") == (2, "", "")


# --- the end of a pod ------------------------------------------------------------------------------------------------


def ended(code: int | None, message: str | None = None) -> k8s.V1Pod:
    """A pod whose command ended with a code (None: is still running), as the cluster tells it."""
    state = k8s.V1ContainerState(
        running=k8s.V1ContainerStateRunning() if code is None else None,
        terminated=None if code is None else k8s.V1ContainerStateTerminated(exit_code=code, message=message),
    )
    sidecar = k8s.V1ContainerState(terminated=k8s.V1ContainerStateTerminated(exit_code=0))

    def status(name: str, of: k8s.V1ContainerState) -> k8s.V1ContainerStatus:
        return k8s.V1ContainerStatus(name=name, state=of, image="i", image_id="i", ready=False, restart_count=0)

    return k8s.V1Pod(
        metadata=k8s.V1ObjectMeta(name="one-x", namespace="sounds", annotations={}),
        spec=k8s.V1PodSpec(containers=[k8s.V1Container(name="base"), k8s.V1Container(name="airflow-xcom-sidecar")]),
        status=k8s.V1PodStatus(
            phase="Succeeded" if code == 0 else "Failed",
            container_statuses=[status("airflow-xcom-sidecar", sidecar), status("base", state)],
        ),
    )


class Instance:
    """What a task instance is asked for at the end."""

    def __init__(self) -> None:
        self.pushed: list[Any] = []

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed.append((key, value))


def run_pod(patch: pytest.MonkeyPatch, one: SoundlakePodOperator, pod: k8s.V1Pod, result: Any) -> Any:
    """`execute`, with all that talks to a cluster taken out: the provider's own end of it is left."""
    deleted: list[str] = []
    patch.setattr(one, "process_pod_deletion", lambda pod, *, reraise=True: deleted.append(pod.metadata.name) or True)
    patch.setattr(one, "patch_already_checked", lambda pod, *, reraise=True: None)
    patch.setattr(one, "is_istio_enabled", lambda pod: False)
    # What the provider does between start and end of a pod, then its `cleanup`, which is ours.
    context = {"ti": Instance(), "outlet_events": OutletEventAccessors()}

    def execute_sync(context: Any) -> Any:
        one.cleanup(pod=pod, remote_pod=pod, xcom_result=result, context=context)
        return result

    patch.setattr(one, "execute_sync", execute_sync)
    try:
        found = one.execute(context)
        return found, context["outlet_events"]
    finally:
        assert deleted == ["one-x"]


SAID = "soundlake: a line before\nsoundlake: the lake is away\n\n"


def test_a_pod_that_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    asset = Asset(name="rows", uri="file:///lake/rows")
    one = an_operator(outlets=[asset], asset_extra=lambda found: {"n": found["rows"]})
    found, events = run_pod(monkeypatch, one, ended(0), {"rows": 3})
    assert found == {"rows": 3}
    assert events[asset].extra == {"n": 3}


def test_no_object_is_a_fault_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AirflowFailException, match="was --json given"):
        run_pod(monkeypatch, an_operator(), ended(0), None)


@pytest.mark.parametrize(
    ("code", "gate", "kind", "message"),
    [
        (1, False, AirflowException, "exit code 1, another try may help: the lake is away"),
        (2, False, AirflowFailException, "exit code 2, not tried again: the lake is away"),
        (2, True, AirflowFailException, "exit code 2, not tried again: the lake is away"),
        (3, False, AirflowFailException, "exit code 3, not tried again: the lake is away"),
        (4, False, AirflowFailException, "exit code 4, not tried again: the lake is away"),
        (75, True, AirflowException, "exit code 75, another try may help: the lake is away"),
        # Out of memory.
        (137, False, AirflowException, "exit code 137, another try may help: the lake is away"),
    ],
)
def test_what_an_exit_code_means(
    monkeypatch: pytest.MonkeyPatch, code: int, gate: bool, kind: type[Exception], message: str
) -> None:
    with pytest.raises(AirflowException) as error:
        run_pod(monkeypatch, an_operator(gate=gate), ended(code, SAID), {"a": 1})
    assert (type(error.value), str(error.value)) == (kind, message)


def test_a_gate_that_says_no_has_its_reason_in_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    asset = Asset(name="rows", uri="file:///lake/rows")
    one = an_operator(gate=True, outlets=[asset], asset_extra=lambda found: {"why": found["held"]})
    found, events = run_pod(monkeypatch, one, ended(3, SAID), {"worse": ["elbo"]})
    assert found == {"worse": ["elbo"], "held": "the lake is away"}
    assert events[asset].extra == {"why": "the lake is away"}


def test_a_pod_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AirflowException, match=r"^exit code 1, another try may help: it said nothing$"):
        run_pod(monkeypatch, an_operator(), ended(1), None)


def test_a_pod_without_an_exit_code_is_the_providers_own_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    # Evicted, say: the cluster may know no end of its command.
    with pytest.raises(AirflowException, match="one-x returned a failure") as error:
        run_pod(monkeypatch, an_operator(), ended(None), None)
    assert type(error.value) is AirflowException
