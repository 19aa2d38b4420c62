"""A whole Airflow on loopback: PostgreSQL, scheduler, dag-processor, triggerer, api-server. Standard library alone.

`.venv-airflow/bin/python infra/airflow/local.py --home FOLDER --settings soundlake.toml` starts it, prints address and
login, and stops it on Ctrl-C. For a look and for tests; for a service take compose.yaml or values.yaml beside it.
All that it keeps lies in its home: database, logs, secrets, which are made at the first start.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PROCESSES = ("api-server", "scheduler", "dag-processor", "triggerer")
USER = "admin"
# By default Airflow takes minutes to notice new DAGs and lost tasks. For one person on one machine it can check within
# seconds.
QUICK = {
    "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
    "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
    "SCHEDULER__JOB_HEARTBEAT_SEC": "2",
    "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "10",
    "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
}


class StartError(RuntimeError):
    """Airflow cannot start; the message names the missing program or the log to read."""


def free_port() -> int:
    """A free port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _postgres(program: str) -> str:
    """Path of a program of the newest installed PostgreSQL; Debian does not put these programs on the PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"), key=lambda path: int(path.parts[4]))
    found_path = str(versions[-1]) if versions else shutil.which(program)
    if found_path is None:
        raise StartError("PostgreSQL is not installed; on Debian: apt install postgresql")
    return found_path


class LocalAirflow:
    """Airflow's processes and their database.

    Parameters
    ----------
    home : Path
        Created if it does not exist.
    settings : Path
        ``soundlake.toml``.
    port : int
        Port of the UI and the API; 0 for any free port.
    paused : bool
        Whether new DAGs are paused until someone switches them on.
    """

    def __init__(self, home: Path, settings: Path, *, port: int = 0, paused: bool = True) -> None:
        self.home, self.port = home.resolve(), port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "logs").mkdir(exist_ok=True)
        self.home.chmod(0o755)
        self._secrets = self._kept_secrets()
        self.password = self._secrets["password"]
        self.database_port = free_port()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._sessions: set[int] = set()
        added = {
            "AIRFLOW_HOME": str(self.home),
            "SOUNDLAKE_SETTINGS": str(settings.resolve()),
            # The triggerer does not add the DAGs' folder to its path.
            "PYTHONPATH": str(REPOSITORY / "dags"),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        airflow = {
            "CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
            "CORE__EXECUTOR": "LocalExecutor",
            "CORE__PARALLELISM": "4",
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__DAGS_ARE_PAUSED_AT_CREATION": str(paused),
            "CORE__FERNET_KEY": self._secrets["fernet"],
            "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.home / "passwords.json"),
            "CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "DATABASE__SQL_ALCHEMY_CONN": (
                f"postgresql+psycopg2://airflow:{self._secrets['database']}@127.0.0.1:{self.database_port}/airflow"
            ),
            "API__HOST": "127.0.0.1",
            "API__PORT": str(self.port),
            "API__BASE_URL": self.url,
            "API__WORKERS": "1",
            "API__SECRET_KEY": self._secrets["api"],
            "API_AUTH__JWT_SECRET": self._secrets["jwt"],
            "LOGGING__BASE_LOG_FOLDER": str(self.home / "logs"),
            **QUICK,
        }
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ", "TMPDIR") if name in os.environ}
        self.environment = inherited | added | {f"AIRFLOW__{name}": value for name, value in airflow.items()}

    def _kept_secrets(self) -> dict[str, str]:
        path = self.home / "secrets.json"
        if not path.exists():
            # A database outside the home may remain from an earlier home with the same path; its password differs.
            shutil.rmtree(self._data, ignore_errors=True)
            fresh = {name: secrets.token_hex(48) for name in ("jwt", "api", "database")}
            fresh |= {"fernet": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()}
            fresh |= {"password": secrets.token_urlsafe(12)}
            _write_private(path, json.dumps(fresh))
            _write_private(self.home / "passwords.json", json.dumps({USER: fresh["password"]}))
        return dict(json.loads(path.read_text()))

    # The database.

    @property
    def _data(self) -> Path:
        """Folder of the database; for root it is outside the home.

        PostgreSQL refuses to run as root, and its own user may have no access to the home.
        """
        if os.geteuid() != 0:
            return self.home / "postgres"
        return Path("/var/tmp") / f"soundlake-airflow-{hashlib.sha256(str(self.home).encode()).hexdigest()[:12]}"

    def _as_postgres(self, line: list[str]) -> None:
        """Run a program of PostgreSQL; for root, as the user `postgres`."""
        if os.geteuid() == 0:
            line = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *line]
        done = subprocess.run(line, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StartError(f"{' '.join(line)}: {(done.stderr or done.stdout).strip()}")

    def start_database(self) -> None:
        """Start PostgreSQL on loopback; create its cluster first if there is none."""
        data = self._data
        if not (data / "PG_VERSION").exists():
            shutil.rmtree(data, ignore_errors=True)
            data.mkdir(mode=0o700)
            password_file = data.with_name(data.name + ".password")
            _write_private(password_file, self._secrets["database"])
            if os.geteuid() == 0:
                owner = pwd.getpwnam("postgres")
                os.chown(data, owner.pw_uid, owner.pw_gid)
                os.chown(password_file, owner.pw_uid, owner.pw_gid)
            line = [_postgres("initdb"), "-D", str(data), "-U", "airflow", "-E", "UTF8", "--locale=C.UTF-8"]
            self._as_postgres([*line, f"--pwfile={password_file}", "--auth=scram-sha-256", "--no-sync"])
            password_file.unlink()
        options = f"-c listen_addresses=127.0.0.1 -p {self.database_port} -k {data} -c max_connections=200"
        line = [_postgres("pg_ctl"), "-D", str(data), "-w", "-l", str(data / "log"), "-o", options, "start"]
        self._as_postgres(line)

    def stop_database(self) -> None:
        """Stop PostgreSQL, if it runs."""
        with contextlib.suppress(StartError):
            self._as_postgres([_postgres("pg_ctl"), "-D", str(self._data), "-w", "-m", "fast", "stop"])

    # Airflow.

    def airflow(self, *arguments: str) -> str:
        """Run `airflow …`, wait for its end, and return its stdout."""
        line = [sys.executable, "-m", "airflow", *arguments]
        done = subprocess.run(line, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StartError(f"airflow {' '.join(arguments)}: {(done.stderr or done.stdout).strip()[-2000:]}")
        return done.stdout

    def start_process(self, name: str) -> None:
        """Start one of Airflow's processes, with its output in a file in the logs."""
        with open(self.home / "logs" / f"{name}.log", "ab") as log:
            line = [sys.executable, "-m", "airflow", name]
            self.running[name] = subprocess.Popen(
                line,
                env=self.environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._sessions.add(self.running[name].pid)

    def start(self) -> None:
        """Start all processes, and wait until they are healthy."""
        self.start_database()
        if "airflow" not in self._psql("SELECT datname FROM pg_database").split():
            self._psql("CREATE DATABASE airflow")
        self.airflow("db", "migrate")
        self.airflow("pools", "import", str(Path(__file__).with_name("pools.json")))
        for name in PROCESSES:
            self.start_process(name)
        self.wait_healthy()

    def _psql(self, statement: str) -> str:
        line = [_postgres("psql"), "-h", "127.0.0.1", "-p", str(self.database_port), "-U", "airflow", "-d", "postgres"]
        environment = {"PATH": os.environ["PATH"], "PGPASSWORD": self._secrets["database"]}
        return subprocess.run(
            [*line, "-At", "-c", statement], env=environment, capture_output=True, text=True, check=True
        ).stdout

    def health(self) -> dict[str, Any]:
        """Status of each component by name; empty while there is no answer."""
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                f"{self.url}/api/v2/monitor/health", timeout=5
            ) as answer:
                return {name: part.get("status") for name, part in json.load(answer).items()}
        except OSError:
            return {}

    def wait_healthy(self, seconds: float = 180.0) -> None:
        """Wait until all components are healthy.

        Raises
        ------
        StartError
            If a process has ended, or the wait takes too long.
        """
        deadline = time.monotonic() + seconds
        while (statuses := self.health()) == {} or set(statuses.values()) != {"healthy"}:
            for name, process in self.running.items():
                if process.poll() is not None:
                    raise StartError(f"{name} has ended ({process.returncode}): see {self.home}/logs/{name}.log")
            if time.monotonic() > deadline:
                raise StartError(f"not healthy after {seconds:.0f} s: {statuses or 'no answer'}; see {self.home}/logs")
            time.sleep(0.5)

    def stop(self) -> None:
        """Stop all processes, including tasks and their commands."""
        pids = self._processes()
        for process in self.running.values():
            process.terminate()
        deadline = time.monotonic() + 15
        for process in self.running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
        for pid in pids | self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.running.values():
            process.wait()
        self.running.clear()
        self.stop_database()

    def remove_database(self) -> None:
        """Remove the folder of the database, which may be outside the home; call it only after `stop`."""
        shutil.rmtree(self._data, ignore_errors=True)

    def _processes(self) -> set[int]:
        """Ids of all started processes and their descendants; a killed scheduler leaves workers in its session."""
        parents: dict[int, int] = {}
        ours = set()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                pid = int(folder.name)
                _, parent, _, session = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:4]
                parents[pid] = int(parent)
                if int(session) in self._sessions:
                    ours.add(pid)
        while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
            ours |= more
        return ours - {os.getpid()}


def _write_private(path: Path, text: str) -> None:
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def main(arguments: Iterable[str] | None = None) -> int:
    """Start Airflow, print its address, wait for Ctrl-C, and stop it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--running", action="store_true", help="Switch the DAGs on: their schedule begins at once.")
    call = parser.parse_args(None if arguments is None else list(arguments))
    airflow = LocalAirflow(call.home, call.settings, port=call.port, paused=not call.running)
    # SIGTERM of a service manager acts like Ctrl-C. A background process of a shell would otherwise ignore SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        print("starting PostgreSQL and Airflow: half a minute …", flush=True)
        airflow.start()
        print(f"Airflow   {airflow.url}\nlogin     {USER}\npassword  {airflow.password}", flush=True)
        print(f"settings  {call.settings}\nhome      {airflow.home}\nCtrl-C stops it", flush=True)
        while all(process.poll() is None for process in airflow.running.values()):
            time.sleep(1)
        ended = [name for name, process in airflow.running.items() if process.poll() is not None]
        raise StartError(f"{', '.join(ended)} has ended: see {airflow.home}/logs")
    except StartError as error:
        print(f"{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopping …", flush=True)
        return 0
    finally:
        airflow.stop()


if __name__ == "__main__":
    sys.exit(main())
