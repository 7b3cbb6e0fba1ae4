"""Measures whole tasks on one GPU: several encoder processes side by side, each with a folder of its own."""

import multiprocessing
import os
import queue
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch

from speechclip.encoders import load_encoder
from speechclip.featurization.plan import TaskSizes
from speechclip.featurization.tasks import BatchSizes, DecodedTask, TaskEncoder
from speechclip.jobs.featurize import KEEP_FREED
from speechclip.records import Asset, Task
from speechclip.storage import Storage
from speechclip.store.codec import stored_bytes

MEAN_SECONDS = 4.41
# A worker that takes longer than this to load its encoder and do its first task has failed.
START_SECONDS = 300.0
Waveform = np.ndarray[Any, Any]


def utterances(seconds: float, seed: int = 0) -> list[Waveform]:
    """Utterances of noise, each of 2 to 6.8 seconds, of at least `seconds` together."""
    generator, found = np.random.default_rng(seed), list[Waveform]()
    while sum(map(len, found)) < 16_000 * seconds:
        length = int(generator.uniform(2.0, 2 * MEAN_SECONDS - 2.0) * 16_000)
        found.append((0.03 * generator.standard_normal(length)).astype(np.float32))
    return found


def run_tasks(source: str, device: str, folder: str, seconds: float, ready: Any, go: Any, results: Any) -> None:
    """Do whole tasks for some seconds, as one worker. Puts the rate and the share of writing into `results`."""
    torch.set_num_threads(1)
    encoder = load_encoder(source, "speech", device=device)
    # The number of utterances in a task of default size: 30 for Base, 11 for Large.
    count = max(1, TaskSizes().shard_bytes // stored_bytes(encoder.spec, MEAN_SECONDS))
    waveforms = utterances(count * MEAN_SECONDS)[:count]
    amount = sum(map(len, waveforms)) / 16_000
    encode = TaskEncoder(encoder, Storage(folder), BatchSizes())

    def task(number: int) -> DecodedTask:
        keys = tuple(f"{number:032x}{place:032x}" for place in range(len(waveforms)))
        return DecodedTask(
            task=Task(
                id=f"task-{number}",
                feature_set=encoder.spec.fingerprint,
                assets=tuple(Asset(key=key, modality="speech") for key in keys),
            ),
            keys=keys,
            dtypes=("<f4",) * len(keys),
            shapes=tuple(one.shape for one in waveforms),
            buffers=tuple(one.tobytes() for one in waveforms),
            rejected=(),
        )

    encode(task(0))
    ready.release()
    go.wait()
    started, done, writing = time.perf_counter(), 0, 0.0
    while time.perf_counter() - started < seconds:
        done += 1
        writing += encode(task(done)).write_seconds
    results.put({"rate": done * amount / (time.perf_counter() - started), "writing": writing / seconds})


def side_by_side(source: str, device: str, count: int, parent: str | None, seconds: float) -> dict[str, Any]:
    """The rate of `count` encoders together, and their share of time for writing. Each encoder is a process.

    They write into a new folder in `parent`, which is deleted at the end.
    """
    with tempfile.TemporaryDirectory(dir=parent, prefix="gpu-") as folder:
        found = _in_processes(source, device, count, folder, seconds)
    return {
        "encoders": count,
        "rate": sum(one["rate"] for one in found),
        "writing": float(np.mean([one["writing"] for one in found])),
    }


def _in_processes(source: str, device: str, count: int, folder: str, seconds: float) -> list[dict[str, float]]:
    """The result of each process. Exits if one of them fails."""
    context = multiprocessing.get_context("spawn")
    ready, go, results = context.Semaphore(0), context.Event(), context.Queue()
    os.environ |= KEEP_FREED
    workers = [
        context.Process(
            target=run_tasks, args=(source, device, f"{folder}/{number}", seconds, ready, go, results), daemon=True
        )
        for number in range(count)
    ]
    for worker in workers:
        worker.start()
    if not all(ready.acquire(timeout=START_SECONDS) for _ in workers):
        sys.exit(f"{source}: one of {count} encoders did not start; see its error above")
    go.set()
    try:
        return [results.get(timeout=seconds + START_SECONDS) for _ in workers]
    except queue.Empty:
        sys.exit(f"{source}: one of {count} encoders failed; see its error above")
