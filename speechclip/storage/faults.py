"""What the error of a failed request means: another attempt, an answer of S3, or the end.

Two clients send requests to S3: s3fs and the client of Delta Lake. Their errors quote parts of the request or of the
server's answer, and these can hold key ids and signatures. A `Fault` says the cause in words without any of that.
"""

import re
from typing import NamedTuple
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

# The HTTP statuses and error codes of S3 after which another attempt may succeed.
TRANSIENT_STATUS = {408, 409, 429, 500, 502, 503, 504}
TRANSIENT_CODES = {
    "RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "InternalError", "ServiceUnavailable",
    "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch",
}  # fmt: skip
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
