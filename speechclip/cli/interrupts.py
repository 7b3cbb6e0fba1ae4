"""Ctrl-C and SIGTERM: both raise an exception in the main thread, and none gets lost inside a C library."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn, TypeVar

T = TypeVar("T")
_received: list[type[KeyboardInterrupt]] = []


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, which a cluster sends before it removes a node, and `ray job stop` too. Handled as Ctrl-C."""


def listen() -> None:
    """From now on both signals raise in the main thread, and `stop_on_signal` remembers them."""
    _received.clear()
    if threading.current_thread() is threading.main_thread():
        for number, kind in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)):
            signal.signal(number, _handler(kind))


def stop_on_signal(items: Iterable[T]) -> Iterator[T]:
    """Yield items. If a signal arrived while the caller worked on one, raise it before the next item.

    A C library such as libsndfile may swallow the exception that the signal raised inside its callback.
    """
    for item in items:
        yield item
        if _received:
            raise _received[0]


def _handler(kind: type[KeyboardInterrupt]) -> Callable[..., NoReturn]:
    def receive(*_: object) -> NoReturn:
        # A callback of libsndfile would print this exception and go on; so it is also remembered.
        _received.append(kind)
        raise kind

    return receive
