"""Featurize on Ray Data: one row is one task; CPU tasks decode, fixed actor pools encode, receipts reach the driver."""

import functools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import ray
import ray.data

from speechclip.errors import SpeechClipError, WorkLeft
from speechclip.featurizer import Work
from speechclip.jobs.meters import FeaturizeMeters
from speechclip.records import MODALITIES, Modality, Receipt, Task
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.tasks import BatchSizes, DecodedTask, EncoderRequest, TaskEncoder, decode_task

logger = logging.getLogger(__name__)

# The share of the CPUs that no encoder may take, so that decoding always goes on.
DECODE_SHARE = 0.25
NO_PROGRESS_SECONDS = 1800
# Ray Data's driver spends as long on a block of eight tasks as on a block of one. Few enough that a slow CPU actor
# still shows progress within half of the time above, and that a plan this large keeps every actor busy to its end.
TASKS_A_BLOCK = 8
LARGE_PLAN = 2000


@dataclass(frozen=True)
class Pools:
    """How one CPU and GPU budget is cut: actors per modality, and what each actor and decode task asks of Ray."""

    actors: dict[Modality, int]
    actor_cpus: float
    actor_gpus: float
    decode_cpus: float
    decode_tasks: int


def size_pools(num_cpus: float, num_gpus: float, num_tasks: dict[Modality, int]) -> Pools:
    """Pools that always fit: encoders take what decoding leaves, speech most of it; all modalities share each GPU.

    Everything is fractional, so that a single logical CPU still runs decode and three encoders side by side. An actor
    never asks for just what a decode task asks for: Ray Data would fuse the two and decode inside the actor.
    """
    wanted = {modality: num_tasks[modality] for modality in MODALITIES if num_tasks.get(modality)}
    decode_cpus = min(1.0, DECODE_SHARE * num_cpus)
    encode_cpus = num_cpus * (1 - DECODE_SHARE)
    if num_gpus:
        actors = {modality: min(int(num_gpus), count) for modality, count in wanted.items()}
    else:
        slots = max(len(wanted), round(encode_cpus))
        actors = {modality: min(max(1, slots // 8), count) for modality, count in wanted.items()}
        largest = max(wanted, key=lambda modality: (modality == "speech", wanted[modality]))
        others = sum(count for modality, count in actors.items() if modality != largest)
        actors[largest] = min(wanted[largest], slots - others)
    # An actor on a GPU needs little of a CPU.
    actor_cpus = _rounded_down(min(0.1 if num_gpus else 1.0, encode_cpus / sum(actors.values())))
    return Pools(
        actors=actors,
        actor_cpus=actor_cpus - 0.001 if actor_cpus == decode_cpus else actor_cpus,
        actor_gpus=_rounded_down(1 / len(wanted)) if num_gpus else 0.0,
        decode_cpus=decode_cpus,
        decode_tasks=max(1, int(num_cpus * DECODE_SHARE / decode_cpus)),
    )


def _rounded_down(share: float) -> float:
    """Ray counts resources in ten-thousandths; rounded up, the parts would not fit the whole."""
    return int(1000 * share) / 1000


def count_blocks(num_tasks: int) -> int:
    """Into how many blocks Ray Data gets the tasks of one feature set: one each, and up to eight in a large plan."""
    return math.ceil(num_tasks / min(TASKS_A_BLOCK, max(1, num_tasks // LARGE_PLAN)))


def run_on_ray(work: Work, batch_sizes: BatchSizes) -> Iterator[Receipt]:
    """The receipts of all open tasks, as the cluster that `ray.init` joined finishes them."""
    if not work.plan.tasks:
        return
    modalities = {name: spec.modality for name, spec in work.specs.items()}
    by_set: dict[str, list[Task]] = {}
    for task in work.plan.tasks:
        by_set.setdefault(task.feature_set, []).append(task)
    resources = ray.cluster_resources()
    num_tasks = {modalities[name]: len(tasks) for name, tasks in by_set.items()}
    if resources.get("CPU", 0) < 1:
        raise WorkLeft("the Ray cluster has no CPU for decoding; start it with --num-cpus 1 or more")
    pools = size_pools(resources["CPU"], resources.get("GPU", 0), num_tasks)
    logger.info("pools: %s", pools)
    _configure_data()
    branches = [_branch(work, name, tasks, pools, batch_sizes) for name, tasks in by_set.items()]
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
    except ray.exceptions.RayError as error:
        raise WorkLeft(
            f"Ray stopped before the plan was done ({error}); what was committed is kept, run again"
        ) from error


def _branch(work: Work, name: str, tasks: list[Task], pools: Pools, batch_sizes: BatchSizes) -> ray.data.Dataset:
    """Decode tasks and encoder actors of one feature set."""
    spec = work.specs[name]
    rows = [{"task": msgspec.msgpack.encode(task)} for task in tasks]
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
    )


def _decode_row(row: dict[str, bytes], spec: EncoderSpec) -> dict[str, bytes]:
    task = msgspec.msgpack.decode(row["task"], type=Task)
    return {"decoded": msgspec.msgpack.encode(decode_task(task, spec))}


class _EncodeRow:
    """An actor: loads its encoder once and turns decoded tasks into receipts."""

    def __init__(self, request: EncoderRequest, spec: EncoderSpec, store: str, batch_sizes: BatchSizes) -> None:
        import torch

        device = "cuda" if ray.get_gpu_ids() else "cpu"
        # One thread a CPU actor: the pools are sized by it, and equal plans give equal bytes.
        torch.set_num_threads(1)
        encoder = request.build(device)
        if encoder.spec != spec:
            raise WorkLeft(
                f"{request.source}: this worker resolves it to {encoder.spec.fingerprint}, "
                f"the driver to {spec.fingerprint}; give all nodes the same weights"
            )
        self.encode = TaskEncoder(encoder, Storage(store), batch_sizes)

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        decoded = msgspec.msgpack.decode(row["decoded"], type=DecodedTask)
        return {"receipt": msgspec.msgpack.encode(self.encode(decoded))}


def _configure_data() -> None:
    # The command line has its own line of progress.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_SECONDS
