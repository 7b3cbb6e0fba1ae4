"""Repair a shard of frames, and the file with checksums beside it."""

import contextlib
import tarfile
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from speechclip.errors import Damaged
from speechclip.records import StoredAsset
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store.codec import Members
from speechclip.store.frames import Frames
from speechclip.store.layout import sums_path
from speechclip.store.shard_layout import empty_members, notes_offset
from speechclip.store.shards import describe_shard, entries_in, pack_members, provenance_in, provenance_of
from speechclip.upkeep.catalog_rows import PLACE, Row, is_intact, members_of_row
from speechclip.upkeep.findings import Finding

# The notes behind an array are JSON and shorter than this.
MAX_NOTES_BYTES = 1 << 16


def repair_shard(
    storage: Storage, spec: EncoderSpec, finding: Finding, rows: Sequence[Row], encoded: Frames | None
) -> set[str]:
    """Pack a shard again from its whole arrays and from `encoded`; returns the keys of the arrays that are whole now.

    An array that is lost and not in `encoded` keeps its place, filled with its damaged bytes or with zeros, because
    the offsets of the other arrays depend on it. Nothing is written, and the result is empty, if a whole array would
    move to another offset or if no lost array would be whole.
    """
    if finding.keys and not any(encoded is not None and key in encoded for key in finding.keys):
        return set()
    old = storage.read_or_empty(finding.path)
    arrays, whole = _arrays(old, spec, rows, encoded)
    unnamed = _arrays_at_the_end(old, spec, rows)
    tar = pack_members(spec, [*arrays.items(), *unnamed], _provenance(storage, spec, old, rows, encoded))
    sums, stored = describe_shard(tar, spec)
    sums = keep_unproved_checksums(sums, stored, rows, storage.read_or_empty(sums_path(finding.path)))
    packed = {msgspec.structs.astuple(entry) for entry in stored}
    repaired = {row["asset"] for row in rows if tuple(row[name] for name in PLACE) in packed}
    if not repaired >= whole or (finding.keys and not repaired & set(finding.keys)):
        return set()
    storage.replace(finding.path, tar)
    storage.replace(sums_path(finding.path), sums)
    return repaired


def keep_unproved_checksums(sums: bytes, stored: Sequence[StoredAsset], rows: Sequence[Row], before: bytes) -> bytes:
    """The checksums of a repaired shard, where only arrays that match a catalog row get new checksums.

    No catalog row proves that the other arrays are whole. They keep the checksums that they had `before`, or get zeros
    if these are lost. With new checksums a damaged array would look whole, and a job would reuse it.
    """
    made, old = bytearray(sums), before if len(before) == len(sums) else bytes(len(sums))
    proved = {tuple(row[name] for name in PLACE) for row in rows}
    # The last eight bytes are the checksum of the whole tar.
    ends = [*(entry.sums_offset for entry in stored[1:]), len(sums) - 8]
    for entry, end in zip(stored, ends, strict=False):
        if msgspec.structs.astuple(entry) not in proved:
            made[entry.sums_offset : end] = old[entry.sums_offset : end]
    return bytes(made)


def _arrays(
    tar: bytes, spec: EncoderSpec, rows: Sequence[Row], encoded: Frames | None
) -> tuple[dict[str, Members], set[str]]:
    """The arrays for each row's key, in their order, and the keys whose arrays in the old tar are whole."""
    arrays, whole = dict[str, Members](), set[str]()
    for row in rows:
        key, members = row["asset"], members_of_row(tar, spec, row)
        if is_intact(members, row):
            whole.add(key)
        elif encoded is not None and key in encoded:
            members = encoded.members(key)
        arrays[key] = empty_members(spec, row["num_frames"]) if members is None else members
    return arrays, whole


def _arrays_at_the_end(tar: bytes, spec: EncoderSpec, rows: Sequence[Row]) -> list[tuple[str, Members]]:
    """The arrays behind the last row, as far as their headers can be read.

    No readable catalog row names them, so nobody knows whether they are whole. But the data file that names them may
    be brought back.
    """
    found: list[tuple[str, Members]] = []
    with contextlib.suppress(Damaged):
        for entry in entries_in(tar[_notes_offset(spec, rows[-1]) :] if rows else b"", spec):
            found.append((entry.key, entry.members))
    return found


def _provenance(
    storage: Storage, spec: EncoderSpec, tar: bytes, rows: Sequence[Row], encoded: Frames | None
) -> dict[str, Any]:
    """How the shard was made, as most of its notes say; if none can be read, the notes of what was encoded now."""
    notes = Counter(found for row in rows if (found := _notes_after(tar, spec, row)))
    if notes:
        provenance: dict[str, Any] = msgspec.json.decode(notes.most_common(1)[0][0])
        return provenance
    return {} if encoded is None else provenance_in(storage.read(encoded.locate(next(iter(encoded))).shard))


def _notes_after(tar: bytes, spec: EncoderSpec, row: Row) -> bytes:
    """The provenance in the notes behind an array, as sorted JSON; empty if the notes can't be read.

    The notes are found by the array's offset, because a damaged tar can't be read member by member.
    """
    start = _notes_offset(spec, row) + tarfile.BLOCKSIZE
    try:
        notes = msgspec.json.decode(tar[start : start + MAX_NOTES_BYTES].partition(b"\0")[0], type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return b""
    return msgspec.json.encode(provenance_of(notes), order="sorted")


def _notes_offset(spec: EncoderSpec, row: Row) -> int:
    """Where the notes behind a row's arrays begin: the first byte of their tar header."""
    return notes_offset(spec, row["offset"], row["num_frames"])
