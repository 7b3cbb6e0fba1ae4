"""Requests to S3 that outlast bad weather: retried with jittered pauses, bounded in time, then one sentence.

Two clients speak to S3, s3fs and Delta's own. What either raises becomes `StorageFailed` or `StorageRefused`, in
words that hold no part of a request or of a server's page: those quote key ids and signatures.
"""

import logging
import random
import re
import time
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

from speechclip.errors import StorageFailed, StorageRefused

logger = logging.getLogger(__name__)

T = TypeVar("T")
# A silent server is given up after CONNECT or READ seconds, and no attempt begins later than PATIENCE seconds after
# the first: the worst case is a sentence after a minute and a half.
CONNECT_SECONDS, READ_SECONDS, PATIENCE_SECONDS, MAX_ATTEMPTS = 5, 30, 60, 10
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 10.0
TRANSIENT_STATUS = {408, 409, 429, 500, 502, 503, 504}
TRANSIENT_CODES = {
    "RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "InternalError", "ServiceUnavailable",
    "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch",
}  # fmt: skip
ADVICE = "mend that and run the same command again, what was committed is kept"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Fault(NamedTuple):
    """What a failed request comes to: the cause in words, and the answer to it.

    `is_spent` where the client has had all our patience already.
    """

    cause: str
    is_transient: bool
    raises: type[Exception] | None = None
    is_spent: bool = False


def patiently(doing: str, address: str, call: Callable[[], T]) -> T:
    """What `call` returns, after as many attempts as patience allows.

    `FileNotFoundError`, `FileExistsError` and `EOFError` (a range behind the end) are S3's answers, and Delta's own
    errors pass as they are; all else ends as a `StorageFailed` or `StorageRefused` that names it.
    """
    started, attempt = time.monotonic(), 1
    while True:
        try:
            return call()
        except Exception as error:
            fault = fault_of(error)
            if fault is None:
                raise
        if fault.raises is not None:
            raise fault.raises(f"{address}: {fault.cause}")
        if not fault.is_transient:
            raise StorageRefused(f"{address}: {doing} failed ({fault.cause}); {ADVICE}")
        seconds = time.monotonic() - started
        if fault.is_spent or attempt >= MAX_ATTEMPTS or seconds > PATIENCE_SECONDS:
            times = f"{attempt} times " if attempt > 1 else ""
            raise StorageFailed(f"{address}: {doing} failed {times}in {seconds:.0f} s ({fault.cause}); {ADVICE}")
        logger.info("%s: %s failed (%s), attempt %d", address, doing, fault.cause, attempt)
        time.sleep(random.uniform(0, min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**attempt)))
        attempt += 1


def fault_of(error: Exception) -> Fault | None:
    """What an error of one of the two clients comes to; None for any other."""
    if isinstance(error, DeltaError) or (type(error) is OSError and error.errno is None and not error.__cause__):
        return _fault_of_delta(error)
    if isinstance(error, (OSError, BotoCoreError, ClientError, HttpError, ResponseParserError)):
        return _fault_of_s3fs(error)
    if isinstance(error, ValueError) and str(error).startswith("Invalid endpoint"):
        return Fault("the endpoint is no URL, it begins with http:// or https://", False)
    return None


def _fault_of_s3fs(error: Exception) -> Fault:
    """By the server's answer behind the error, or by the error's kind where there was none."""
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
    details, kind = getattr(error, "kwargs", {}), type(error).__name__
    if "endpoint_url" in details:
        parts = urlsplit(details["endpoint_url"])
        kind = f"{kind} at {parts.scheme}://{parts.hostname}:{parts.port or 443}"
    if not isinstance(error, BotoCoreError):
        return Fault(kind, True)
    if isinstance(error, (CredentialRetrievalError, SSLError)):
        # They quote what the program that tells the credentials has printed, or the address with what stands in it.
        return Fault(kind, False)
    if isinstance(error, (ConnectionError, HTTPClientError)):
        return Fault(kind, True)
    # A missing profile, no credentials, a wrong certificate: another attempt goes no better.
    return Fault(f"{kind}, {one_line(error)}", False)


def _fault_of_delta(error: Exception) -> Fault | None:
    """From the text, which is all there is; None for what is no failure to reach the table."""
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
    """Its text without line breaks and colours, at most 200 characters."""
    return " ".join(_COLOURS.sub("", str(error)).split())[:200]


def _is_transient(status: int, code: str) -> bool:
    return status in TRANSIENT_STATUS or code in TRANSIENT_CODES


def _answer(status: int, code: str) -> str:
    return " ".join(dict.fromkeys(str(part) for part in (status, code) if part))
