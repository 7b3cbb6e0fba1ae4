"""What a command says besides its result: sentences for people, or a JSON object a line for machines."""

import logging
import os
import sys
import time
from typing import Any, Literal

from pythonjsonlogger.json import JsonFormatter

Format = Literal["text", "json"]
# The environment carries the choice to whatever this process starts, Ray's workers too.
VARIABLE = "SPEECHCLIP_LOG_FORMAT"
_FIELDS = {"asctime": "time", "levelname": "level", "name": "logger"}
_said = logging.getLogger("speechclip")


def configure(log_format: Format, *, verbose: bool) -> None:
    """Send what is logged to stderr: warnings, and with `verbose` also what goes well."""
    os.environ[VARIABLE] = log_format
    handler = logging.StreamHandler(sys.stderr)
    if is_json():
        formatter = JsonFormatter(
            "{asctime}{levelname}{name}{message}", style="{", rename_fields=_FIELDS, datefmt="%Y-%m-%dT%H:%M:%SZ"
        )
        # UTC, as every time that we store.
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler], format="%(message)s")


def is_json() -> bool:
    """Whether lines for machines were asked for."""
    return os.environ.get(VARIABLE) == "json"


def log(sentence: str, level: int = logging.INFO, **fields: Any) -> None:
    """A line with these fields beside the sentence, however quiet the rest of the log is."""
    record = _said.makeRecord(_said.name, level, "", 0, sentence, (), None, extra=fields)
    _said.callHandlers(record)
