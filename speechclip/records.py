"""What crosses a file, a process or the network: frozen, strict records, equal by value."""

from typing import Literal

import msgspec

Modality = Literal["speech", "image", "text"]
MODALITIES: tuple[Modality, ...] = ("speech", "image", "text")


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of every record. New fields come last, with a default."""


class Asset(Record, frozen=True):
    """One audio segment, image or text, known by its content, and where its bytes can be had.

    `key` is the sha256 (64 hex digits) of the file's bytes or of the UTF-8 text; a segment of a recording adds
    `-<start>-<end>`, its samples at the file's own rate. So a moved or renamed corpus keeps its keys.
    """

    key: str
    modality: Modality
    uri: str | None = None
    text: str | None = None
    start_sample: int | None = None
    end_sample: int | None = None
    seconds: float = 0.0


class Task(Record, frozen=True):
    """The unit of work, of retry and of storage: its assets make one shard, or one chunk of vectors, in this order."""

    id: str
    feature_set: str
    assets: tuple[Asset, ...]
    segment: str = ""
    first_row: int = 0


class StoredAsset(Record, frozen=True):
    """Where one feature lies inside its shard.

    `offset` is the array's first byte in the tar (frames) or its row (vectors); `sums_offset` the first byte of its
    block checksums beside the shard; `checksum` covers those block checksums (frames) or the row itself (vectors).
    """

    key: str
    offset: int
    num_frames: int
    sums_offset: int
    checksum: int


class RejectedAsset(Record, frozen=True):
    """Why an asset has no feature. `source` names the address if that, not the bytes, was at fault."""

    key: str
    reason: str
    detail: str
    source: str | None = None


class Receipt(Record, frozen=True):
    """What a worker returns of a task: what *is* on storage. It counts only once committed."""

    task: str
    feature_set: str
    shard: str
    stored: tuple[StoredAsset, ...]
    rejected: tuple[RejectedAsset, ...]
    num_bytes: int
    seconds: float
    num_encoded: int


def to_json(record: msgspec.Struct) -> bytes:
    """The record as canonical JSON: sorted keys, no white space, so that equal records are equal bytes."""
    return msgspec.json.encode(record, order="sorted")
