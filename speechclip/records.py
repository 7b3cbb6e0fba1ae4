"""What crosses a file, a process or the network: frozen, strict records, equal by value."""

import re
from typing import Literal, TypeVar

import msgspec
import xxhash

Modality = Literal["speech", "image", "text"]
MODALITIES: tuple[Modality, ...] = ("speech", "image", "text")


_Kind = TypeVar("_Kind")
_Checksummed = TypeVar("_Checksummed", bound="Checksummed")


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of every record. New fields come last, with a default."""


class StoredFile(Record, frozen=True):
    """A file on storage: its path within the store, its size in bytes, and when it was written, in Unix seconds."""

    path: str
    size: int
    modified: float


class Asset(Record, frozen=True):
    """One audio segment, image or text, known by its content, and where its bytes can be had.

    `key` is the sha256 (64 hex digits) of the file's bytes or of the UTF-8 text; a segment of a recording adds
    `-<start>-<end>`, its samples at the file's own rate. So a moved or renamed corpus keeps its keys. `other_uris` are
    further addresses at which the same bytes were found.
    """

    key: str
    modality: Modality
    uri: str | None = None
    text: str | None = None
    start_sample: int | None = None
    end_sample: int | None = None
    seconds: float = 0.0
    other_uris: tuple[str, ...] = ()


class Task(Record, frozen=True):
    """The unit of work, of retry and of storage: its assets make one shard, or one chunk of vectors, in this order."""

    id: str
    feature_set: str
    assets: tuple[Asset, ...]
    matrix: str = msgspec.field(default="", name="segment")
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
    """What a worker returns of a task: what *is* on storage. It counts only once committed.

    `seconds` is the time of encoding and writing, `write_seconds` the latter's part, and `idle_seconds` how long the
    encoder had waited for this task before. `speech_seconds` is the length of the stored recordings together.
    """

    task: str
    feature_set: str
    shard: str
    stored: tuple[StoredAsset, ...]
    rejected: tuple[RejectedAsset, ...]
    num_bytes: int
    seconds: float
    num_encoded: int
    write_seconds: float = 0.0
    idle_seconds: float = 0.0
    speech_seconds: float = 0.0


class Checksummed(Record, frozen=True, kw_only=True):
    """A record that proves itself: `checksum` is the xxh3-64 of its JSON without one."""

    checksum: str = ""

    def with_checksum(self: _Checksummed) -> _Checksummed:
        """The same with its checksum."""
        bare = msgspec.structs.replace(self, checksum="")
        return msgspec.structs.replace(bare, checksum=xxhash.xxh3_64_hexdigest(to_json(bare)))


def from_json(data: bytes, kind: type[_Kind]) -> _Kind:
    """The record in these bytes; `msgspec.DecodeError` if it is none, or its own checksum denies it."""
    try:
        found = msgspec.json.decode(data, type=kind)
    except UnicodeDecodeError as error:
        # What msgspec raises where a key, not a value, is no UTF-8.
        raise msgspec.DecodeError(str(error)) from None
    if isinstance(found, Checksummed) and found.checksum and found != found.with_checksum():
        raise msgspec.DecodeError("its checksum does not match")
    return found


def to_json(record: msgspec.Struct) -> bytes:
    """The record as canonical JSON: sorted keys, no white space, so that equal records are equal bytes."""
    return msgspec.json.encode(record, order="sorted")


_PLAIN_TYPES = {
    "object": "keys with values", "array": "a list", "str": "a text", "int": "a whole number", "float": "a number",
    "bool": "true or false", "null": "empty",
}  # fmt: skip


def explain(error: msgspec.ValidationError) -> str:
    """What does not fit in a file that a person wrote: the key with its dots, what it must be, and what it is."""
    sentence, _, place = str(error).partition(" - at `$")
    key = place.strip(".`")
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", sentence):
        return f"there is no key {f'{key}.' if key else ''}{unknown[1]}"
    if expected := re.fullmatch(r"Expected `([^`]*)`( [<>]=? \S+)?(?:, got `([^`]*)`)?", sentence):
        wanted = " or ".join(_PLAIN_TYPES.get(kind, kind) for kind in expected[1].split(" | "))
        given = f", not {_PLAIN_TYPES.get(expected[3], expected[3])}" if expected[3] else ""
        return f"{key} must be {wanted}{expected[2] or ''}{given}"
    return f"{key}: {sentence.replace('Invalid enum value', 'there is no choice')}"
