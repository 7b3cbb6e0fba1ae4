"""A Ray cluster over several hosts, token and all, and jobs submitted to it as a user submits them."""

import contextlib
import json
import secrets
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from support.hosts import Host, Network

PROJECT = Path(__file__).parents[2]
START_SECONDS = 240
END_STATES = ("SUCCEEDED", "FAILED", "STOPPED")
# A node that has more processes than CPUs ends one that was idle for a second: on two nodes of one CPU
# each task that decodes then begins with the start of Python, three seconds of it.
LASTING_WORKERS = {"RAY_idle_worker_killing_time_threshold_ms": "60000"}
# Without these a dead host is missed for 18 s, which a test has not.
QUICK_HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000", "RAY_health_check_failure_threshold": "4",
}  # fmt: skip


class RayHosts:
    """A head without work, and workers that come and go. Ended with its network."""

    def __init__(self, network: Network, environment: Mapping[str, str] | None = None) -> None:
        self.network = network
        self.token = secrets.token_hex(32)
        self.environment = {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1", **LASTING_WORKERS, **QUICK_HEALTH, **(environment or {}),
        }  # fmt: skip
        self.head = network.add("head")
        self.url = f"http://{self.head.address}:8265"

    def start_head(self, *options: str) -> None:
        """The head, up and ready for jobs."""
        options = options or ("--num-cpus=0",)
        for _ in range(3):
            process = self._start(self.head, "--head", "--port=6379", "--dashboard-host=0.0.0.0", *options)
            # A job needs the head's agent, which starts after the dashboard.
            wait_until(lambda: process.poll() is not None or self._is_up(), "the head is up")  # noqa: B023 (at once)
            # On a busy machine one of Ray's processes may have given up meanwhile, and takes the others with it.
            time.sleep(2)
            if process.poll() is None:
                return
        raise AssertionError((self.head.folder / "ray.log").read_text())

    def add_worker(self, name: str, num_cpus: int = 2, *options: str) -> Host:
        """One more host that works; returns at once, see `wait_for`."""
        host = self.network.add(name)
        self._start(host, f"--address={self.head.address}:6379", f"--num-cpus={num_cpus}", *options)
        return host

    def wait_for(self, num_hosts: int) -> None:
        """Return once the cluster has so many hosts, its head included."""
        wait_until(lambda: self._alive() == num_hosts, f"{num_hosts} hosts are up")

    def submit(self, *command: str, folder: Path, name: str = "", options: Sequence[str] = ()) -> str:
        """`ray job submit --no-wait` of the project in that folder, from the head; the job's id."""
        job = name or f"job-{secrets.token_hex(4)}"
        words = ["ray", "job", "submit", "--no-wait", "--submission-id", job, "--working-dir", str(folder), *options]
        address = {"RAY_API_SERVER_ADDRESS": self.url}
        for _ in range(10):
            code, said = self.head.run([*words, "--", *command], self.environment | address)
            if "No available agent" not in said:
                break
            time.sleep(2)
        assert code == 0, said
        return job

    def state(self, job: str) -> str:
        """As PENDING, RUNNING, SUCCEEDED."""
        return str(self.info(job).get("status", ""))

    def info(self, job: str) -> dict[str, Any]:
        """What Ray knows of the job, `driver_exit_code` with it once it is over."""
        found: dict[str, Any] = self._get(f"/api/jobs/{job}") or {}
        return found

    def log(self, job: str) -> str:
        """All that the job said so far, both streams."""
        return str((self._get(f"/api/jobs/{job}/logs") or {}).get("logs", ""))

    def finish(self, job: str, seconds: float = 600) -> str:
        """The job's log, once it has succeeded."""
        wait_until(lambda: self.state(job) in END_STATES, f"{job} is over", seconds, lambda: self.log(job))
        assert self.state(job) == "SUCCEEDED", self.log(job)
        return self.log(job)

    def kill_driver(self, job: str) -> None:
        """SIGKILL to the job's own process on the head, as a lack of memory would."""
        marks = {"RAY_JOB_CONFIG_JSON_ENV_VAR", job}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mine = process.environ()
                if mine.get("HOME") == str(self.head.folder) and marks <= {*mine, _submission(mine)}:
                    process.kill()

    def _is_up(self) -> bool:
        return bool(self._get("/api/version")) and self._alive() == 1

    def _start(self, host: Host, *options: str) -> "subprocess.Popen[str]":
        command = ["ray", "start", "--block", f"--node-ip-address={host.address}", "--disable-usage-stats", *options]
        store = (
            () if any("object-store-memory" in option for option in options) else ("--object-store-memory=150000000",)
        )
        with (host.folder / "ray.log").open("w") as log:
            return host.start([*command, *store], self.environment, stdout=log)

    def listed(self, kind: str, **values: str) -> list[dict[str, Any]]:
        """What Ray knows of its nodes, actors or tasks that have these values, as `state="ALIVE"`."""
        query = [("detail", "true"), ("limit", "10000")]
        for name, value in values.items():
            query += [("filter_keys", name), ("filter_predicates", "="), ("filter_values", value)]
        answer = self._get(f"/api/v0/{kind}?{urllib.parse.urlencode(query)}") or {}
        found: list[dict[str, Any]] = answer.get("data", {}).get("result", {}).get("result", [])
        return found

    def nodes(self) -> list[dict[str, Any]]:
        """What Ray knows of each host that is there, `resources_total` and `is_head_node` with it."""
        return self.listed("nodes", state="ALIVE")

    def _alive(self) -> int:
        return len(self.nodes())

    def _get(self, path: str) -> dict[str, Any] | None:
        """An answer of the dashboard, or None while there is none."""
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {self.token}"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (OSError, json.JSONDecodeError):
            return None


def copy_project(folder: Path, config: str | None = None) -> Path:
    """What `--working-dir .` uploads: the sources alone, with this ray_config.yaml."""
    for name in ("speechclip", "pipelines"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "ray_config.yaml").write_text(config if config is not None else (PROJECT / "ray_config.yaml").read_text())
    return folder


def wait_until(
    is_so: Callable[[], bool], what: str, seconds: float = START_SECONDS, otherwise: Callable[[], str] = str
) -> None:
    """Return once it is so; `otherwise` says more of what was the case at the end of patience."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}; {otherwise()}"
        time.sleep(0.5)


def _submission(environment: Mapping[str, str]) -> str:
    config = json.loads(environment.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return str(config.get("metadata", {}).get("job_submission_id", ""))
