"""What a command writes to stderr: sentences for people, or one JSON object a line for machines."""

import logging
import os
import sys
import time
from typing import Any, Literal

from pythonjsonlogger.json import JsonFormatter

Format = Literal["text", "json"]
# In the environment, so that the processes that this one starts use the same format.
VARIABLE = "SPEECHCLIP_LOG_FORMAT"
_FIELDS = {"asctime": "time", "levelname": "level", "name": "logger"}
_logger = logging.getLogger("speechclip")


def configure(log_format: Format, *, verbose: bool) -> None:
    """Send log messages to stderr: warnings and errors, and with `verbose` also information, such as each commit."""
    os.environ[VARIABLE] = log_format
    handler = logging.StreamHandler(sys.stderr)
    if is_json():
        formatter = JsonFormatter(
            "{asctime}{levelname}{name}{message}", style="{", rename_fields=_FIELDS, datefmt="%Y-%m-%dT%H:%M:%SZ"
        )
        # UTC, like every time in the store.
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler], format="%(message)s")


def is_json() -> bool:
    """Whether the format is JSON."""
    return os.environ.get(VARIABLE) == "json"


def log(sentence: str, level: int = logging.INFO, **fields: Any) -> None:
    """Write a line with the sentence and these fields, also without `verbose`."""
    record = _logger.makeRecord(_logger.name, level, "", 0, sentence, (), None, extra=fields)
    _logger.callHandlers(record)
