"""The manifest: a Parquet table with one row an utterance. Who says what about which picture, in which split.

docs/corpora.md explains each column.
"""

import hashlib
import io
import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechclip.errors import InvalidInput
from speechclip.records import Asset, Modality, Record
from speechclip.storage import parse_parquet, read_uri, split_uri

# Rows of one `group` are right answers for each other; by default the group is the key of the picture. A source that
# could not be read at ingest has no key, and its `*_error` says why, as "reason: sentence".
SCHEMA = pa.schema(
    [
        pa.field("utterance", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("speaker", pa.string()),
        pa.field("language", pa.string()),
        pa.field("speech_key", pa.string()),
        pa.field("audio_uri", pa.string()),
        pa.field("start_sample", pa.int64()),
        pa.field("end_sample", pa.int64()),
        pa.field("num_samples", pa.int64()),
        pa.field("sample_rate", pa.int32()),
        pa.field("audio_error", pa.string()),
        pa.field("image_key", pa.string()),
        pa.field("image_uri", pa.string()),
        pa.field("image_error", pa.string()),
        pa.field("text_key", pa.string()),
        pa.field("text", pa.string()),
    ],
    metadata={"speechclip.manifest": "1"},
)
KEY_COLUMNS = ("speech_key", "image_key", "text_key")
KEY_PATTERN = r"^[0-9a-f]{64}(-[0-9]+-[0-9]+)?$"
# How many rows are dictionaries at once: these take ten times the memory of a table.
BATCH_ROWS = 20_000
URI_COLUMNS: dict[Modality, str] = {"speech": "audio_uri", "image": "image_uri"}
ERROR_COLUMNS: dict[Modality, str] = {"speech": "audio_error", "image": "image_error"}
# The columns from which an asset is made.
_COLUMNS_OF: dict[Modality, list[str]] = {
    "speech": ["speech_key", "audio_uri", "start_sample", "end_sample", "num_samples", "sample_rate"],
    "image": ["image_key", "image_uri"],
    "text": ["text_key", "text"],
}


class UnreadSource(Record, frozen=True):
    """A source that could not be read at ingest, the reason, and the utterances that name it."""

    uri: str
    reason: str
    detail: str
    utterances: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """The rows of a manifest as an Arrow table of `SCHEMA`."""

    table: pa.Table

    @classmethod
    def read(cls, uri: str) -> "Manifest":
        """The manifest at a local path or `s3://` address; `InvalidInput` if the file is none."""
        try:
            table = parse_parquet(read_uri(uri))
        except pa.ArrowInvalid as error:
            raise InvalidInput(
                f"{uri}: not a Parquet file ({error})", "make a manifest by `speechclip ingest`"
            ) from None
        if not table.schema.equals(SCHEMA):
            raise InvalidInput(f"{uri}: not a manifest of format 1", "run `speechclip ingest` again")
        for column in KEY_COLUMNS:
            # Keys become names of files and tar members, so they may hold only a digest and a segment.
            if not pc.all(pc.match_substring_regex(table[column], KEY_PATTERN)).as_py() and table[
                column
            ].null_count < len(table):
                raise InvalidInput(
                    f"{uri}: {column} holds a value that is not a content key", "run `speechclip ingest` again"
                )
        return cls(table)

    @classmethod
    def from_rows(cls, rows: Iterable[dict[str, Any]]) -> "Manifest":
        """The manifest of these rows, consumed in batches. `InvalidInput` if two rows have the same utterance id."""
        left = iter(rows)
        batches = []
        while part := list(itertools.islice(left, BATCH_ROWS)):
            batches.append(pa.RecordBatch.from_pylist(part, schema=SCHEMA))
        table = pa.Table.from_batches(batches, schema=SCHEMA)
        _check_names(table["utterance"].to_pylist())
        return cls(table)

    def to_bytes(self) -> bytes:
        """The bytes of the Parquet file."""
        buffer = io.BytesIO()
        pq.write_table(self.table, buffer, compression="zstd")
        return buffer.getvalue()

    def write(self, uri: str) -> None:
        """Write the Parquet file to a local path or `s3://` address, whole or not at all; replaces an existing file."""
        storage, name = split_uri(uri)
        storage.replace(name, self.to_bytes())

    @cached_property
    def digest(self) -> str:
        """The sha256 of all rows. It does not depend on the library that wrote the file."""
        digest = hashlib.sha256()
        for name in SCHEMA.names:
            # The JSON of [name, all values], some values at a time.
            digest.update(b"[%s,[" % msgspec.json.encode(name))
            for number, values in enumerate(_batches(self.table.select([name]))):
                digest.update(b","[:number] + msgspec.json.encode([row[name] for row in values])[1:-1])
            digest.update(b"]]")
        return digest.hexdigest()

    def assets(self, modality: Modality) -> list[Asset]:
        """Each asset of a modality once, in the order of their first rows, with all its addresses."""
        found: dict[str, Asset] = {}
        others: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for row in itertools.chain.from_iterable(_batches(self.table.select(_COLUMNS_OF[modality]))):
            key = row[f"{modality}_key"]
            if key is None:
                continue
            if key not in found:
                found[key] = _asset(key, modality, row)
            elif modality != "text" and (uri := row[URI_COLUMNS[modality]]) != found[key].uri:
                others[key][uri] = None
        for key, uris in others.items():
            found[key] = msgspec.structs.replace(found[key], other_uris=tuple(uris))
        return list(found.values())

    def utterances(self, modality: Modality) -> dict[str, tuple[str, ...]]:
        """The utterances of each asset of a modality, by the asset's key."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for row in self.table.select(["utterance", f"{modality}_key"]).to_pylist():
            if row[f"{modality}_key"] is not None:
                found[row[f"{modality}_key"]].append(row["utterance"])
        return {key: tuple(names) for key, names in found.items()}

    def source_problems(self, modality: Modality) -> list[UnreadSource]:
        """Each source that could not be read at ingest, or whose segment holds no sample, once."""
        if modality == "text":
            return []
        utterances: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for row in self.table.select(["utterance", URI_COLUMNS[modality], ERROR_COLUMNS[modality]]).to_pylist():
            if row[ERROR_COLUMNS[modality]] is not None:
                utterances[row[URI_COLUMNS[modality]], row[ERROR_COLUMNS[modality]]].append(row["utterance"])
        return [
            UnreadSource(
                uri=uri, reason=error.partition(": ")[0], detail=error.partition(": ")[2], utterances=tuple(who)
            )
            for (uri, error), who in utterances.items()
        ]

    def select(self, splits: Sequence[str]) -> "Manifest":
        """Only the rows of these splits, in order; `InvalidInput` if a split has no row."""
        known = self.table["split"].unique().to_pylist()
        for split in splits:
            if split not in known:
                raise InvalidInput(f"the manifest has no split {split!r}", f"choose from {', '.join(sorted(known))}")
        return Manifest(self.table.filter(pc.is_in(self.table["split"], pa.array(list(splits)))))

    def rows_where(self, column: str, values: Collection[str]) -> list[dict[str, Any]]:
        """The rows whose value in `column` is one of these."""
        rows: list[dict[str, Any]] = self.table.filter(pc.is_in(self.table[column], pa.array(list(values)))).to_pylist()
        return rows

    def rows(self) -> list[dict[str, Any]]:
        """All rows as dictionaries, in order."""
        rows: list[dict[str, Any]] = self.table.to_pylist()
        return rows

    def __len__(self) -> int:
        return int(self.table.num_rows)


def _check_names(names: list[str]) -> None:
    if len(set(names)) == len(names):
        return
    twice = [name for name, count in Counter(names).items() if count > 1]
    first, second = [number for number, name in enumerate(names, start=1) if name == twice[0]][:2]
    raise InvalidInput(
        f"{len(twice)} utterance ids occur twice, first {twice[0]!r} in rows {first} and {second}", "make them unique"
    )


def _batches(table: pa.Table) -> Iterator[list[dict[str, Any]]]:
    """The rows as dictionaries, `BATCH_ROWS` at a time."""
    return (batch.to_pylist() for batch in table.to_batches(max_chunksize=BATCH_ROWS) if len(batch))


def _asset(key: str, modality: Modality, row: dict[str, Any]) -> Asset:
    if modality == "text":
        return Asset(key=key, modality=modality, text=row["text"])
    if modality == "image":
        return Asset(key=key, modality=modality, uri=row["image_uri"])
    seconds = (row["num_samples"] or 0) / (row["sample_rate"] or 1)
    return Asset(
        key=key,
        modality=modality,
        uri=row["audio_uri"],
        start_sample=row["start_sample"],
        end_sample=row["end_sample"],
        seconds=seconds,
    )
