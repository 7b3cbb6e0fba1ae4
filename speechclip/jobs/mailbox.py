"""Messages from the workers of a training to the driver, on any node: an actor keeps them, and a thread reads them.

`ray.util.queue.Queue` is not enough. It is an asynchronous actor, so messages that a worker posts without waiting for
an answer arrive in another order. If the worker waits, a slow or lost driver stops a training step.

This module imports nothing heavy, because the actor is a process that imports it.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

READ_SECONDS = 1.0
FLUSH_SECONDS = 10.0


@ray.remote(num_cpus=0)
class Messages:
    """An actor that keeps messages until the driver takes them. Its calls run one after the other."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []

    def put(self, message: bytes) -> None:
        """Add a message."""
        self.waiting.append(message)

    def sync(self) -> None:
        """Return when all earlier calls of the same worker are done."""

    def take(self) -> list[bytes]:
        """All messages since the last call, in order."""
        taken, self.waiting = self.waiting, []
        return taken


def post(messages: Any, message: bytes) -> None:
    """Send a message from a worker. Does not wait for an answer, so that a report never delays or stops a step.

    The messages of one worker arrive in the order in which it sent them. Call `flush` before the worker ends.
    """
    messages.put.remote(message)


def flush(messages: Any) -> None:
    """Wait until all messages of this worker have arrived, ten seconds at most. Else the last ones may be lost."""
    ray.wait([messages.sync.remote()], timeout=FLUSH_SECONDS)


class Mailbox(AbstractContextManager[Any]):
    """While it is open, a thread of the driver calls `on_message` with each message that a worker posts.

    `with` gives the actor for `post`. When the mailbox closes, it reads the last messages, and raises the error of
    `on_message` if there was one.
    """

    def __init__(self, on_message: Callable[[bytes], None]) -> None:
        self.on_message = on_message
        self._is_closing = threading.Event()

    def __enter__(self) -> Any:
        # On the driver's node. On another one it would die together with a worker's node.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._messages = Messages.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        self._reader = ThreadPoolExecutor(1, "reads-mailbox")
        self._reading = self._reader.submit(self._read)
        return self._messages

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closing.set()
        self._reader.shutdown()
        ray.kill(self._messages)
        if error is None:
            self._reading.result()

    def _read(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._is_closing.wait(READ_SECONDS)
            for message in ray.get(self._messages.take.remote()):
                self.on_message(message)
