"""Signals are raised where they come, and a second time where a C library swallowed them."""

import ctypes
import os
import signal
from collections.abc import Iterator

import pytest

from speechclip.cli import interrupts


@pytest.fixture(autouse=True)
def _listening() -> Iterator[None]:
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    interrupts.listen()
    yield
    for number, handler in before:
        signal.signal(number, handler)


SIGNALS = pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, interrupts.Terminated)]
)


@SIGNALS
def test_a_signal_is_raised_where_it_comes(number: int, kind: type[KeyboardInterrupt]) -> None:
    with pytest.raises(kind) as raised:
        os.kill(os.getpid(), number)
    assert raised.type is kind


@SIGNALS
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_within_a_callback_of_c_is_raised_after_the_item(number: int, kind: type[KeyboardInterrupt]) -> None:
    def work() -> Iterator[int]:
        for item in range(3):
            if item == 1:
                # What Python raises in there, C can't pass on.
                ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), number))()
            yield item

    done: list[int] = []
    with pytest.raises(kind):
        done.extend(interrupts.stop_on_signal(work()))
    assert done == [0, 1]


def test_an_earlier_signal_is_forgotten_by_the_next_command() -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    interrupts.listen()
    assert list(interrupts.stop_on_signal(range(3))) == [0, 1, 2]
