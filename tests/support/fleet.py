"""One Ray cluster for many tests: a head without work, and as many nodes of one CPU as a test asks for."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from support.hosts import Host
from support.ray_hosts import END_STATES, RayHosts, wait_until

ENCODING = "MapWorker(Map(_EncodeRow))"


class Fleet:
    """Jobs are submitted as users do, from `project`, which the nodes get by Ray alone."""

    def __init__(self, rays: RayHosts, project: Path) -> None:
        self.rays, self.project = rays, project
        self._count = 0

    @property
    def workers(self) -> dict[str, Host]:
        """All hosts but the head, by name."""
        return {name: host for name, host in self.rays.network.hosts.items() if name != "head"}

    def resize(self, num_workers: int) -> None:
        """Return once it has just so many nodes beside its head."""
        for name in list(self.workers)[num_workers:]:
            self.rays.network.remove(name)
        while len(self.workers) < num_workers:
            self.add()
        self.rays.wait_for(num_workers + 1)

    def add(self) -> None:
        """One more node, on its way."""
        self._count += 1
        self.rays.add_worker(f"worker-{self._count}", 1)

    def lose(self, name: str) -> None:
        """A node gone at once, as by a power cut."""
        self.rays.network.remove(name)

    def submit(self, pipeline: str, *options: str, project: Path | None = None) -> str:
        """`ray job submit ... -- python pipelines/<pipeline>.py <options>`; the job's id."""
        return self.rays.submit("python", f"pipelines/{pipeline}.py", *options, folder=project or self.project)

    def end(self, job: str) -> tuple[str, int, str]:
        """How it ended, its driver's exit code and all that it said, once it is over."""
        wait_until(lambda: self.rays.state(job) in END_STATES, f"{job} is over", 600, lambda: self.rays.log(job))
        return self.rays.state(job), self.rays.info(job)["driver_exit_code"], self.rays.log(job)

    def is_over(self, job: str) -> bool:
        """Whether it has ended, well or not."""
        return self.rays.state(job) in END_STATES

    def actors(self, job: str, name: str) -> list[dict[str, Any]]:
        """The job's living actors whose class starts so."""
        number = self.rays.info(job)["job_id"]
        listed = self.rays.listed("actors", state="ALIVE", job_id=number)
        return [actor for actor in listed if actor["class_name"].startswith(name)]

    def tasks(self, job: str, name: str) -> list[dict[str, Any]]:
        """Every attempt of its tasks whose name starts so."""
        number = self.rays.info(job)["job_id"]
        return [task for task in self.rays.listed("tasks", job_id=number) if task["name"].startswith(name)]

    def places(self, job: str, name: str) -> Counter[str]:
        """How many of those actors each worker host runs."""
        addresses = {node["node_id"]: node["node_ip"] for node in self.rays.listed("nodes", state="ALIVE")}
        hosts = {host.address: name for name, host in self.workers.items()}
        found = [addresses[actor["node_id"]] for actor in self.actors(job, name)]
        return Counter(hosts[address] for address in found if address in hosts)


def summary(log: str) -> dict[str, int]:
    """The ledger that featurize's job log ends with."""
    lines = [line for line in log.splitlines() if line.startswith("{") and '"planned"' in line]
    found: dict[str, int] = json.loads(lines[-1])
    return found
