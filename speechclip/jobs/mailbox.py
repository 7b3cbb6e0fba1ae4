"""Messages from the workers of a training to the driver, on any node: a queue of Ray, and a thread that reads it."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType

import ray
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

READ_SECONDS = 1.0


def post(queue: Queue, message: bytes) -> None:
    """Send a message from a worker. Does not wait for an answer, so that a report never delays or stops a step.

    The messages of one worker arrive in the order in which it sent them.
    """
    # `Queue.put_nowait` would wait, and would raise if the driver is gone.
    queue.actor.put_nowait.remote(message)


class Mailbox(AbstractContextManager[Queue]):
    """While it is open, a thread of the driver calls `on_message` with each message that a worker posts.

    `with` gives the queue for `post`. When the mailbox closes, it reads the last messages, and raises the error of
    `on_message` if there was one.
    """

    def __init__(self, on_message: Callable[[bytes], None]) -> None:
        self.on_message = on_message
        self._is_closing = threading.Event()

    def __enter__(self) -> Queue:
        # The queue is a process. On the driver's node it does not die together with a worker's node.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._reader = ThreadPoolExecutor(1, "reads-mailbox")
        self._reading = self._reader.submit(self._read)
        return self._queue

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closing.set()
        self._reader.shutdown()
        self._queue.shutdown(force=True)
        if error is None:
            self._reading.result()

    def _read(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._is_closing.wait(READ_SECONDS)
            # Nobody else reads, so the queue still has that many.
            for message in self._queue.get_nowait_batch(self._queue.qsize()):
                self.on_message(message)
