"""The nodes of a Ray cluster. A job may start before its nodes: it then says so and waits for them."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray
from ray.autoscaler.sdk import request_resources

from speechclip.errors import InvalidInput, WorkLeft

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
# A function that shows a sentence to the user.
Notify = Callable[[str], None]


@dataclass(frozen=True)
class Node:
    """The logical CPUs and GPUs of one living node, for all jobs together."""

    cpus: float
    gpus: float = 0.0


def nodes() -> list[Node]:
    """The living nodes of the cluster."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(cpus=each.get("CPU", 0.0), gpus=each.get("GPU", 0.0)) for each in found]


def is_shared() -> bool:
    """Whether this job joined a cluster, which may get more nodes. A private Ray gets none."""
    return bool(os.environ.get("RAY_ADDRESS"))


def wait_for_nodes(
    what_is_missing: Callable[[Sequence[Node]], str],
    bundles: Sequence[dict[str, float]],
    *,
    seconds: float,
    advice: str,
    notify: Notify,
) -> list[Node]:
    """The nodes of the cluster, as soon as `what_is_missing` returns an empty text for them.

    While it waits, it asks an autoscaler for `bundles`, such as `[{"CPU": 1}]`. Raises `WorkLeft` after `seconds`. On
    a private Ray, which no node joins, it raises `InvalidInput` at once.
    """
    there = nodes()
    problem = what_is_missing(there)
    if not problem:
        return there
    if not is_shared():
        raise InvalidInput(problem, advice)
    notify(f"{problem}; waiting {seconds:g} s for more nodes")
    request_resources(bundles=list(bundles))
    try:
        deadline = time.monotonic() + seconds
        while problem := what_is_missing(there := nodes()):
            if time.monotonic() >= deadline:
                raise WorkLeft(f"{problem}, and no node came within {seconds:g} s", f"{advice}, and run again")
            time.sleep(POLL_SECONDS)
    finally:
        request_resources(bundles=[])
    return there
