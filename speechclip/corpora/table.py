"""Any corpus as a table: a CSV, JSONL or Parquet file with one row an utterance.

    audio,image,text,split
    clips/1.wav,pictures/1.jpg,"a red circle",train

Columns `audio`, `image`, `text`: at least one; an empty cell is a missing modality, but a text of white space alone is
one that featurize rejects. Optional: `split` (without the column all rows are "train"), `id`, `group`, `speaker`,
`language`, and `start`, `end` in seconds.
"""

import csv
import hashlib
import io
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from speechclip.corpora.sources import (
    OnProgress,
    Source,
    group_of,
    image_columns,
    read_sources,
    speech_columns,
    text_columns,
)
from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest
from speechclip.storage import parse_parquet, read_uri

MODALITY_COLUMNS = ("audio", "image", "text")
TEXT_COLUMNS = (*MODALITY_COLUMNS, "split", "id", "group", "speaker", "language")
SECONDS_COLUMNS = ("start", "end")
KNOWN_COLUMNS = (*TEXT_COLUMNS, *SECONDS_COLUMNS)

logger = logging.getLogger(__name__)


def read_table(
    path: str, *, columns: dict[str, str] | None = None, split: str | None = None, progress: OnProgress | None = None
) -> Manifest:
    """The manifest of the table at a local path or `s3://` address, rows in the table's order.

    Relative paths in it start at the table's own folder. `columns` says which of its columns serves as which of ours,
    as {"audio": "path"}; then all other columns but ours are ignored, and said so. `split`: of the rows that name none.
    Files that can't be read stand in the manifest with their reason; a table that can't be understood is
    `InvalidInput`, naming column and row.
    """
    folder = path.rpartition("/")[0] if "://" in path else os.path.dirname(os.path.abspath(path))
    raw_rows: Iterable[dict[str, Any]] = _mapped(_raw_rows(path), columns, path) if columns else _raw_rows(path)
    rows = [_checked(row, folder, f"{path}: row {number}") for number, row in enumerate(raw_rows, start=1)]
    if not rows:
        raise InvalidInput(f"{path}: holds no rows; give at least one")
    if split is None and (num_without := sum("split" not in row for row in rows)):
        logger.warning("%s: %d of %d rows name no split and are train", path, num_without, len(rows))
    for row in rows:
        row.setdefault("split", split or "train")
    audio, images = read_sources(
        audio=(row["audio"] for row in rows if row.get("audio")),
        images=(row["image"] for row in rows if row.get("image")),
        progress=progress,
    )
    return Manifest.from_rows(_named([_utterance(row, audio, images) for row in rows]))


def _raw_rows(path: str) -> Iterator[dict[str, Any]]:
    readers = {"csv": _csv_rows, "jsonl": _jsonl_rows, "parquet": _parquet_rows}
    extension = path.rpartition(".")[2].lower()
    if extension not in readers:
        raise InvalidInput(f"{path}: expected a .csv, .jsonl or .parquet table; rename or convert it")
    data = read_uri(path)
    try:
        yield from readers[extension](data)
    except (ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise InvalidInput(f"{path}: can't be read as UTF-8 {extension} ({error}); mend the table") from None


def _mapped(rows: Iterable[dict[str, Any]], columns: dict[str, str], path: str) -> list[dict[str, Any]]:
    """The rows under our names: each of `columns` from the one it names, the rest of ours from their own."""
    if unknown := [ours for ours in columns if ours not in KNOWN_COLUMNS]:
        raise InvalidInput(f"there is no column {unknown[0]!r} of ours; known are {', '.join(KNOWN_COLUMNS)}")
    rows = list(rows)
    seen = dict.fromkeys(str(name) for row in rows for name in row)
    if absent := [theirs for theirs in columns.values() if rows and theirs not in seen]:
        raise InvalidInput(f"{path}: has no column {absent[0]!r}, only {', '.join(seen)}; mend the mapping")
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
    # Not splitlines: a caption may hold U+2028, which ends no line of JSON.
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


def _checked(raw: dict[str, Any], folder: str, where: str) -> dict[str, Any]:
    """The row with empty cells left out, texts as texts, seconds as numbers and paths whole."""
    unknown = sorted(str(name) for name in raw if name not in KNOWN_COLUMNS)
    if unknown:
        raise InvalidInput(
            f"{where}: unknown columns {', '.join(unknown)}; known are {', '.join(KNOWN_COLUMNS)}; drop the others, or "
            "say which serve as ours by --column audio=path (the rest is ignored then)"
        )
    row: dict[str, Any] = {}
    for name, cell in raw.items():
        is_missing = cell is None or (isinstance(cell, float) and math.isnan(cell))
        if is_missing or (isinstance(cell, str) and not (cell if name == "text" else cell.strip())):
            continue
        row[name] = _seconds(cell, name, where) if name in SECONDS_COLUMNS else _text(cell, name, where)
        if name in ("audio", "image"):
            row[name] = _absolute(row[name], folder, f"{where}: {name}")
    if "split" in raw and "split" not in row:
        raise InvalidInput(f"{where}: the cell `split` is empty; name a split such as train, dev or test")
    if not any(name in row for name in MODALITY_COLUMNS):
        raise InvalidInput(f"{where}: neither audio nor image nor text; fill one of them or drop the row")
    if "audio" not in row and ("start" in row or "end" in row):
        raise InvalidInput(f"{where}: start and end without audio; name the recording or leave them out")
    return row


def _text(cell: Any, name: str, where: str) -> str:
    if not isinstance(cell, str):
        # A table of numbers read by pandas: ids and speakers such as 1089 are texts all the same.
        if name in ("id", "speaker", "group") and isinstance(cell, int) and not isinstance(cell, bool):
            return str(cell)
        raise InvalidInput(f"{where}: {name} is {cell!r}, expected a text; mend the table")
    try:
        cell.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{where}: {name} is not valid Unicode ({error}); mend the table") from None
    return cell if name == "text" else cell.strip()


def _seconds(cell: Any, name: str, where: str) -> float:
    try:
        seconds = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise InvalidInput(f"{where}: {name} is {cell!r}, expected seconds, 0 or more; mend the table")
    return seconds


def _absolute(cell: str, folder: str, where: str) -> str:
    if cell.startswith("file://"):
        return unquote(cell.removeprefix("file://"))
    if "://" in cell:
        if not cell.startswith("s3://"):
            raise InvalidInput(f"{where} is {cell!r}; only local paths and s3:// addresses can be read, fetch the file")
        return cell
    return f"{folder}/{cell}" if "://" in folder else os.path.normpath(os.path.join(folder, cell))


def _utterance(row: dict[str, Any], audio: dict[str, Source], images: dict[str, Source]) -> dict[str, Any]:
    speech = speech_columns(audio.get(row.get("audio", "")), start_seconds=row.get("start"), end_seconds=row.get("end"))
    columns = speech | image_columns(images.get(row.get("image", ""))) | text_columns(row.get("text"))
    return columns | {
        "utterance": row.get("id"),
        "split": row["split"],
        "group": row.get("group"),
        "speaker": row.get("speaker"),
        "language": row.get("language"),
    }


def _named(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the ids they lack: 16 hex digits of their content, so a moved or reordered table keeps its ids."""
    seen: Counter[str] = Counter()
    for row in rows:
        if row["utterance"] is None:
            content = [row.get(name) for name in ("speech_key", "image_key", "text_key", "speaker", "split")]
            # What could not be read has no content: its file's name stands in.
            content += [os.path.basename(row[uri]) for uri, key in _URI_KEYS if row.get(uri) and not row.get(key)]
            name = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
            seen[name] += 1
            row["utterance"] = name if seen[name] == 1 else f"{name}-{seen[name]}"
        row["group"] = row["group"] or group_of(row, row["utterance"])
    return rows


_URI_KEYS = (("audio_uri", "speech_key"), ("image_uri", "image_key"))
