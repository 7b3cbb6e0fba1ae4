"""Featurize on Ray Data. One row is one task: CPU tasks decode it, an actor encodes it, and the driver gets a receipt.

for receipt in encode_on_ray(work, BatchSizes(), node_wait_seconds=300, no_progress_seconds=1800):
    ...
"""

import functools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import ray
import ray.data
import ray.data.exceptions

from speechclip.errors import SpeechClipError, WorkLeft
from speechclip.featurization.driver import Work
from speechclip.featurization.tasks import BatchSizes, DecodedTask, EncoderRequest, TaskEncoder, decode_task
from speechclip.jobs.metrics import FeaturizeMetrics
from speechclip.jobs.nodes import Node, Notify, wait_for_nodes
from speechclip.records import MODALITIES, Modality, Receipt, Task
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage

logger = logging.getLogger(__name__)

# The share of the CPUs that encoders leave free, so that decoding never stops.
DECODE_SHARE = 0.25
# Ray Data's driver needs the same time for a block of eight tasks as for a block of one. More than eight would be too
# many: a slow actor on a CPU must still show progress in time, and all actors must have work until the end of the plan.
TASKS_A_BLOCK = 8
LARGE_PLAN = 2000
# A fixed pool asks Ray for this part of the CPUs that it uses. So it still fits when half of the nodes are lost.
ASKED_SHARE = 0.5
# On a cluster with GPUs, decoding uses every CPU. A decode task asks for less than one, so that a node of one CPU can
# decode beside the encoders of all modalities.
DECODE_CPUS_BESIDE_GPUS = 0.7
# Speech encoders that share one GPU if it has at least as many CPUs: one packs and writes while another computes.
SPEECH_ENCODERS_A_GPU = 3
# For glibc: keep freed memory for the next task. To get 128 MiB from the kernel again takes longer.
KEEP_FREED = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**32)}


@dataclass(frozen=True)
class Pools:
    """How the CPUs and GPUs are divided: actors by modality, and the resources of each actor and each decode task.

    If `decode_tasks` is None, Ray starts as many decode tasks as fit, also on nodes that come later.
    """

    actors: dict[Modality, int]
    actor_cpus: float
    actor_gpus: float
    decode_cpus: float
    decode_tasks: int | None


def size_pools(num_cpus: float, num_gpus: float, num_tasks: dict[Modality, int]) -> Pools:
    """Pools that fit on a cluster of this size. Without GPUs they also fit on half of it.

    All resources are fractions, so that one logical CPU can run decode tasks and three encoders at the same time. An
    actor never asks for exactly as much as a decode task, because Ray Data would then decode inside the actor.
    """
    wanted = {modality: num_tasks[modality] for modality in MODALITIES if num_tasks.get(modality)}
    return _pools_on_gpus(num_cpus, num_gpus, wanted) if num_gpus else _pools_on_cpus(num_cpus, wanted)


def _pools_on_cpus(num_cpus: float, wanted: dict[Modality, int]) -> Pools:
    """Encoders use the CPUs that decoding leaves. Speech gets most of them."""
    decode_cpus = min(1.0, DECODE_SHARE * num_cpus)
    encode_cpus = num_cpus * (1 - DECODE_SHARE)
    slots = max(len(wanted), round(encode_cpus))
    actors = {modality: min(max(1, slots // 8), count) for modality, count in wanted.items()}
    largest = max(wanted, key=lambda modality: (modality == "speech", wanted[modality]))
    others = sum(count for modality, count in actors.items() if modality != largest)
    actors[largest] = min(wanted[largest], slots - others)
    asked = _rounded_down(ASKED_SHARE * decode_cpus)
    actor_cpus = _rounded_down(ASKED_SHARE * min(1.0, encode_cpus / sum(actors.values())))
    return Pools(
        actors=actors,
        actor_cpus=actor_cpus - 0.001 if actor_cpus == asked else actor_cpus,
        actor_gpus=0.0,
        decode_cpus=asked,
        decode_tasks=max(1, int(num_cpus * DECODE_SHARE / decode_cpus)),
    )


def _pools_on_gpus(num_cpus: float, num_gpus: float, wanted: dict[Modality, int]) -> Pools:
    """All modalities share each GPU. Its actors need little of a CPU, and decoding gets the rest."""
    of_speech = min(SPEECH_ENCODERS_A_GPU, max(1, int(num_cpus / num_gpus)))
    a_gpu = {modality: of_speech if modality == "speech" else 1 for modality in wanted}
    actors = {modality: min(int(num_gpus) * a_gpu[modality], count) for modality, count in wanted.items()}
    return Pools(
        actors=actors,
        actor_cpus=_rounded_down(min(0.1, num_cpus * (1 - DECODE_SHARE) / sum(actors.values()))),
        actor_gpus=_rounded_down(1 / sum(a_gpu.values())),
        decode_cpus=min(DECODE_CPUS_BESIDE_GPUS, DECODE_SHARE * num_cpus),
        decode_tasks=None,
    )


def _rounded_down(share: float) -> float:
    """The share in thousandths. If it were rounded up, the parts together could be more than the whole."""
    return int(1000 * share) / 1000


def count_blocks(num_tasks: int) -> int:
    """The number of blocks in which Ray Data gets these tasks: one task a block, up to eight in a large plan."""
    return math.ceil(num_tasks / min(TASKS_A_BLOCK, max(1, num_tasks // LARGE_PLAN)))


def encode_on_ray(
    work: Work,
    batch_sizes: BatchSizes,
    *,
    node_wait_seconds: float,
    no_progress_seconds: float,
    notify: Notify = logger.info,
) -> Iterator[Receipt]:
    """Yield the receipt of each open task of the plan as soon as the cluster has encoded it. Call `connect` first.

    Raises `WorkLeft` if no node with a CPU comes within `node_wait_seconds`, or if no receipt comes for
    `no_progress_seconds`.
    """
    if not work.plan.num_tasks:
        return
    num_tasks = {modality: amount.num_tasks for modality, amount in work.plan.by_modality.items()}
    advice = "add nodes, or start one by `ray start --num-cpus 1` or more"
    there = wait_for_nodes(_missing_cpus, [{"CPU": 1}], seconds=node_wait_seconds, advice=advice, notify=notify)
    pools = size_pools(sum(node.cpus for node in there), sum(node.gpus for node in there), num_tasks)
    logger.info("pools: %s", pools)
    _configure_data(no_progress_seconds)
    branches = [_branch(work, name, pools, batch_sizes) for name in work.plan.by_feature_set]
    dataset = functools.reduce(lambda left, right: left.union(right), branches)
    metrics = FeaturizeMetrics(work)
    try:
        for row in dataset.iter_rows():
            receipt = msgspec.msgpack.decode(row["receipt"], type=Receipt)
            metrics.count(receipt)
            yield receipt
    except ray.exceptions.RayTaskError as error:
        # A SpeechClipError is raised as in the worker. Another error is a bug and keeps its traceback.
        if isinstance(error.cause, SpeechClipError):
            raise error.cause from None
        raise
    except ray.data.exceptions.ExecutionTimeoutError as error:
        raise WorkLeft(
            f"no task was finished for {no_progress_seconds:g} s: nodes of this job are lost, or one task takes "
            "longer; what was committed is kept",
            "add nodes or set a larger featurize.no_progress_seconds, and run again",
        ) from error
    except ray.exceptions.RayError as error:
        raise WorkLeft(
            f"Ray stopped before the plan was done ({error}); what was committed is kept", "run the same command again"
        ) from error


def _missing_cpus(there: Sequence[Node]) -> str:
    return "" if sum(node.cpus for node in there) >= 1 else "the Ray cluster has no CPU for decoding"


def _branch(work: Work, name: str, pools: Pools, batch_sizes: BatchSizes) -> ray.data.Dataset:
    """The receipts of one feature set as a dataset: its tasks, decoded, then encoded."""
    spec = work.specs[name]
    rows = [{"task": msgspec.msgpack.encode(task)} for task in work.plan.tasks(name)]
    decoded = ray.data.from_items(rows, override_num_blocks=count_blocks(len(rows))).map(
        _decode_row,
        fn_kwargs={"spec": spec},
        compute=ray.data.TaskPoolStrategy(size=pools.decode_tasks),
        num_cpus=pools.decode_cpus,
    )
    return decoded.map(
        _EncodeRow,
        fn_constructor_args=(work.requests[name], spec, work.store.storage.root, batch_sizes),
        compute=ray.data.ActorPoolStrategy(size=pools.actors[spec.modality], max_tasks_in_flight_per_actor=2),
        num_cpus=pools.actor_cpus,
        num_gpus=pools.actor_gpus,
        runtime_env={"env_vars": KEEP_FREED} if pools.actor_gpus else None,
    )


def _decode_row(row: dict[str, bytes], spec: EncoderSpec) -> dict[str, bytes]:
    task = msgspec.msgpack.decode(row["task"], type=Task)
    return {"decoded": msgspec.msgpack.encode(decode_task(task, spec))}


class _EncodeRow:
    """An actor that loads its encoder once and makes receipts from decoded tasks."""

    def __init__(self, request: EncoderRequest, spec: EncoderSpec, store: str, batch_sizes: BatchSizes) -> None:
        encoder = request.build("cuda" if ray.get_gpu_ids() else "cpu")
        if encoder.spec != spec:
            raise WorkLeft(
                f"{request.encoder_name}: it is {encoder.spec.fingerprint} on this worker's node and "
                f"{spec.fingerprint} on the driver's",
                "give all nodes the same weights",
            )
        self.encode = TaskEncoder(encoder, Storage(store), batch_sizes)

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        decoded = msgspec.msgpack.decode(row["decoded"], type=DecodedTask)
        return {"receipt": msgspec.msgpack.encode(self.encode(decoded))}


def _configure_data(no_progress_seconds: float) -> None:
    # The command line shows its own progress.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = no_progress_seconds
