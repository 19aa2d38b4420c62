"""Airflow's REST API, for tests: what a person would click, and what they would see."""

import json
import time
import urllib.error
import urllib.request
from typing import Any

ENDED = {"success", "failed"}


class Api:
    """The API of one Airflow, logged in."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        # Loopback is not for a proxy.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.token = ""
        self.token = self.call("POST", "/auth/token", {"username": user, "password": password})["access_token"]

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One call; what it answers, as an object."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)
        try:
            with self.opener.open(request, timeout=60) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{error.code} {error.read().decode(errors='replace')[:2000]}") from error

    def dags(self) -> dict[str, Any]:
        """DAGs by name."""
        return {one["dag_id"]: one for one in self.call("GET", "/api/v2/dags?limit=100")["dags"]}

    def pause(self, dag_id: str, *, paused: bool) -> None:
        """Switch a DAG on or off."""
        self.call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": paused})

    def trigger(self, dag_id: str, **params: Any) -> str:
        """Start a run; return its name."""
        body = {"logical_date": None, "conf": params}
        return str(self.call("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Runs of a DAG, the oldest first."""
        found = self.call("GET", f"/api/v2/dags/{dag_id}/dagRuns?limit=100&order_by=run_after")
        return list(found["dag_runs"])

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Task instances of a run."""
        found = self.call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=100")
        return list(found["task_instances"])

    def states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """State by task; of a mapped one by ``task title``."""
        return {
            f"{one['task_id']} {one['rendered_map_index']}" if one["map_index"] >= 0 else one["task_id"]: one["state"]
            for one in self.tasks(dag_id, run_id)
        }

    def xcom(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> Any:
        """What a task handed on."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        return self.call("GET", f"{path}?map_index={map_index}&deserialize=true")["value"]

    def log(self, dag_id: str, run_id: str, task_id: str, *, attempt: int = 1, map_index: int = -1) -> str:
        """What a try of a task logged."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{attempt}"
        found = self.call("GET", f"{path}?map_index={map_index}&full_content=true")["content"]
        return "\n".join(str(one.get("event", "")) for one in found)

    def clear(self, dag_id: str, run_id: str, *task_ids: str, only_failed: bool = False) -> None:
        """Clear tasks and what follows them: they run again."""
        body = {"dry_run": False, "dag_run_id": run_id, "task_ids": list(task_ids), "include_downstream": True}
        body |= {"only_failed": only_failed, "reset_dag_runs": True}
        self.call("POST", f"/api/v2/dags/{dag_id}/clearTaskInstances", body)

    def fail(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Mark a task as failed; if it runs, it is killed."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        self.call("PATCH", path, {"new_state": "failed"})

    def events(self, name: str) -> list[dict[str, Any]]:
        """Events of an asset, the oldest first."""
        found = self.call("GET", "/api/v2/assets?limit=100")["assets"]
        number = next(one["id"] for one in found if one["name"] == name)
        listed = self.call("GET", f"/api/v2/assets/events?asset_id={number}&limit=100&order_by=timestamp")
        return list(listed["asset_events"])

    def ended(self, dag_id: str, run_id: str, seconds: float = 600.0) -> str:
        """Wait for a run to end; return its state."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            state = self.call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}")["state"]
            if state in ENDED:
                return str(state)
            time.sleep(1)
        raise TimeoutError(f"{dag_id} {run_id} after {seconds:.0f} s: {self.states(dag_id, run_id)}")

    def next_run(self, dag_id: str, known: set[str], seconds: float = 300.0) -> str:
        """Wait for a run that is none of those known; return its name."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            fresh = [one["dag_run_id"] for one in self.runs(dag_id) if one["dag_run_id"] not in known]
            if fresh:
                return str(fresh[0])
            time.sleep(1)
        raise TimeoutError(f"no new run of {dag_id} in {seconds:.0f} s")

    def quiet(self, seconds: float = 600.0) -> None:
        """Wait until no run of any DAG is under way, nor about to be."""
        until, calm = time.monotonic() + seconds, 0
        while calm < 5:
            open_runs = [one for dag_id in self.dags() for one in self.runs(dag_id) if one["state"] not in ENDED]
            calm = 0 if open_runs else calm + 1
            if time.monotonic() > until:
                raise TimeoutError(f"still under way: {[(one['dag_id'], one['state']) for one in open_runs]}")
            time.sleep(1)
