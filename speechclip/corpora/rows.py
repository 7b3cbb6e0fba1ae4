"""The rows of a table or of a WebDataset as a person wrote them, checked cell by cell."""

import logging
import math
import os
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from speechclip.corpora.sources import OnProgress
from speechclip.corpora.utterances import Utterance, read_manifest
from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest

MODALITY_COLUMNS = ("audio", "image", "text")
TEXT_COLUMNS = (*MODALITY_COLUMNS, "split", "id", "group", "speaker", "language")
SECONDS_COLUMNS = ("start", "end")
KNOWN_COLUMNS = (*TEXT_COLUMNS, *SECONDS_COLUMNS)
DEFAULT_SPLIT = "train"

logger = logging.getLogger(__name__)


def read_rows(
    raw_rows: Iterable[tuple[str, dict[str, Any]]],
    *,
    name: str,
    folder: str,
    split: str | None,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """The manifest of these rows, in order. Each comes with the words that say where it was found.

    A relative path in a cell starts at `folder`. A row that names no split gets `split`; without one it gets "train",
    with a warning. `name` is that of the whole, for messages.
    """
    rows = [_check(raw, folder, where) for where, raw in raw_rows]
    if not rows:
        raise InvalidInput(f"{name}: has no rows", "give at least one")
    if split is None and (num_without := sum("split" not in row for row in rows)):
        logger.warning("%s: %d of %d rows name no split; they go into %s", name, num_without, len(rows), DEFAULT_SPLIT)
    return read_manifest(
        [Utterance(**({"id": None, "split": split or DEFAULT_SPLIT} | row)) for row in rows], on_progress
    )


def check_columns(columns: dict[str, str]) -> None:
    """`InvalidInput` if one of the names to the left of a `--column` is none of ours."""
    if unknown := [ours for ours in columns if ours not in KNOWN_COLUMNS]:
        raise InvalidInput(
            f"--column {unknown[0]}=…: there is no such column", f"to the left, give one of {', '.join(KNOWN_COLUMNS)}"
        )


def _check(raw: dict[str, Any], folder: str, where: str) -> dict[str, Any]:
    """The row without its empty cells, texts as text, seconds as numbers and paths in full."""
    unknown = sorted(str(name) for name in raw if name not in KNOWN_COLUMNS)
    if unknown:
        raise InvalidInput(
            f"{where}: unknown columns {', '.join(unknown)}; known are {', '.join(KNOWN_COLUMNS)}",
            "delete the others, or name those that you need, as --column audio=path (the rest is then ignored)",
        )
    row: dict[str, Any] = {}
    for name, cell in raw.items():
        is_missing = cell is None or (isinstance(cell, float) and math.isnan(cell))
        # A text of white space alone is kept: featurize rejects it, with a reason.
        if is_missing or (isinstance(cell, str) and not (cell if name == "text" else cell.strip())):
            continue
        row[name] = _seconds(cell, name, where) if name in SECONDS_COLUMNS else _text(cell, name, where)
        if name in ("audio", "image"):
            row[name] = _absolute(row[name], folder, f"{where}: {name}")
    if "split" in raw and "split" not in row:
        raise InvalidInput(f"{where}: the cell `split` is empty", "name a split such as train, dev or test")
    if not any(name in row for name in MODALITY_COLUMNS):
        raise InvalidInput(f"{where}: has neither audio nor image nor text", "fill one of them or delete the row")
    if "audio" not in row and ("start" in row or "end" in row):
        raise InvalidInput(f"{where}: has start or end but no audio", "name the recording or leave them out")
    return row


def _text(cell: Any, name: str, where: str) -> str:
    if not isinstance(cell, str):
        # pandas reads ids and speakers such as 1089 as numbers.
        if name in ("id", "speaker", "group") and isinstance(cell, int) and not isinstance(cell, bool):
            return str(cell)
        raise InvalidInput(f"{where}: {name} is {cell!r}, expected a text", "fix the row")
    try:
        cell.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{where}: {name} is not valid Unicode ({error})", "fix the row") from None
    return cell if name == "text" else cell.strip()


def _seconds(cell: Any, name: str, where: str) -> float:
    try:
        seconds = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise InvalidInput(f"{where}: {name} is {cell!r}, expected seconds, 0 or more", "fix the row")
    return seconds


def _absolute(cell: str, folder: str, where: str) -> str:
    if cell.startswith("file://"):
        return unquote(cell.removeprefix("file://"))
    if "://" in cell:
        if not cell.startswith("s3://"):
            raise InvalidInput(
                f"{where} is {cell!r}, but only local paths and s3:// addresses can be read", "download the file"
            )
        return cell
    return f"{folder}/{cell}" if "://" in folder else os.path.normpath(os.path.join(folder, cell))
