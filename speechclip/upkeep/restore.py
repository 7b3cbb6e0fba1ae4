"""restore: a damaged shard or chunk put back in its place, where the catalog's checksums prove it to be what it was.

So every version that names it is whole again, tagged ones too, and the catalog need not change. What was whole in the
old file stays, also what no version names any more.
"""

import contextlib
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from speechclip.errors import Damaged
from speechclip.records import StoredAsset
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store.catalog import Catalog
from speechclip.store.checksums import digest_of
from speechclip.store.chunks import encode_rows, key_row, rows_in
from speechclip.store.codec import Members, codec_of
from speechclip.store.feature_store import FeatureStore
from speechclip.store.frames import Frames
from speechclip.store.layout import sums_path
from speechclip.store.matrices import chunk_at, chunk_path, shape_of
from speechclip.store.rows import SCHEMA, is_among, is_stored
from speechclip.store.shard_layout import empty_members, member_sums, members_at, notes_offset
from speechclip.store.shards import describe_shard, entries_in, pack_members, provenance_in, provenance_of
from speechclip.store.vectors import Vectors
from speechclip.upkeep.findings import Finding

_PLACE = ("asset", "offset", "num_frames", "sums_offset", "checksum")
MAX_NOTES = 1 << 16
# What the catalog says of one feature in a shard or matrix.
Row = dict[str, Any]
# The rows of each damaged file, by its path, in the order of their places in it.
Rows = Mapping[str, Sequence[Row]]


def rows_at(catalog: Catalog, findings: Iterable[Finding]) -> Rows:
    """What any version says of the damaged shards and chunks, from one look through all of the catalog."""
    places = {finding.path: _place(finding.path) for finding in findings}
    shards = sorted({shard for shard, _ in places.values()})
    added = {part for entry in catalog.history(catalog.newest()) for part in entry.added}
    tables = [SCHEMA.empty_table()]
    for _, part in catalog.data_files.read_each(sorted(added)):
        if not isinstance(part, Damaged):
            tables.append(part.filter(pc.and_kleene(is_stored(part), is_among(part["shard"], shards))))
    named = pa.concat_tables(tables).group_by(["shard", *_PLACE]).aggregate([]).sort_by("offset")
    rows: dict[tuple[str, int], list[Row]] = {place: [] for place in places.values()}
    for row in named.to_pylist():
        shard = row["shard"]
        start = 0 if shard.endswith(".tar") else row["offset"] - row["offset"] % shape_of(shard).chunk_rows
        rows.get((shard, start), []).append(row)
    return {path: rows[place] for path, place in places.items()}


def restore(store: FeatureStore, finding: Finding, said: Rows, anew: Frames | Vectors | None = None) -> set[str]:
    """Put a damaged file back, with the features in `anew` for its lost ones; the keys that are whole in it now.

    None, and nothing has changed, where that heals none: other hardware may encode otherwise than the catalog says.
    """
    storage, spec, rows = store.storage, store.read_spec(finding.feature_set).spec, said[finding.path]
    match finding.kind:
        case "keys":
            return _restore_keys(storage, spec, finding, rows)
        case "chunk":
            assert not isinstance(anew, Frames)
            return _restore_chunk(storage, spec, finding, rows, anew)
        case _:
            assert not isinstance(anew, Vectors)
            return _restore_shard(storage, spec, finding, rows, anew)


def restore_sums(store: FeatureStore, finding: Finding, said: Rows) -> None:
    """Make the checksums beside a shard anew from the shard."""
    shard, spec = _place(finding.path)[0], store.read_spec(finding.feature_set).spec
    sums, stored = describe_shard(store.storage.read(shard), spec)
    before = read_or_nothing(store.storage, finding.path)
    store.storage.replace(finding.path, _with_unproved(sums, stored, said[finding.path], before))


def array_at(tar: bytes, spec: EncoderSpec, row: Row) -> Members | None:
    """The array that a row states, whole or damaged; None where the tar ends before it does."""
    return members_at(tar, spec, row["offset"], row["num_frames"])


def is_intact(array: Members | None, row: Row) -> bool:
    """Whether an array is the one that the row states."""
    return array is not None and digest_of(member_sums(array)) == row["checksum"]


def _place(path: str) -> tuple[str, int]:
    """The shard or matrix of a damaged file, and the first of its rows there."""
    if path.endswith((".tar", ".xxh3")):
        return f"{path.rpartition('.')[0]}.tar", 0
    return chunk_at(path)[:2]


def _restore_shard(
    storage: Storage, spec: EncoderSpec, finding: Finding, rows: Sequence[Row], anew: Frames | None
) -> set[str]:
    if finding.keys and not any(anew is not None and key in anew for key in finding.keys):
        return set()
    old, features, whole = read_or_nothing(storage, finding.path), {}, set()
    for row in rows:
        key, array = row["asset"], array_at(old, spec, row)
        if is_intact(array, row):
            whole.add(key)
        elif anew is not None and key in anew:
            array = anew.members(key)
        # What is lost for good keeps its place: the offsets of the others depend on it.
        empty = empty_members(spec, row["num_frames"])
        features[key] = empty if array is None else array
    unnamed = _behind(old, spec, rows)
    tar = pack_members(spec, [*features.items(), *unnamed], _provenance(storage, spec, old, rows, anew))
    sums, stored = describe_shard(tar, spec)
    sums = _with_unproved(sums, stored, rows, read_or_nothing(storage, sums_path(finding.path)))
    made = {msgspec.structs.astuple(entry) for entry in stored}
    healed = {row["asset"] for row in rows if tuple(row[name] for name in _PLACE) in made}
    if not healed >= whole or (finding.keys and not healed & set(finding.keys)):
        return set()
    storage.replace(finding.path, tar)
    storage.replace(sums_path(finding.path), sums)
    return healed


def _behind(tar: bytes, spec: EncoderSpec, rows: Sequence[Row]) -> list[tuple[str, Members]]:
    """The arrays behind the last row: no readable row names them, but a lost file that does may come back.

    Some or all of them, as far as their headers are whole; nobody knows whether they are.
    """
    found: list[tuple[str, Members]] = []
    with contextlib.suppress(Damaged):
        for entry in entries_in(tar[_notes_offset(spec, rows[-1]) :] if rows else b"", spec):
            found.append((entry.key, entry.members))
    return found


def _with_unproved(sums: bytes, stored: Sequence[StoredAsset], rows: Sequence[Row], before: bytes) -> bytes:
    """The checksums of a shard with those of the arrays that are not what a row states as they were before, or zeros.

    New ones would vouch for what may be damaged, and a run would adopt it.
    """
    made, old = bytearray(sums), before if len(before) == len(sums) else bytes(len(sums))
    proved = {tuple(row[name] for name in _PLACE) for row in rows}
    ends = [*(entry.sums_offset for entry in stored[1:]), len(sums) - 8]
    for entry, end in zip(stored, ends, strict=False):
        if msgspec.structs.astuple(entry) not in proved:
            made[entry.sums_offset : end] = old[entry.sums_offset : end]
    return bytes(made)


def _provenance(
    storage: Storage, spec: EncoderSpec, old: bytes, rows: Sequence[Row], anew: Frames | None
) -> dict[str, Any]:
    """How the shard was made, as most of its notes say, or else those of what was encoded now."""
    said = Counter(notes for row in rows if (notes := _notes_after(old, spec, row)))
    if said:
        found: dict[str, Any] = msgspec.json.decode(said.most_common(1)[0][0])
        return found
    return {} if anew is None else provenance_in(storage.read(anew.locate(next(iter(anew))).shard))


def _notes_after(tar: bytes, spec: EncoderSpec, row: Row) -> bytes:
    """The provenance in the notes that follow an array, found by the array's place: the tar may be no tar any more."""
    start = _notes_offset(spec, row) + tarfile.BLOCKSIZE
    try:
        notes = msgspec.json.decode(tar[start : start + MAX_NOTES].partition(b"\0")[0], type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return b""
    return msgspec.json.encode(provenance_of(notes), order="sorted")


def _notes_offset(spec: EncoderSpec, row: Row) -> int:
    """Where the member with an array's notes begins, right behind the array."""
    return notes_offset(spec, row["offset"], row["num_frames"])


def _restore_chunk(
    storage: Storage, spec: EncoderSpec, finding: Finding, rows: Sequence[Row], anew: Vectors | None
) -> set[str]:
    """A lost row that is not encoded anew is NaN then, so that Zarr gives its neighbours again.

    What has a key and no readable row names stays, for the file that names it may come back. Until then nobody knows
    whether it is whole, so its key goes, and no run adopts it.
    """
    matrix, start, end = chunk_at(finding.path)
    old = rows_in(read_or_nothing(storage, finding.path), spec, "vectors", end - start)
    beside = read_or_nothing(storage, chunk_path(matrix, "keys", start))
    has_key = rows_in(beside, spec, "keys", end - start).any(axis=1) | (not beside)
    vectors, keys, healed = old.copy(), rows_in(b"", spec, "keys", end - start), set()
    vectors[~has_key] = codec_of(spec).fill
    vectors[[row["offset"] - start for row in rows]] = codec_of(spec).fill
    for row in rows:
        key, place = row["asset"], row["offset"] - start
        keys[place] = key_row(key)
        for vector in (old[place], anew[key] if anew is not None and key in anew else None):
            if vector is not None and digest_of(vector.data) == row["checksum"]:
                vectors[place] = vector
                healed.add(key)
    if healed:
        storage.replace(chunk_path(matrix, "keys", start), encode_rows(keys))
        storage.replace(finding.path, encode_rows(vectors))
    return healed


def _restore_keys(storage: Storage, spec: EncoderSpec, finding: Finding, rows: Sequence[Row]) -> set[str]:
    """What has a vector and no readable row names stays; the vectors beside it have their own checksum."""
    matrix, start, end = chunk_at(finding.path)
    keys = rows_in(read_or_nothing(storage, finding.path), spec, "keys", end - start)
    vectors = rows_in(read_or_nothing(storage, chunk_path(matrix, "vectors", start)), spec, "vectors", end - start)
    keys[codec_of(spec).is_absent(vectors)] = 0
    for row in rows:
        keys[row["offset"] - start] = key_row(row["asset"])
    storage.replace(finding.path, encode_rows(keys))
    return {row["asset"] for row in rows}


def read_or_nothing(storage: Storage, path: str) -> bytes:
    """The bytes of a file, none where it is gone."""
    try:
        return storage.read(path)
    except FileNotFoundError:
        return b""
