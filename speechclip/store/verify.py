"""verify: every file that the newest and the tagged versions name, against what the catalog and the journal say of it.

The catalog's own checksum of a feature stands apart from the file beside its shard. So it is always known which of the
two is damaged, and a damaged checksum file costs no encoding.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from speechclip.errors import Damaged, NotStored, StoreError
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store.checksums import blocks_per_layer, digest_of, sums_of
from speechclip.store.feature_store import FeatureStore
from speechclip.store.findings import HIDING, Finding, Report
from speechclip.store.frames import describe_shard, is_as_packed
from speechclip.store.gc import is_ours_to_free, named_by_rows
from speechclip.store.layout import (
    FEATURES,
    MANIFESTS,
    STORE_FILE,
    digest_in,
    log_path,
    part_copy_path,
    part_path,
    spec_path,
    sums_path,
)
from speechclip.store.rows import SCHEMA, by_feature_set, decode_part, entries, is_stored
from speechclip.store.segments import ARRAYS, METADATA, is_same_metadata, open_array, shape_of
from speechclip.store.vectors import read_rows
from speechclip.store.verify_log import verify_log

THREADS = 4
SUMS = ("sums_offset", "checksum")


@dataclass(frozen=True)
class _Place:
    """A shard, or one chunk of a segment, and the catalog's rows of what lies in it."""

    spec: EncoderSpec
    path: str
    rows: pa.Table


def verify(store: FeatureStore, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Report:
    """Read and check all of it; `on_progress(bytes done, bytes in all)`. What a reader calls `Damaged` is a finding.

    `NotStored` where there is no store.
    """
    findings = [*_verify_format(store), *verify_log(store.catalog)]
    if any(finding.kind in HIDING for finding in findings):
        return Report(versions=(), assets=0, files=0, bytes=0, orphans=0, orphan_bytes=0, findings=tuple(findings))
    listed = {file.path: file.size for file in store.storage.stat(FEATURES)}
    versions = sorted({int(store.catalog.open().version()), *(tag.version for tag in store.tags.list())})
    tables = [_picked_rows(store, version, findings) for version in versions]
    by_set = by_feature_set(pa.concat_tables(tables))
    places = [place for name, rows in by_set.items() for place in _places(store, name, rows, findings)]
    named = {path for place in places for path in named_by_rows(place.rows)}
    total, done = sum(listed.get(path, 0) for path in named), 0
    with ThreadPoolExecutor(THREADS) as pool:
        checks = pool.map(lambda place: list(_verify_place(store.storage, place)), places)
        for place, found in zip(places, checks, strict=True):
            findings += found
            done += sum(listed.get(path, 0) for path in named_by_rows(place.rows))
            on_progress(done, total)
    segments = {place.path: place.spec for place in places if not place.spec.is_frames}
    findings += [found for path, spec in segments.items() for found in _verify_metadata(store.storage, spec, path)]
    orphans = [size for path, size in listed.items() if path not in named and is_ours_to_free(path)]
    return Report(
        versions=tuple(versions),
        assets=sum(len(place.rows) for place in places),
        files=len(named),
        bytes=total,
        orphans=len(orphans),
        orphan_bytes=sum(orphans),
        findings=tuple(dict.fromkeys([*findings, *_verify_manifests(store)])),
    )


def _verify_format(store: FeatureStore) -> Iterator[Finding]:
    try:
        is_there = store.exists()
    except Damaged as error:
        yield Finding(kind="store", path=STORE_FILE, problem=str(error))
    else:
        if not is_there and store.storage.size(log_path(0)) is None:
            raise NotStored(f"{store.storage.root}: no feature store here; make one by `speechclip featurize`")
        if not is_there:
            yield Finding(kind="store", path=STORE_FILE, problem="the file is gone")


def _verify_manifests(store: FeatureStore) -> Iterator[Finding]:
    for path in store.storage.list(MANIFESTS):
        try:
            store.read_manifest(digest_in(path))
        except Damaged as error:
            yield Finding(kind="manifest", path=path, problem=str(error))


def _picked_rows(store: FeatureStore, version: int, findings: list[Finding]) -> pa.Table:
    """The rows of all stored assets that a reader of this version picks, as far as the catalog's files are whole."""
    found = store.catalog.read_parts(store.catalog.paths(version))
    whole = []
    for path, part in found.items():
        if isinstance(part, Damaged):
            findings.append(Finding(kind="catalog", path=part_path(path), problem=str(part)))
        else:
            whole.append(part)
        findings += _verify_copy(store.storage, path)
    picked = [entries(rows) for rows in by_feature_set(_concat(whole)).values()]
    return _concat([rows.filter(is_stored(rows)) for rows in picked])


def _verify_copy(storage: Storage, path: str) -> Iterator[Finding]:
    try:
        decode_part(part_copy_path(path), storage.read(part_copy_path(path)))
    except FileNotFoundError:
        yield Finding(kind="copy", path=part_copy_path(path), problem="the copy is gone")
    except Damaged as error:
        yield Finding(kind="copy", path=part_copy_path(path), problem=str(error))


def _places(store: FeatureStore, feature_set: str, rows: pa.Table, findings: list[Finding]) -> Iterator[_Place]:
    """Where the features of one set lie; nothing where its spec is damaged, for then nobody knows their shape."""
    try:
        spec = store.read_spec(feature_set).spec
    except StoreError as error:
        findings.append(Finding(kind="spec", path=spec_path(feature_set), problem=str(error), feature_set=feature_set))
        return
    unique = rows.group_by(["asset", "shard", "offset", "num_frames", "sums_offset", "checksum", "status"]).aggregate(
        []
    )
    unique = unique.sort_by([("shard", "ascending"), ("offset", "ascending")])
    shards, offsets = unique["shard"].to_pylist(), unique["offset"].to_numpy()
    places = [
        (shard, 0 if spec.is_frames else int(offset) // shape_of(shard).chunk_rows)
        for shard, offset in zip(shards, offsets, strict=True)
    ]
    starts = [n for n in range(len(places)) if n == 0 or places[n] != places[n - 1]]
    for start, end in zip(starts, [*starts[1:], len(places)], strict=True):
        yield _Place(spec, shards[start], unique.slice(start, end - start))


def _verify_place(storage: Storage, place: _Place) -> Iterator[Finding]:
    yield from _verify_shard(storage, place) if place.spec.is_frames else _verify_chunk(storage, place)


def _verify_shard(storage: Storage, place: _Place) -> Iterator[Finding]:
    rows = place.rows.to_pylist()
    try:
        tar = storage.read(place.path)
        damaged = [row["asset"] for row in rows if not _is_intact(tar, place.spec, row)]
        problem = f"{len(damaged)} of {len(rows)} arrays do not match their checksums" if damaged else ""
        sums = b"" if damaged else describe_shard(tar, place.spec)[0]
    except FileNotFoundError:
        damaged, problem = [row["asset"] for row in rows], "the shard is gone"
    except Damaged as error:
        damaged, problem = [row["asset"] for row in rows], str(error)
    if problem:
        yield _finding("shard", place, problem, damaged)
        return
    try:
        there = storage.read(sums_path(place.path))
    except FileNotFoundError:
        there = b""
    if there == sums:
        return
    if not is_as_packed(tar, place.spec):
        problem = "the arrays are whole, the tar around them is not: other readers may fail"
        yield _finding("shard", place, problem, [row["asset"] for row in rows])
    elif there[:-8] == sums[:-8] or not all(_is_summed(there, place.spec, row) for row in rows):
        # Otherwise an array is damaged that no version names any more.
        problem = "the checksums do not match the shard" if there else "the checksums are gone"
        yield Finding(kind="checksums", path=sums_path(place.path), problem=problem, feature_set=place.spec.fingerprint)


def _is_summed(sums: bytes, spec: EncoderSpec, row: dict[str, int]) -> bool:
    length = 8 * len(spec.layers) * blocks_per_layer(row["num_frames"] * spec.width * spec.dtype.itemsize)
    return digest_of(sums[row["sums_offset"] : row["sums_offset"] + length]) == row["checksum"]


def _is_intact(tar: bytes, spec: EncoderSpec, row: dict[str, int]) -> bool:
    num_bytes = len(spec.layers) * row["num_frames"] * spec.width * spec.dtype.itemsize
    data = np.frombuffer(tar, np.uint8)[row["offset"] : row["offset"] + num_bytes]
    is_whole = len(data) == num_bytes
    return is_whole and digest_of(sums_of(data.reshape(len(spec.layers), -1))) == row["checksum"]


def _verify_chunk(storage: Storage, place: _Place) -> Iterator[Finding]:
    rows = place.rows.to_pylist()
    count = shape_of(place.path).chunk_rows
    start = rows[0]["offset"] // count * count
    try:
        vectors, keys = (
            read_rows(open_array(storage, place.spec, place.path, name), place.path, start, count) for name in ARRAYS
        )
    except Damaged as error:
        yield _finding("chunk", place, str(error), [row["asset"] for row in rows])
        return
    damaged = [
        row["asset"]
        for row in rows
        if row["offset"] - start >= len(vectors)
        or digest_of(vectors[row["offset"] - start].data) != row["checksum"]
        or bytes(keys[row["offset"] - start]).rstrip(b"\0") != row["asset"].encode()
    ]
    if damaged:
        problem = f"{len(damaged)} of {len(rows)} rows from {start} on do not match their checksums"
        yield _finding("chunk", place, problem, damaged)


def _verify_metadata(storage: Storage, spec: EncoderSpec, path: str) -> Iterator[Finding]:
    files = {}
    for name in METADATA:
        try:
            files[name] = storage.read(f"{path}/{name}")
        except FileNotFoundError:
            continue
    if len(files) < len(METADATA) or not is_same_metadata(spec, path, files):
        problem = "the segment's metadata does not say what its name states: other readers may fail"
        yield Finding(kind="metadata", path=path, problem=problem, feature_set=spec.fingerprint)


def _finding(kind: str, place: _Place, problem: str, keys: list[str]) -> Finding:
    return Finding(
        kind="shard" if kind == "shard" else "chunk",
        path=place.path,
        problem=problem,
        feature_set=place.spec.fingerprint,
        keys=tuple(keys),
    )


def _concat(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()
