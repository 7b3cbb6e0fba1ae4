"""Verify shards, chunks and their metadata against the catalog's rows.

The catalog has a checksum of its own for each feature, apart from the file with checksums beside a shard. So `verify`
always knows which of the two is damaged, and a damaged checksum file costs no encoding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from speechclip.errors import Damaged, StoreError
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store.checksums import digest_of
from speechclip.store.chunks import is_whole_chunk, key_row, rows_in
from speechclip.store.feature_store import FeatureStore
from speechclip.store.layout import spec_path, sums_path
from speechclip.store.matrices import ARRAYS, METADATA, chunk_path, is_same_metadata, shape_of
from speechclip.store.shard_layout import sums_length
from speechclip.store.shards import describe_shard, is_as_packed
from speechclip.upkeep.catalog_rows import is_intact, members_of_row
from speechclip.upkeep.findings import Finding, Kind, finding_of

_NO_CHECKSUM = "the chunk does not end in the checksum of its rows, so Zarr refuses it"


@dataclass(frozen=True)
class Place:
    """A shard or one chunk of a matrix, and the catalog's rows of the features in it.

    `path` is that of the shard or of the matrix.
    """

    spec: EncoderSpec
    path: str
    rows: pa.Table


def places_of(store: FeatureStore, feature_set: str, rows: pa.Table, findings: list[Finding]) -> Iterator[Place]:
    """The shards or chunks that the rows of one feature set name.

    If the feature set's spec is damaged, this adds a finding and gives nothing, because the shape of the features is
    not known.
    """
    try:
        spec = store.read_spec(feature_set).spec
    except StoreError as error:
        findings.append(finding_of(error, "spec", spec_path(feature_set), feature_set))
        return
    rows = rows.sort_by([("shard", "ascending"), ("offset", "ascending")])
    shards, offsets = rows["shard"].to_pylist(), rows["offset"].to_numpy()
    places = [
        (shard, 0 if spec.is_frames else int(offset) // shape_of(shard).chunk_rows)
        for shard, offset in zip(shards, offsets, strict=True)
    ]
    starts = [n for n in range(len(places)) if n == 0 or places[n] != places[n - 1]]
    for start, end in zip(starts, [*starts[1:], len(places)], strict=True):
        yield Place(spec, shards[start], rows.slice(start, end - start))


def verify_place(storage: Storage, place: Place) -> Iterator[Finding]:
    """The findings of one shard with its checksums, or of one chunk with its keys."""
    yield from _verify_shard(storage, place) if place.spec.is_frames else _verify_chunk(storage, place)


def verify_metadata(storage: Storage, spec: EncoderSpec, matrix: str) -> Iterator[Finding]:
    """The finding of a matrix whose zarr.json files are damaged; only other tools read these files."""
    files = {}
    for name in METADATA:
        try:
            files[name] = storage.read(f"{matrix}/{name}")
        except FileNotFoundError:
            continue
    if len(files) < len(METADATA) or not is_same_metadata(spec, matrix, files):
        problem = "the matrix's metadata does not fit its name and spec: other tools may not read it"
        yield Finding(kind="metadata", path=matrix, problem=problem, feature_set=spec.fingerprint)


def _verify_shard(storage: Storage, place: Place) -> Iterator[Finding]:
    rows, spec = place.rows.to_pylist(), place.spec
    try:
        tar = storage.read(place.path)
    except FileNotFoundError:
        yield _finding("shard", place, place.path, "the shard is gone", [row["asset"] for row in rows])
        return
    damaged = [row["asset"] for row in rows if not is_intact(members_of_row(tar, spec, row), row)]
    if damaged:
        problem = f"{len(damaged)} of {len(rows)} arrays do not match their checksums"
        yield _finding("shard", place, place.path, problem, damaged)
        return
    try:
        sums = describe_shard(tar, spec)[0]
    except Damaged:
        sums = b""
    stored_sums = storage.read_or_empty(sums_path(place.path))
    if sums and stored_sums == sums:
        return
    if not sums or not is_as_packed(tar, spec):
        problem = "all arrays are whole, but the tar around them is damaged"
        yield _finding("shard", place, place.path, problem, [])
    elif not stored_sums:
        yield _finding("checksums", place, sums_path(place.path), "the checksums are gone", [])
    elif not _may_differ_in_unnamed(stored_sums, sums) or not all(_has_sums(stored_sums, spec, row) for row in rows):
        yield _finding("checksums", place, sums_path(place.path), "the checksums do not match the shard", [])


def _may_differ_in_unnamed(stored_sums: bytes, sums: bytes) -> bool:
    """Whether the checksums may differ only for an array that no live version names; then nothing is lost.

    The last eight bytes are the checksum of the whole tar, which differs if any array does.
    """
    return len(stored_sums) == len(sums) and stored_sums[:-8] != sums[:-8]


def _has_sums(sums: bytes, spec: EncoderSpec, row: dict[str, int]) -> bool:
    """Whether the block checksums of a row's array are whole."""
    length = sums_length(spec, row["num_frames"])
    return digest_of(sums[row["sums_offset"] : row["sums_offset"] + length]) == row["checksum"]


def _verify_chunk(storage: Storage, place: Place) -> Iterator[Finding]:
    rows, spec = place.rows.to_pylist(), place.spec
    count = shape_of(place.path).chunk_rows
    start = rows[0]["offset"] // count * count
    paths = {name: chunk_path(place.path, name, start) for name in ARRAYS}
    files = {name: storage.read_or_empty(path) for name, path in paths.items()}
    found = {name: rows_in(files[name], spec, name, count) for name in ARRAYS}
    damaged = [
        row["asset"] for row in rows if digest_of(found["vectors"][row["offset"] - start].data) != row["checksum"]
    ]
    # A file that is gone is found by its rows: none of them matches.
    row_bytes = {name: found[name][0].nbytes for name in ARRAYS}
    broken = {name for name in ARRAYS if files[name] and not is_whole_chunk(files[name], row_bytes[name], count)}
    if damaged:
        problem = f"{len(damaged)} of {len(rows)} rows from {start} on do not match their checksums"
        yield _finding("chunk", place, paths["vectors"], problem, damaged)
    elif "vectors" in broken:
        yield _finding("chunk", place, paths["vectors"], _NO_CHECKSUM, [])
    are_its_keys = all(bytes(found["keys"][row["offset"] - start]) == bytes(key_row(row["asset"])) for row in rows)
    if "keys" in broken or not are_its_keys:
        problem = _NO_CHECKSUM if "keys" in broken else "these are not the keys of the chunk's rows"
        yield _finding("keys", place, paths["keys"], problem, [])


def _finding(kind: Kind, place: Place, path: str, problem: str, keys: list[str]) -> Finding:
    return Finding(kind=kind, path=path, problem=problem, feature_set=place.spec.fingerprint, keys=tuple(keys))
