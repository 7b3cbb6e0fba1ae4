"""Featurize on Ray Data: one row is one task; CPU tasks decode, fixed actor pools encode, receipts reach the driver."""

import functools
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import ray
import ray.data
import ray.data.exceptions

from speechclip.errors import SpeechClipError, WorkLeft
from speechclip.featurization.driver import Work
from speechclip.featurization.tasks import BatchSizes, DecodedTask, EncoderRequest, TaskEncoder, decode_task
from speechclip.jobs.metrics import FeaturizeMeters
from speechclip.jobs.nodes import Node, Tell, wait_for_room
from speechclip.records import MODALITIES, Modality, Receipt, Task
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage

logger = logging.getLogger(__name__)

# The share of the CPUs that no encoder may take, so that decoding always goes on.
DECODE_SHARE = 0.25
# Ray Data's driver spends as long on a block of eight tasks as on a block of one. Few enough that a slow CPU actor
# still shows progress in time, and that a plan this large keeps every actor busy to its end.
TASKS_A_BLOCK = 8
LARGE_PLAN = 2000
# Ray is asked for this part of the CPUs that a fixed pool uses: so it finds room again when half the nodes are gone.
ASKED_SHARE = 0.5
# Beside GPUs decoding takes every CPU; so little that a node of one CPU decodes beside encoders of all modalities.
DECODE_CPUS_BESIDE_GPUS = 0.7
# Encoders of speech that take turns on one GPU, where it has as many CPUs: one packs and writes while another computes.
SPEECH_ENCODERS_A_GPU = 3
# For glibc: what such an encoder has freed it keeps for its next task; to fault in 128 MiB anew takes it longer.
KEEP_FREED = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**32)}


@dataclass(frozen=True)
class Pools:
    """How one CPU and GPU budget is cut: actors per modality, and what each actor and decode task asks of Ray.

    Without `decode_tasks` as many decode as find room, on nodes that come later too.
    """

    actors: dict[Modality, int]
    actor_cpus: float
    actor_gpus: float
    decode_cpus: float
    decode_tasks: int | None


def size_pools(num_cpus: float, num_gpus: float, num_tasks: dict[Modality, int]) -> Pools:
    """Pools that fit a cluster of this size, and half of it where it has no GPUs.

    Everything is fractional, so that a single logical CPU still runs decode and three encoders side by side. An actor
    never asks for just what a decode task asks for: Ray Data would fuse the two and decode inside the actor.
    """
    wanted = {modality: num_tasks[modality] for modality in MODALITIES if num_tasks.get(modality)}
    return _pools_on_gpus(num_cpus, num_gpus, wanted) if num_gpus else _pools_on_cpus(num_cpus, wanted)


def _pools_on_cpus(num_cpus: float, wanted: dict[Modality, int]) -> Pools:
    """Encoders take what decoding leaves, speech most of it."""
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
    """All modalities share each GPU, whose actors need little of a CPU; decoding takes the rest."""
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
    """Ray counts resources in ten-thousandths; rounded up, the parts would not fit the whole."""
    return int(1000 * share) / 1000


def count_blocks(num_tasks: int) -> int:
    """Into how many blocks Ray Data gets the tasks of one feature set: one each, and up to eight in a large plan."""
    return math.ceil(num_tasks / min(TASKS_A_BLOCK, max(1, num_tasks // LARGE_PLAN)))


def encode_on_ray(
    work: Work,
    batch_sizes: BatchSizes,
    *,
    node_wait_seconds: float,
    no_progress_seconds: float,
    tell: Tell = logger.info,
) -> Iterator[Receipt]:
    """The receipts of all open tasks, as the cluster that `ray.init` joined finishes them.

    `WorkLeft` where no node with a CPU comes in time, or where the nodes that the work needs are lost for good.
    """
    if not work.plan.num_tasks:
        return
    num_tasks = {modality: amount.num_tasks for modality, amount in work.plan.by_modality.items()}
    advice = "add nodes, or start one by `ray start --num-cpus 1` or more"
    there = wait_for_room(_lacks_cpus, [{"CPU": 1}], seconds=node_wait_seconds, advice=advice, tell=tell)
    pools = size_pools(sum(node.cpus for node in there), sum(node.gpus for node in there), num_tasks)
    logger.info("pools: %s", pools)
    _configure_data(no_progress_seconds)
    branches = [_branch(work, name, pools, batch_sizes) for name in work.plan.by_feature_set]
    dataset = functools.reduce(lambda left, right: left.union(right), branches)
    meters = FeaturizeMeters(work)
    try:
        for row in dataset.iter_rows():
            receipt = msgspec.msgpack.decode(row["receipt"], type=Receipt)
            meters.count(receipt)
            yield receipt
    except ray.exceptions.RayTaskError as error:
        # An error of ours crosses as itself; anything else is a bug and keeps its traceback.
        if isinstance(error.cause, SpeechClipError):
            raise error.cause from None
        raise
    except ray.data.exceptions.ExecutionTimeoutError as error:
        raise WorkLeft(
            f"nothing moved for {no_progress_seconds:g} s: nodes that this run began with are gone, or one task takes "
            "longer; what was committed is kept; add nodes or raise featurize.no_progress_seconds, and run again"
        ) from error
    except ray.exceptions.RayError as error:
        raise WorkLeft(
            f"Ray stopped before the plan was done ({error}); what was committed is kept, run again"
        ) from error


def _lacks_cpus(there: Sequence[Node]) -> str:
    return "" if sum(node.cpus for node in there) >= 1 else "the Ray cluster has no CPU for decoding"


def _branch(work: Work, name: str, pools: Pools, batch_sizes: BatchSizes) -> ray.data.Dataset:
    """Decode tasks and encoder actors of one feature set."""
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
    """An actor: loads its encoder once and turns decoded tasks into receipts."""

    def __init__(self, request: EncoderRequest, spec: EncoderSpec, store: str, batch_sizes: BatchSizes) -> None:
        encoder = request.build("cuda" if ray.get_gpu_ids() else "cpu")
        # To load torch takes seconds, and a toy needs none.
        if "torch" in sys.modules:
            import torch

            # One thread a CPU actor: the pools are sized by it, and equal plans give equal bytes.
            torch.set_num_threads(1)
        if encoder.spec != spec:
            raise WorkLeft(
                f"{request.encoder_name}: this worker resolves it to {encoder.spec.fingerprint}, "
                f"the driver to {spec.fingerprint}; give all nodes the same weights"
            )
        self.encode = TaskEncoder(encoder, Storage(store), batch_sizes)

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        decoded = msgspec.msgpack.decode(row["decoded"], type=DecodedTask)
        return {"receipt": msgspec.msgpack.encode(self.encode(decoded))}


def _configure_data(no_progress_seconds: float) -> None:
    # The command line has its own line of progress.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = no_progress_seconds
