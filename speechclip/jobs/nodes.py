"""Room on the Ray cluster: a job may come before its nodes, and says so while it waits for them."""

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
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Node:
    """What a living node offers to all jobs together."""

    cpus: float
    gpus: float = 0.0


def nodes() -> list[Node]:
    """The cluster's living nodes."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(cpus=each.get("CPU", 0.0), gpus=each.get("GPU", 0.0)) for each in found]


def is_shared() -> bool:
    """Whether this is a cluster that was there before us, and may get more nodes; a private one won't."""
    return bool(os.environ.get("RAY_ADDRESS"))


def wait_for_room(
    lacking: Callable[[Sequence[Node]], str],
    bundles: Sequence[dict[str, float]],
    *,
    seconds: float,
    advice: str,
    tell: Tell,
) -> list[Node]:
    """The cluster's nodes, once `lacking` has nothing to say of them; an autoscaler is asked for `bundles` meanwhile.

    After `seconds`: `WorkLeft` with what is lacking; on a private Ray, which nothing joins, `InvalidInput` at once.
    """
    there = nodes()
    lack = lacking(there)
    if not lack:
        return there
    if not is_shared():
        raise InvalidInput(f"{lack}; {advice}")
    tell(f"{lack}; waiting {seconds:g} s for nodes to come")
    request_resources(bundles=list(bundles))
    try:
        deadline = time.monotonic() + seconds
        while lack := lacking(there := nodes()):
            if time.monotonic() >= deadline:
                raise WorkLeft(f"{lack}, and no node came within {seconds:g} s; {advice}, and run again")
            time.sleep(POLL_SECONDS)
    finally:
        request_resources(bundles=[])
    return there
