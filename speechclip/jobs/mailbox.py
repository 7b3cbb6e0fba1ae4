"""Lines on their way from a worker, on whatever node, to the driver. Imports nothing heavy: its actor is a process."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@ray.remote(num_cpus=0)
class Lines:
    """An actor that keeps lines until they are taken."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []

    def put(self, line: bytes) -> None:
        """Add a line."""
        self.waiting.append(line)

    def take(self) -> list[bytes]:
        """All lines since the last time, in order."""
        taken, self.waiting = self.waiting, []
        return taken


class Board(AbstractContextManager[Any]):
    """Gives an actor for workers to `put` lines on; while it is open, a thread here hands them to `on_line`.

    An error of `on_line` is raised when the board is closed.
    """

    def __init__(self, on_line: Callable[[bytes], None]) -> None:
        self.on_line = on_line
        self._is_done = threading.Event()

    def __enter__(self) -> Any:
        # Beside the driver: elsewhere it would die with a worker's node.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._lines = Lines.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        self._reader = ThreadPoolExecutor(1, "reads-lines")
        self._reading = self._reader.submit(self._read)
        return self._lines

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_done.set()
        self._reader.shutdown()
        ray.kill(self._lines)
        if error is None:
            self._reading.result()

    def _read(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._is_done.wait(1.0)
            for line in ray.get(self._lines.take.remote()):
                self.on_line(line)
