"""One thread for each encoder on a CPU, so that its features do not depend on the number of cores.

A matrix product that is split among threads adds its terms in another order, which changes last bits. One thread is the
only number that every machine has. Jobs on Ray use all CPUs all the same: they start one encoder for each CPU.
"""

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController


class _BlasLimit:
    """numpy's BLAS held at one thread while at least one caller is inside.

    The number of BLAS threads belongs to the whole process. The first caller to enter saves it, and the last to leave
    restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._former: list[tuple[Any, int]] = []

    def enter(self, *, has_torch: bool) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._former = [(library, library.num_threads) for library in _libraries(has_torch=has_torch)]
                for library, _ in self._former:
                    _set_num_threads(library, 1)
            self._num_inside += 1

    def leave(self) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                for library, num_threads in self._former:
                    _set_num_threads(library, num_threads)


_BLAS = _BlasLimit()


@contextmanager
def one_blas_thread(*, has_torch: bool = False) -> Iterator[None]:
    """Inside, numpy computes on one thread. Afterwards the former number is back."""
    _BLAS.enter(has_torch=has_torch)
    try:
        yield
    finally:
        _BLAS.leave()


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, numpy and torch compute on one thread. Afterwards the former numbers are back.

    It is also a decorator: ``@one_thread()``.
    """
    import torch

    num_threads = torch.get_num_threads()
    with one_blas_thread(has_torch=True):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(num_threads)


def _set_num_threads(library: Any, num_threads: int) -> None:
    """Set it whichever thread calls.

    Newer versions of threadpoolctl let only the first thread set OpenBLAS's number, and ignore the calls of others.
    """
    release = getattr(library, "clear_controlling_thread", None)
    if release is not None:
        release(force=True)
    library.set_num_threads(num_threads)
    if release is not None:
        release(force=True)


@functools.cache
def _libraries(*, has_torch: bool) -> Sequence[Any]:
    """The BLAS libraries of this process. To list them takes milliseconds, and torch may bring one of its own."""
    libraries: Sequence[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
    return libraries
