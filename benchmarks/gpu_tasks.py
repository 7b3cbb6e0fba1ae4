"""Whole tasks on one GPU, as a run's encoders do them: processes side by side, each into a store of its own."""

import multiprocessing
import os
import shutil
import time
from typing import Any

import numpy as np
import torch

from speechclip.encoders import load_encoder
from speechclip.jobs.featurize import KEEP_FREED
from speechclip.records import Asset, Task
from speechclip.storage import Storage
from speechclip.tasks import BatchSizes, DecodedTask, TaskEncoder

# An utterance of 4.41 s; the default task, 128 MiB, holds 30 of them for Base and 11 for Large.
MEAN_SECONDS, TASK_UTTERANCES = 4.41, {"hubert:untrained-base": 30, "hubert:untrained-large": 11}
Waveform = np.ndarray[Any, Any]


def utterances(seconds: float, seed: int = 0) -> list[Waveform]:
    """Noise of 2 to 6.8 s each, together at least so long."""
    generator, found = np.random.default_rng(seed), list[Waveform]()
    while sum(map(len, found)) < 16_000 * seconds:
        length = int(generator.uniform(2.0, 2 * MEAN_SECONDS - 2.0) * 16_000)
        found.append((0.03 * generator.standard_normal(length)).astype(np.float32))
    return found


def run_tasks(source: str, device: str, folder: str, seconds: float, ready: Any, go: Any, results: Any) -> None:
    """One worker: whole tasks into a store until time is up; how much speech, in how long."""
    torch.set_num_threads(1)
    encoder = load_encoder(source, "speech", device=device)
    waveforms = utterances(TASK_UTTERANCES[source] * MEAN_SECONDS)[: TASK_UTTERANCES[source]]
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


def side_by_side(source: str, device: str, count: int, folder: str, seconds: float) -> dict[str, Any]:
    """So many encoders on one GPU, each a process: seconds of speech a second of all, and their share of writing."""
    context = multiprocessing.get_context("spawn")
    ready, go, results = context.Semaphore(0), context.Event(), context.Queue()
    os.environ |= KEEP_FREED
    workers = [
        context.Process(target=run_tasks, args=(source, device, f"{folder}/{number}", seconds, ready, go, results))
        for number in range(count)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.acquire()
    go.set()
    found = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    shutil.rmtree(folder)
    return {
        "encoders": count,
        "rate": sum(one["rate"] for one in found),
        "writing": float(np.mean([one["writing"] for one in found])),
    }
