"""Retries of requests to S3: random pauses, a limit in time, and at the end one sentence that says what failed.

Two clients send requests to S3: s3fs and the client of Delta Lake. Both raise errors that quote parts of the request or
of the server's answer, and these can hold key ids and signatures. So their errors become a `StorageFailed` or a
`StorageRefused`, whose words hold none of that.
"""

import logging
import re
from collections.abc import Callable
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from aiohttp import ClientError as HttpError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    SSLError,
)
from botocore.parsers import ResponseParserError
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
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

logger = logging.getLogger(__name__)

T = TypeVar("T")
# An attempt ends after CONNECT_SECONDS without a connection, or after READ_SECONDS without a byte. After RETRY_SECONDS
# or MAX_ATTEMPTS there is no further attempt. So a server that never answers ends a command after about 90 seconds.
CONNECT_SECONDS, READ_SECONDS, RETRY_SECONDS, MAX_ATTEMPTS = 5, 30, 60, 10
# Pauses are random between zero and a limit. The limit doubles from twice the first figure up to the second.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 10.0
TRANSIENT_STATUS = {408, 409, 429, 500, 502, 503, 504}
TRANSIENT_CODES = {
    "RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "InternalError", "ServiceUnavailable",
    "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch",
}  # fmt: skip
ADVICE = "fix that and run the same command again; what was committed is kept"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Fault(NamedTuple):
    """What the error of a failed request means.

    `cause` says it in words without secrets. `is_transient` says whether another attempt may succeed. `raises` is the
    error for an answer that is no failure, such as "no such file". `is_spent` says that the client itself has retried
    as often as it may.
    """

    cause: str
    is_transient: bool
    raises: type[Exception] | None = None
    is_spent: bool = False


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


def fault_of(error: Exception) -> Fault | None:
    """What an error of one of the two clients means; None for any other error."""
    if isinstance(error, DeltaError) or (type(error) is OSError and error.errno is None and not error.__cause__):
        return _fault_of_delta(error)
    if isinstance(error, (OSError, BotoCoreError, ClientError, HttpError, ResponseParserError)):
        return _fault_of_s3fs(error)
    if isinstance(error, ValueError) and str(error).startswith("Invalid endpoint"):
        return Fault("the endpoint is no URL; a URL begins with http:// or https://", False)
    return None


def _fault_of_s3fs(error: Exception) -> Fault:
    """Read from the server's answer, or from the type of the error if there was no answer."""
    response = getattr(error if isinstance(error, ClientError) else error.__cause__, "response", None)
    if response is None:
        if isinstance(error, FileNotFoundError):
            return Fault("no such file", False, FileNotFoundError)
        return _unanswered(error)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = response.get("Error", {}).get("Code", "")
    answers: dict[int, type[Exception]] = {412: FileExistsError, 416: EOFError}
    if code != "NoSuchBucket":
        answers[404] = FileNotFoundError
    return Fault(_answer(status, code), _is_transient(status, code), answers.get(status))


def _unanswered(error: Exception) -> Fault:
    """The fault of a request that got no answer from the server."""
    details, kind = getattr(error, "kwargs", {}), type(error).__name__
    if "endpoint_url" in details:
        parts = urlsplit(details["endpoint_url"])
        kind = f"{kind} at {parts.scheme}://{parts.hostname}:{parts.port or 443}"
    if not isinstance(error, BotoCoreError):
        return Fault(kind, True)
    if isinstance(error, (CredentialRetrievalError, SSLError)):
        # Their texts may hold secrets: the output of a program that prints credentials, or an address with a password.
        return Fault(kind, False)
    if isinstance(error, (ConnectionError, HTTPClientError)):
        return Fault(kind, True)
    # A missing profile, no credentials: another attempt fails in the same way.
    return Fault(f"{kind}, {one_line(error)}", False)


def _fault_of_delta(error: Exception) -> Fault | None:
    """Read from the error's text, as Delta's client gives nothing else; None if it is no failed request."""
    if isinstance(error, (TableNotFoundError, CommitFailedError)):
        return None
    text = _COLOURS.sub("", str(error))
    if not re.search("S3 error|object store|Error performing|operation lacked", text):
        return None
    retries = re.search(r"after (\d+) retries, max_retries\W+(\d+)", text)
    is_spent = retries is not None and int(retries[1]) >= int(retries[2])
    status, code = re.search(r"status code\W+([45]\d\d)\b", text), re.search(r"<Code>(\w+)</Code>", text)
    if status:
        number, word = int(status[1]), code[1] if code else ""
        return Fault(_answer(number, word), _is_transient(number, word), is_spent=is_spent)
    lines = [line.strip(" ↳") for line in re.split(r"\n|: ", text) if line.strip(" ↳")]
    if "certificate" in text:
        return Fault(f"invalid certificate, {lines[-1][:80]}", False)
    return Fault(lines[-1][:80], True, is_spent=is_spent)


def one_line(error: Exception) -> str:
    """The text of an error without line breaks and colours, at most 200 characters."""
    return " ".join(_COLOURS.sub("", str(error)).split())[:200]


def _is_transient(status: int, code: str) -> bool:
    return status in TRANSIENT_STATUS or code in TRANSIENT_CODES


def _answer(status: int, code: str) -> str:
    """Such as "503 SlowDown"."""
    return " ".join(dict.fromkeys(str(part) for part in (status, code) if part))
