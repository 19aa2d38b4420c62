"""Run the command in a pod: the provider's operator with soundlake's exit codes. Imported only for Kubernetes."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.utils.container import get_container_termination_message
from airflow.sdk.exceptions import AirflowException
from kubernetes.client import models as k8s

from soundlake_airflow.operator import NoTemplates, outcome, tell_assets
from soundlake_airflow.settings import Kubernetes

# The last line of stdout is the JSON object; the provider's sidecar passes it on.
SCRIPT = 'soundlake "$@" > /tmp/result; code=$?; tail -n 1 /tmp/result > /airflow/xcom/return.json; exit $code'


def pod_settings(place: Kubernetes, environment: dict[str, str]) -> dict[str, Any]:
    """Arguments of the operator that all pods share: least privileges, and resource limits."""
    memory = place.memory
    # Kubernetes' level "restricted", for the command and for the sidecar that passes on its output.
    restricted = k8s.V1SecurityContext(allow_privilege_escalation=False, capabilities=k8s.V1Capabilities(drop=["ALL"]))
    volumes, mounts = [], []
    if place.claim:
        source = k8s.V1PersistentVolumeClaimVolumeSource(claim_name=place.claim)
        volumes = [k8s.V1Volume(name="lake", persistent_volume_claim=source)]
        mounts = [k8s.V1VolumeMount(name="lake", mount_path=place.mounted_at)]
    return {
        "namespace": place.namespace,
        "image": place.image,
        "service_account_name": place.service_account,
        "env_vars": environment,
        "volumes": volumes,
        "volume_mounts": mounts,
        "container_resources": k8s.V1ResourceRequirements(
            requests={"cpu": place.cpu, "memory": memory}, limits={"memory": memory}
        ),
        "security_context": k8s.V1PodSecurityContext(
            run_as_non_root=True,
            run_as_user=10001,
            fs_group=10001,
            seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
        ),
        "container_security_context": restricted,
        "xcom_sidecar_container_security_context": restricted,
        # A new node must first fetch an image with TensorFlow.
        "startup_timeout_seconds": 900,
    }


class SoundlakePodOperator(NoTemplates, KubernetesPodOperator):
    """Run one command in a pod; for parameters and exit codes see `soundlake_airflow.operator.SoundlakeOperator`."""

    template_fields: Sequence[str] = (*KubernetesPodOperator.template_fields, "title")

    def __init__(
        self,
        *,
        arguments: Sequence[str],
        title: str = "",
        gate: bool = False,
        asset_extra: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(
            arguments=arguments,
            cmds=["sh", "-c", SCRIPT, "soundlake"],
            do_xcom_push=True,
            # The last lines of stderr contain the reason.
            termination_message_policy="FallbackToLogsOnError",
            log_pod_spec_on_failure=False,
            **more,
        )
        self.title, self.gate, self.asset_extra = title, gate, asset_extra
        self._held: dict[str, Any] | None = None

    def execute(self, context: Any) -> dict[str, Any]:
        """Run the pod to its end; return the command's result."""
        result = super().execute(context)
        result = self._held or outcome(0, json.dumps(result).encode(), "", gate=self.gate)
        tell_assets(context, self.outlets, result, self.asset_extra)
        return result

    def cleanup(self, pod: Any, remote_pod: Any, xcom_result: Any = None, context: Any = None) -> None:
        """Remove the pod, and handle its exit code like that of a command."""
        try:
            super().cleanup(pod, remote_pod, xcom_result, context)
        except AirflowException:
            code = exit_code(remote_pod, self.base_container_name)
            if code is None:
                raise
            message = get_container_termination_message(remote_pod, self.base_container_name) or ""
            last = next((line for line in reversed(message.splitlines()) if line.strip()), "")
            self._held = outcome(code, json.dumps(xcom_result or {}).encode(), last, gate=self.gate)


def exit_code(pod: Any, container: str) -> int | None:
    """The exit code of a pod's container; None if it has not ended."""
    for status in (pod.status.container_statuses if pod and pod.status else None) or []:
        if status.name == container and status.state and status.state.terminated:
            return int(status.state.terminated.exit_code)
    return None
