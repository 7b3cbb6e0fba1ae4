"""Records: the values that go into a file, to another process or over the network. Frozen, strict, equal by value."""

import re
from typing import Literal, TypeVar

import msgspec
import xxhash

Modality = Literal["speech", "image", "text"]
MODALITIES: tuple[Modality, ...] = ("speech", "image", "text")


_Kind = TypeVar("_Kind")
_Checksummed = TypeVar("_Checksummed", bound="Checksummed")


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base class of every record. New fields come last, with a default, so that old files can be read."""


class StoredFile(Record, frozen=True):
    """A file on storage: its path within the store, its size in bytes, and its time of writing in Unix seconds."""

    path: str
    size: int
    modified: float


class Asset(Record, frozen=True):
    """One recording, segment, image or text: its key, which follows from its content, and the address of its bytes.

    `key` is the sha256 (64 hex digits) of the file's bytes or of the UTF-8 text. A segment of a recording adds
    `-<start>-<end>`, its samples at the file's own rate. So a corpus that is moved or renamed keeps its keys.
    `other_uris` are further addresses of the same bytes.
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
    """The unit of work, of retry and of storage: its assets make one shard, or one chunk of a matrix, in this order."""

    id: str
    feature_set: str
    assets: tuple[Asset, ...]
    matrix: str = msgspec.field(default="", name="segment")
    first_row: int = 0


class StoredAsset(Record, frozen=True):
    """Where one feature lies inside its shard or matrix.

    Frames: `offset` is the first byte of their numbers in the tar, `sums_offset` is the first byte of their block
    checksums in the checksum file, and `checksum` covers these block checksums. Vectors: `offset` is the row in the
    matrix, `checksum` covers that row, and the other two numbers are 0.
    """

    key: str
    offset: int
    num_frames: int
    sums_offset: int
    checksum: int


class RejectedAsset(Record, frozen=True):
    """Why an asset has no feature. `source` is set if its address was at fault, and None if its bytes were."""

    key: str
    reason: str
    detail: str
    source: str | None = None


class Receipt(Record, frozen=True):
    """What a worker returns for a task: what is on storage now. Readers see it only after a commit.

    `seconds` is the time for encoding and writing, `write_seconds` the time for writing alone. `idle_seconds` is how
    long the encoder waited for this task. `speech_seconds` is the length of all stored recordings together.
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
    """A record with its own checksum: the xxh3-64 of its JSON in which `checksum` is empty."""

    checksum: str = ""

    def with_checksum(self: _Checksummed) -> _Checksummed:
        """The same record with its checksum filled in."""
        bare = msgspec.structs.replace(self, checksum="")
        return msgspec.structs.replace(bare, checksum=xxhash.xxh3_64_hexdigest(to_json(bare)))


def from_json(data: bytes, kind: type[_Kind]) -> _Kind:
    """The record in these bytes. Raises `msgspec.DecodeError` if they are no such record or its checksum is wrong."""
    try:
        found = msgspec.json.decode(data, type=kind)
    except UnicodeDecodeError as error:
        # msgspec raises this if a key is not UTF-8. If a value is not, it raises DecodeError.
        raise msgspec.DecodeError(str(error)) from None
    if isinstance(found, Checksummed) and found.checksum and found != found.with_checksum():
        raise msgspec.DecodeError("its checksum does not match")
    return found


def to_json(record: msgspec.Struct) -> bytes:
    """The record as JSON with sorted keys and no white space, so that equal records give equal bytes."""
    return msgspec.json.encode(record, order="sorted")


_PLAIN_TYPES = {
    "object": "keys with values", "array": "a list", "str": "a text", "int": "a whole number", "float": "a number",
    "bool": "true or false", "null": "empty",
}  # fmt: skip


def explain(error: msgspec.ValidationError) -> str:
    """A sentence about an error in a file that a person wrote: the key, what its value must be, and what it is."""
    sentence, _, place = str(error).partition(" - at `$")
    key = place.strip(".`")
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", sentence):
        return f"there is no key {f'{key}.' if key else ''}{unknown[1]}"
    if expected := re.fullmatch(r"Expected `([^`]*)`( [<>]=? \S+)?(?:, got `([^`]*)`)?", sentence):
        wanted = " or ".join(_PLAIN_TYPES.get(kind, kind) for kind in expected[1].split(" | "))
        given = f", not {_PLAIN_TYPES.get(expected[3], expected[3])}" if expected[3] else ""
        return f"{key} must be {wanted}{expected[2] or ''}{given}"
    return f"{key}: {sentence.replace('Invalid enum value', 'there is no choice')}"
