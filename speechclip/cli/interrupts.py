"""Ctrl-C and SIGTERM: raised where they come, and asked for again in case a C library has swallowed what was raised."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn, TypeVar

T = TypeVar("T")
_received: list[type[KeyboardInterrupt]] = []


class Terminated(KeyboardInterrupt):
    """SIGTERM: a node that is taken away, or `ray job stop`. As gentle as Ctrl-C."""


def listen() -> None:
    """From now on both signals raise in the main thread, and `heed` knows of them."""
    _received.clear()
    if threading.current_thread() is threading.main_thread():
        for number, kind in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)):
            signal.signal(number, _handler(kind))


def heed(items: Iterable[T]) -> Iterator[T]:
    """The items until one of the signals came; it is raised after the one that was at work meanwhile."""
    for item in items:
        yield item
        if _received:
            raise _received[0]


def _handler(kind: type[KeyboardInterrupt]) -> Callable[..., NoReturn]:
    def receive(*_: object) -> NoReturn:
        # Raised within a callback of libsndfile, say, it would be printed and forgotten.
        _received.append(kind)
        raise kind

    return receive
