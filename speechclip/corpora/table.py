"""Any corpus as a table: a CSV, JSONL or Parquet file with one row an utterance.

    audio,image,text,split
    clips/1.wav,pictures/1.jpg,"a red circle",train

At least one of the columns `audio`, `image` and `text`. An empty cell means that the row lacks this modality. Optional
columns: `split`, `id`, `group`, `speaker`, `language`, and `start` and `end` in seconds.
"""

import csv
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from speechclip.corpora.rows import KNOWN_COLUMNS, check_columns, read_rows
from speechclip.corpora.sources import OnProgress
from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest
from speechclip.storage import parse_parquet, read_uri

logger = logging.getLogger(__name__)


def read_table(
    path: str,
    *,
    columns: dict[str, str] | None = None,
    split: str | None = None,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """The manifest of the table at a local path or `s3://` address, one row each, in the table's order.

        read_table("validated.csv", columns={"audio": "path", "text": "sentence"}, split="test")

    Relative paths in it start at the table's own folder. `columns` gives for one of our columns the table's name for
    it; then the table's other columns are ignored, with a warning. Rows that name no split get `split`.

    A source that can't be read keeps its row, with the reason in `*_error`. A table that can't be read is
    `InvalidInput`, with the row and the column.
    """
    folder = path.rpartition("/")[0] if "://" in path else os.path.dirname(os.path.abspath(path))
    raw_rows: Iterable[dict[str, Any]] = _raw_rows(path)
    if columns:
        raw_rows = _mapped(raw_rows, columns, path)
    numbered = ((f"{path}: row {number}", row) for number, row in enumerate(raw_rows, start=1))
    return read_rows(numbered, name=path, folder=folder, split=split, on_progress=on_progress)


def _raw_rows(path: str) -> Iterator[dict[str, Any]]:
    readers = {"csv": _csv_rows, "jsonl": _jsonl_rows, "parquet": _parquet_rows}
    extension = path.rpartition(".")[2].lower()
    if extension not in readers:
        raise InvalidInput(f"{path}: expected a .csv, .jsonl or .parquet table", "rename or convert it")
    data = read_uri(path)
    try:
        yield from readers[extension](data)
    except (ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise InvalidInput(f"{path}: can't be read as UTF-8 {extension} ({error})", "fix the table") from None


def _mapped(rows: Iterable[dict[str, Any]], columns: dict[str, str], path: str) -> list[dict[str, Any]]:
    """The rows under our names. A column of ours that `columns` doesn't name is taken from the one of equal name."""
    check_columns(columns)
    rows = list(rows)
    seen = dict.fromkeys(str(name) for row in rows for name in row)
    if absent := [theirs for theirs in columns.values() if rows and theirs not in seen]:
        raise InvalidInput(f"{path}: has no column {absent[0]!r}, only {', '.join(seen)}", "correct --column")
    own = {name: name for name in KNOWN_COLUMNS if name not in columns and name not in columns.values()}
    taken = columns | own
    if ignored := [name for name in seen if name not in taken.values()]:
        logger.warning("%s: these columns are ignored: %s", path, ", ".join(ignored))
    return [{ours: row[theirs] for ours, theirs in taken.items() if theirs in row} for row in rows]


def _csv_rows(data: bytes) -> Iterator[dict[str, Any]]:
    reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
    header = [name.strip() for name in next(reader, [])]
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise csv.Error(f"column {twice[0]!r} occurs twice")
    for cells in reader:
        if cells and len(cells) != len(header):
            raise csv.Error(f"line {reader.line_num} has {len(cells)} cells, the header {len(header)}")
        if cells:
            yield dict(zip(header, cells, strict=True))


def _jsonl_rows(data: bytes) -> Iterator[dict[str, Any]]:
    # Not splitlines: a caption may contain U+2028, which ends no line of JSON.
    for number, line in enumerate(data.decode("utf-8-sig").split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number} must be an object")
            yield row


def _parquet_rows(data: bytes) -> Iterator[dict[str, Any]]:
    yield from parse_parquet(data).to_pylist()
