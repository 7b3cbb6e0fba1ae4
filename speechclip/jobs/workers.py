"""The workers of a training on Ray Train: how many fit, with which resources, and when they start again."""

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
from speechclip.jobs.nodes import Node, Notify, is_shared, nodes, wait_for_nodes

# The smallest share of a logical CPU for a worker. With less, more workers would only wait for each other.
MIN_CPUS = 0.25
# Failures in a row without a new checkpoint. A long run may lose any number of nodes, but a bug ends it soon.
MAX_FAILURES = 2
ABORT_SECONDS = 30.0
# How often an elastic run looks for new nodes. To use them, it repeats the steps since the last checkpoint.
RESIZE_SECONDS = 20.0
# On a shared cluster Ray places the workers at once or never. After 30 s we count the nodes again.
CLUSTER_SETTINGS = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30"}
# Nobody preempts a private Ray or reads its metrics. Without these two it starts fewer processes and ends sooner.
PRIVATE_SETTINGS = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}


@dataclass(frozen=True)
class WorkerCount:
    """How many workers a run wants, the smallest number with which it goes on, and how long it waits for nodes."""

    wanted: int
    minimum: int
    node_wait_seconds: float


@dataclass
class FailureCount:
    """The number of failures in a row without a new checkpoint. `step` is the step of the last checkpoint."""

    step: int
    count: int = 0

    def add(self, step: int) -> bool:
        """Count a failure; `step` is the last checkpoint now. Returns whether there are too many."""
        self.count = 1 if step > self.step else self.count + 1
        self.step = step
        return self.count > MAX_FAILURES


def run_workers(
    work: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    count: WorkerCount,
    *,
    last_step: Callable[[], int],
    notify: Notify,
) -> None:
    """Run `work(config)` on every worker until all have ended. If a worker fails, start all of them again.

    `last_step` gives the step of the last checkpoint, from which `work` continues. Raises `WorkLeft` if the workers do
    not fit on the cluster, or if they fail three times without a new checkpoint.
    """
    for name, value in (CLUSTER_SETTINGS if is_shared() else PRIVATE_SETTINGS).items():
        os.environ.setdefault(name, value)
    use_gpu = needs_gpus(count, nodes())
    failures, started = FailureCount(last_step()), time.monotonic()
    while True:
        scaling = choose_scaling(count, use_gpu, notify)
        try:
            _fit(work, config, scaling)
        except ray.train.WorkerGroupError as error:
            cause = _cause(error)
            if failures.add(last_step()):
                raise WorkLeft(
                    f"training failed {failures.count} times without a new checkpoint, the last time by {cause}",
                    f"run it again to go on after step {failures.step}",
                ) from error
            started = time.monotonic()
            notify(f"workers failed ({_first_line(cause)}); goes on after step {failures.step}")
        except ray.train.ControllerError as error:
            if time.monotonic() - started >= count.node_wait_seconds:
                raise WorkLeft(
                    f"Ray could not start {count.wanted} workers ({error.controller_failure})",
                    "wait until the cluster has free CPUs and GPUs, or ask for fewer workers by --workers",
                ) from error
            notify(f"the cluster has no free CPUs yet ({_first_line(error.controller_failure)}); tries again")
        else:
            return


def needs_gpus(count: WorkerCount, there: Sequence[Node]) -> bool:
    """Whether the run trains on GPUs. Decided once: a run that loses its GPUs must wait for others.

    On a shared cluster one GPU is enough for yes, because the others may still come. A private Ray must have one GPU
    for each worker.
    """
    return sum(node.gpus for node in there) >= (1 if is_shared() else count.wanted)


def choose_scaling(count: WorkerCount, use_gpu: bool, notify: Notify) -> ray.train.ScalingConfig:
    """The number of workers and the CPUs and GPUs of each. Waits until at least the minimum fits on the cluster."""

    def what_is_missing(there: Sequence[Node]) -> str:
        if fitting_cpus(there, count.minimum, use_gpu) >= MIN_CPUS:
            return ""
        cpus, gpus = sum(node.cpus for node in there), sum(node.gpus for node in there)
        needed, found = f"{count.minimum * MIN_CPUS:g} CPUs", f"{cpus:g}"
        if use_gpu:
            needed, found = f"{needed} and {count.minimum} GPUs", f"{found} and {gpus:g}"
        return f"{count.minimum} workers need {needed}, the Ray cluster has {found}"

    bundle = {"CPU": 1.0} | ({"GPU": 1.0} if use_gpu else {})
    there = wait_for_nodes(
        what_is_missing,
        [bundle] * count.wanted,
        seconds=count.node_wait_seconds,
        advice="ask for fewer workers by --workers, or add nodes",
        notify=notify,
    )
    resources = {"CPU": fitting_cpus(there, count.minimum, use_gpu)} | ({"GPU": 1.0} if use_gpu else {})
    is_elastic = count.minimum < count.wanted
    return ray.train.ScalingConfig(
        num_workers=(count.minimum, count.wanted) if is_elastic else count.wanted,
        use_gpu=use_gpu,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
    )


def fitting_cpus(there: Sequence[Node], num_workers: int, use_gpu: bool) -> float:
    """The largest share of a CPU, at most 1, with which so many workers fit on these nodes. 0 if none fits.

    Example: three workers on two nodes of one CPU each get 0.5, because one node must take two of them.
    """

    def num_fitting(share: float) -> int:
        return sum(min(int(node.cpus / share + 1e-9), int(node.gpus) if use_gpu else num_workers) for node in there)

    shares = {1.0} | {int(1000 * node.cpus / count) / 1000 for node in there for count in range(1, num_workers + 1)}
    return max((share for share in shares if 0 < share <= 1 and num_fitting(share) >= num_workers), default=0.0)


class _InterruptibleTrainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """A trainer that Ctrl-C ends by `KeyboardInterrupt`. Ray's own handler would end this process with exit code 1."""

    controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller

    def abort(self) -> None:
        """End the workers and free their CPUs and GPUs, because the cluster may live longer than this run."""
        if self.controller is None:
            return
        # The controller ends itself, so the answer is that it died.
        with contextlib.suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            ray.get(self.controller.abort.remote(), timeout=ABORT_SECONDS)
        ray.kill(self.controller)


def _fit(work: Callable[[dict[str, Any]], None], config: dict[str, Any], scaling: ray.train.ScalingConfig) -> None:
    """Start the workers once and wait for their end. Ray restarts them only to change their number."""
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
    """The error of the first worker that failed. If one of them is a `SpeechClipError`, this raises it."""
    causes = list(error.worker_failures.values())
    for cause in causes:
        if isinstance(cause, SpeechClipError):
            raise cause from None
    return causes[0] if causes else error


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
