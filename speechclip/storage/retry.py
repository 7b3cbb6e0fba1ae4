"""Retries of requests to S3: random pauses, a limit in time, and at the end one sentence that says what failed."""

import logging
from collections.abc import Callable
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    stop_any,
    wait_random_exponential,
)
from tenacity.stop import stop_base

from speechclip.errors import StorageFailed, StorageRefused
from speechclip.storage.faults import Fault, fault_of

logger = logging.getLogger(__name__)

T = TypeVar("T")
# An attempt ends after CONNECT_SECONDS without a connection, or READ_SECONDS without a byte. Once RETRY_SECONDS are
# over, or after MAX_ATTEMPTS, nothing is tried again. So a command ends within two minutes if a server is silent.
CONNECT_SECONDS, READ_SECONDS, RETRY_SECONDS, MAX_ATTEMPTS = 5, 30, 60, 10
# Pauses are random between zero and a limit. The limit doubles from twice the first figure up to the second.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 10.0
ADVICE = "fix that and run the same command again; what was committed is kept"


class _TransientError(Exception):
    """A request failed in a way that another attempt may not."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.cause)
        self.fault = fault


class _StopWhenSpent(stop_base):
    """No further attempt where Delta's client has retried as often as it may."""

    def __call__(self, retry_state: RetryCallState) -> bool:
        return _fault(retry_state).is_spent


def with_retries(doing: str, address: str, call: Callable[[], T]) -> T:
    """What `call` returns, after as many attempts as the limits above allow.

    `doing` and `address` stand in messages: "<address>: <doing> failed". Raises `FileNotFoundError`, `FileExistsError`
    and `EOFError` (a range that starts behind the end) where S3 answers so. Errors of Delta's client that are no
    failed request pass unchanged. Raises `StorageRefused` where another attempt is useless, and `StorageFailed` after
    the last attempt.
    """

    def attempt() -> T:
        try:
            return call()
        except Exception as error:
            fault = fault_of(error)
            if fault is None:
                raise
        # Outside of the `except` block: the client's own error must not be the context of ours, it may hold secrets.
        if fault.raises is not None:
            raise fault.raises(f"{address}: {fault.cause}")
        if not fault.is_transient:
            raise StorageRefused(f"{address}: {doing} failed ({fault.cause})", ADVICE)
        raise _TransientError(fault)

    def log_retry(state: RetryCallState) -> None:
        logger.info("%s: %s failed (%s), attempt %d", address, doing, _fault(state).cause, state.attempt_number)

    def fail(state: RetryCallState) -> T:
        times = f"{state.attempt_number} times " if state.attempt_number > 1 else ""
        seconds = state.seconds_since_start or 0.0
        raise StorageFailed(f"{address}: {doing} failed {times}in {seconds:.0f} s ({_fault(state).cause})", ADVICE)

    retrying = Retrying(
        retry=retry_if_exception_type(_TransientError),
        wait=wait_random_exponential(multiplier=2 * FIRST_PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS),
        stop=stop_any(stop_after_attempt(MAX_ATTEMPTS), stop_after_delay(RETRY_SECONDS), _StopWhenSpent()),
        before_sleep=log_retry,
        retry_error_callback=fail,
    )
    return retrying(attempt)


def _fault(state: RetryCallState) -> Fault:
    """The fault of the last attempt, which failed in a transient way."""
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, _TransientError)
    return error.fault
