"""Measures a run for `scale.py`: seconds of steps and commits, memory, CPU time, and when receipts arrive."""

import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from speechclip.records import Receipt
from speechclip.store import FeatureStore


class TimedStore(FeatureStore):
    """A store that notes how many seconds each commit takes."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.commit_seconds: list[float] = []

    def commit(self, receipts: Sequence[Receipt], manifest: str, **options: Any) -> int:
        """Commit as `FeatureStore` does, and note the time."""
        started = time.perf_counter()
        version = super().commit(receipts, manifest, **options)
        self.commit_seconds.append(time.perf_counter() - started)
        return version


class Watch:
    """Notes the seconds of each step and the peak of this process's own memory, measured twenty times a second."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_bytes: dict[str, int] = {}
        self._peak, self._done = 0, threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def step(self, name: str, started: float) -> None:
        """Note a step that started at `started` (a time of perf_counter) and ends now."""
        self.seconds[name] = round(time.perf_counter() - started, 3)
        self.peak_bytes[name], self._peak = max(self._peak, own_bytes()), 0

    def _look(self) -> None:
        while not self._done.wait(0.05):
            self._peak = max(self._peak, own_bytes())


def own_bytes() -> int:
    """The memory of this process alone, without mapped files and without Ray's object store."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


class Seen:
    """Notes when the first receipt and each tenth of all receipts arrive, and the use of the object store then."""

    def __init__(self, num_tasks: int) -> None:
        self.num_tasks, self.first_seconds = num_tasks, 0.0
        self.tenths: list[float] = []
        self.object_store: list[dict[str, int]] = []

    def watched(self, receipts: Iterator[Receipt], started: float) -> Iterator[Receipt]:
        """The same receipts, noted as they pass."""
        for number, receipt in enumerate(receipts, start=1):
            if number == 1:
                self.first_seconds = time.perf_counter() - started
                self.tenths.append(self.first_seconds)
            if number % max(1, self.num_tasks // 10) == 0:
                self.tenths.append(time.perf_counter() - started)
                self.object_store.append(object_store_use())
            yield receipt

    def rates(self) -> list[float]:
        """The tasks for each second, in each tenth of the run."""
        return [round(self.num_tasks / 10 / seconds, 1) for seconds in np.diff(self.tenths).tolist()]


def object_store_use() -> dict[str, int]:
    """MiB and objects in the object store, as `ray memory --stats-only` prints them."""
    import ray
    from ray._private.internal_api import memory_summary

    # Without an address Ray could find another Ray on this machine.
    summary = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
    found = re.search(r"Plasma memory usage (\d+) MiB, (\d+) objects", summary)
    assert found is not None, summary
    return {"mib": int(found[1]), "objects": int(found[2])}


def cpu_seconds() -> dict[str, float]:
    """The CPU seconds up to now of the driver (this process), of Ray's own processes and of its workers."""
    found: dict[str, float] = {}
    driver = psutil.Process()
    for process in [driver, *driver.children(recursive=True)]:
        try:
            times, name = process.cpu_times(), process.name()
        except psutil.NoSuchProcess:
            continue
        kind = "driver" if process.pid == driver.pid else name if name in ("raylet", "gcs_server") else "workers"
        found[kind] = found.get(kind, 0.0) + times.user + times.system
    return found


def folder_size(folder: Path) -> dict[str, int]:
    """The number of files and bytes below a folder."""
    sizes = [os.path.getsize(os.path.join(top, name)) for top, _, names in os.walk(folder) for name in names]
    return {"files": len(sizes), "bytes": sum(sizes)}
