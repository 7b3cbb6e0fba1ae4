"""The workers of a training on Ray Train: how many fit, with what, and when they are started again."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch

from speechclip.errors import SpeechClipError, WorkLeft
from speechclip.jobs.nodes import Node, Tell, is_shared, nodes, wait_for_room

# The least share of a logical CPU that a worker is given; below it, more workers only wait for each other.
LEAST_CPUS = 0.25
# In a row and without a new checkpoint: a long run may lose any number of nodes, a bug ends it soon.
MAX_FAILURES = 2
ABORT_SECONDS = 30.0
# How often an elastic run looks for nodes that came; to take them in costs it the steps since the last checkpoint.
RESIZE_SECONDS = 20.0
# On a cluster that is there, Ray finds room at once or not at all; then we count anew what is there.
CLUSTER_SETTINGS = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30"}
# A private cluster is never preempted and reports to nobody: fewer processes to start, a quicker end.
PRIVATE_SETTINGS = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}


@dataclass(frozen=True)
class Crew:
    """How many workers are asked for, with how few the run goes on, and how long it waits for nodes that hold them."""

    workers: int
    least: int
    node_wait_seconds: float


@dataclass
class Failures:
    """Those in a row without a new checkpoint; `step` is that of the last one."""

    step: int
    count: int = 0

    def add(self, step: int) -> bool:
        """Count a failure at this last checkpoint; whether it is one too many."""
        self.count = 1 if step > self.step else self.count + 1
        self.step = step
        return self.count > MAX_FAILURES


def run_workers(
    work: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    crew: Crew,
    *,
    last_step: Callable[[], int],
    tell: Tell,
) -> None:
    """Run `work(config)` on every worker to its end; where they fail, again, from the checkpoint of `last_step`.

    `WorkLeft` where there is no room for them, or where they fail again and again without a new checkpoint.
    """
    for name, value in (CLUSTER_SETTINGS if is_shared() else PRIVATE_SETTINGS).items():
        os.environ.setdefault(name, value)
    use_gpu = needs_gpus(crew, nodes())
    failures, placed = Failures(last_step()), time.monotonic()
    while True:
        scaling = scale(crew, use_gpu, tell)
        try:
            _fit(work, config, scaling)
        except ray.train.WorkerGroupError as error:
            cause = _cause(error)
            if failures.add(last_step()):
                raise WorkLeft(
                    f"training failed {failures.count} times without a new checkpoint, last by {cause}; "
                    f"run it again to go on after step {failures.step}"
                ) from error
            placed = time.monotonic()
            tell(f"workers failed ({_first_line(cause)}); goes on after step {failures.step}")
        except ray.train.ControllerError as error:
            if time.monotonic() - placed >= crew.node_wait_seconds:
                raise WorkLeft(
                    f"Ray could not start {crew.workers} workers ({error.controller_failure}); "
                    "wait for room in the cluster or ask for fewer by --workers"
                ) from error
            tell(f"no room yet ({_first_line(error.controller_failure)}); tries again")
        else:
            return


def needs_gpus(crew: Crew, there: Sequence[Node]) -> bool:
    """Whether the run trains on GPUs: decided once, for a run that lost its GPUs must wait for others.

    On a cluster one GPU suffices to say so, the rest may be on their way; a private Ray must have one for each worker.
    """
    return sum(node.gpus for node in there) >= (1 if is_shared() else crew.workers)


def scale(crew: Crew, use_gpu: bool, tell: Tell) -> ray.train.ScalingConfig:
    """Workers that fit beside each other, once they do, each with a share of the CPUs."""

    def lacking(there: Sequence[Node]) -> str:
        if fitting_cpus(there, crew.least, use_gpu) >= LEAST_CPUS:
            return ""
        cpus, gpus = sum(node.cpus for node in there), sum(node.gpus for node in there)
        needed, found = f"{crew.least * LEAST_CPUS:g} CPUs", f"{cpus:g}"
        if use_gpu:
            needed, found = f"{needed} and {crew.least} GPUs", f"{found} and {gpus:g}"
        return f"{crew.least} workers need {needed}, the Ray cluster has {found}"

    bundle = {"CPU": 1.0} | ({"GPU": 1.0} if use_gpu else {})
    there = wait_for_room(
        lacking,
        [bundle] * crew.workers,
        seconds=crew.node_wait_seconds,
        advice="ask for fewer by --workers, or add nodes",
        tell=tell,
    )
    resources = {"CPU": fitting_cpus(there, crew.least, use_gpu)} | ({"GPU": 1.0} if use_gpu else {})
    number = crew.workers if crew.least == crew.workers else (crew.least, crew.workers)
    return ray.train.ScalingConfig(
        num_workers=number,
        use_gpu=use_gpu,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
    )


def fitting_cpus(there: Sequence[Node], num_workers: int, use_gpu: bool) -> float:
    """The largest share of a CPU, at most one, with which so many workers find room on these nodes; 0 for none."""

    def num_fitting(share: float) -> int:
        return sum(min(int(node.cpus / share + 1e-9), int(node.gpus) if use_gpu else num_workers) for node in there)

    shares = {1.0} | {int(1000 * node.cpus / count) / 1000 for node in there for count in range(1, num_workers + 1)}
    return max((share for share in shares if 0 < share <= 1 and num_fitting(share) >= num_workers), default=0.0)


class _InterruptibleTrainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """A trainer that Ctrl-C ends by `KeyboardInterrupt`: Ray's handler would end this process, silent and with 1."""

    controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller

    def abort(self) -> None:
        """End the workers and give their room back: the cluster may outlive this run."""
        if self.controller is None:
            return
        # The controller answers by its death.
        with contextlib.suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            ray.get(self.controller.abort.remote(), timeout=ABORT_SECONDS)
        ray.kill(self.controller)


def _fit(work: Callable[[dict[str, Any]], None], config: dict[str, Any], scaling: ray.train.ScalingConfig) -> None:
    """One start of the workers, to their end. Ray itself starts none again but to change their number."""
    with tempfile.TemporaryDirectory(prefix="sc-train-") as folder:
        trainer = _InterruptibleTrainer(
            work,
            train_loop_config=config,
            scaling_config=scaling,
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
            run_config=ray.train.RunConfig(
                name="train",
                storage_path=folder,
                failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        )
        try:
            trainer.fit()
        except KeyboardInterrupt:
            trainer.abort()
            raise


def _cause(error: ray.train.WorkerGroupError) -> Any:
    """Why the first worker failed; an error of ours among them is raised as itself."""
    causes = list(error.worker_failures.values())
    for cause in causes:
        if isinstance(cause, SpeechClipError):
            raise cause from None
    return causes[0] if causes else error


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
