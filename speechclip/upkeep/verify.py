"""verify: every file that the newest and the tagged versions name, against what the catalog and the journal say of it.

The catalog's own checksum of a feature stands apart from the file beside its shard. So it is always known which of the
two is damaged, and a damaged checksum file costs no encoding.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from speechclip.errors import Damaged, StoreError
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store.checksums import digest_of
from speechclip.store.chunks import is_whole_chunk, key_row, rows_in
from speechclip.store.data_files import check_data_file
from speechclip.store.feature_store import FeatureStore
from speechclip.store.layout import (
    FEATURES,
    MANIFESTS,
    STORE_FILE,
    TAGS,
    data_file_copy_path,
    data_file_path,
    digest_in,
    spec_path,
    sums_path,
    tag_path,
)
from speechclip.store.matrices import ARRAYS, METADATA, chunk_path, is_same_metadata, shape_of
from speechclip.store.rows import SCHEMA, by_feature_set, entries, is_stored
from speechclip.store.shard_layout import sums_length
from speechclip.store.shards import describe_shard, is_as_packed
from speechclip.store.snapshot import lost_tags
from speechclip.upkeep.findings import HIDING, Finding, Kind, Report
from speechclip.upkeep.gc import data_files_of, is_ours_to_free, named_by_rows, oldest_kept
from speechclip.upkeep.restore import array_at, is_intact, read_or_nothing
from speechclip.upkeep.verify_log import verify_log, verify_newest

THREADS = 4
_UNSEALED = "the chunk does not end in the checksum of its rows, so Zarr refuses it"
_PLACE = ("feature_set", "asset", "shard", "offset", "num_frames", "sums_offset", "checksum", "status")


@dataclass(frozen=True)
class _Place:
    """A shard, or one chunk of a matrix, and the catalog's rows of what lies in it."""

    spec: EncoderSpec
    path: str
    rows: pa.Table


def verify(store: FeatureStore, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Report:
    """Read and check all of it; `on_progress(bytes done, bytes in all)`. What a reader calls `Damaged` is a finding.

    `NotStored` where there is no store.
    """
    findings = [*verify_format(store), *verify_log(store.catalog)]
    findings += [] if findings else verify_newest(store.catalog)
    if any(finding.kind in HIDING for finding in findings):
        return Report(versions=(), assets=0, files=0, bytes=0, orphans=0, orphan_bytes=0, findings=tuple(findings))
    listed = {file.path: file.size for file in store.storage.stat(FEATURES)}
    newest = store.catalog.newest()
    versions = sorted({newest, *(tag.version for tag in store.tags.readable(newest))})
    findings += _verify_parts(store, newest)
    rows = _unique(SCHEMA.empty_table())
    for version in versions:
        rows = _unique(pa.concat_tables([rows, _unique(_picked_rows(store, version))]))
    by_set = by_feature_set(rows)
    places = [place for name, rows in by_set.items() for place in _places(store, name, rows, findings)]
    files = [named_by_rows(place.rows) for place in places]
    named = set[str]().union(*files)
    total, done = sum(listed.get(path, 0) for path in named), 0
    with ThreadPoolExecutor(THREADS) as pool:
        checks = pool.map(lambda place: list(_verify_place(store.storage, place)), places)
        for paths, found in zip(files, checks, strict=True):
            findings += found
            done += sum(listed.get(path, 0) for path in paths)
            on_progress(done, total)
    matrices = {place.path: place.spec for place in places if not place.spec.is_frames}
    findings += [found for path, spec in matrices.items() for found in _verify_metadata(store.storage, spec, path)]
    orphans = [size for path, size in listed.items() if path not in named and is_ours_to_free(path)]
    return Report(
        versions=tuple(versions),
        assets=sum(len(place.rows) for place in places),
        files=len(named),
        bytes=total,
        orphans=len(orphans),
        orphan_bytes=sum(orphans),
        findings=tuple(dict.fromkeys([*findings, *_verify_tags(store, newest), *_verify_manifests(store)])),
    )


def verify_format(store: FeatureStore) -> list[Finding]:
    """What is wrong with a store's mark; `NotStored` where none ever was, `UnsupportedStore` for a newer format."""
    try:
        store.check_exists()
    except Damaged as error:
        return [Finding(kind="store", path=STORE_FILE, problem=str(error).removeprefix(f"{store.storage.root}/"))]
    return []


def _verify_tags(store: FeatureStore, newest: int) -> Iterator[Finding]:
    for path, error in store.tags.damaged():
        yield Finding(kind="tag" if path.startswith(TAGS) else "collection", path=path, problem=str(error))
    for tag in lost_tags(store.catalog, newest):
        problem = (
            f"the tag names catalog version {tag.version}, and the newest is {newest}: entries of the log are lost; "
            f"bring them back from a backup, or give it up by `speechclip tag --delete {tag.name}`"
        )
        yield Finding(kind="tag", path=tag_path(tag.name), problem=problem)


def _verify_manifests(store: FeatureStore) -> Iterator[Finding]:
    for path in store.storage.list(MANIFESTS):
        try:
            store.read_manifest(digest_in(path))
        except Damaged as error:
            yield Finding(kind="manifest", path=path, problem=str(error))


def _verify_parts(store: FeatureStore, newest: int) -> list[Finding]:
    """What is wrong with the files of rows that `gc` reads, and with their copies."""
    try:
        since = oldest_kept(store, newest)
    except Damaged:
        # Which versions are still kept is known once the record of a `gc` is mended.
        since = newest
    parts = sorted(set.union(*data_files_of(store, newest, since)))
    checked = store.storage.in_parallel(lambda part: list(_verify_part(store, part)), parts)
    return [finding for found in checked for finding in found]


def _verify_part(store: FeatureStore, part: str) -> Iterator[Finding]:
    places: dict[Kind, str] = {"catalog": data_file_path(part), "copy": data_file_copy_path(part)}
    for kind, path in places.items():
        try:
            check_data_file(path, store.storage.read(path))
        except FileNotFoundError:
            yield Finding(kind=kind, path=path, problem="the file is gone")
        except Damaged as error:
            yield Finding(kind=kind, path=path, problem=str(error))


def _picked_rows(store: FeatureStore, version: int) -> pa.Table:
    """The rows of all stored assets that a reader of this version picks, as far as the catalog's files are whole."""
    parts = store.catalog.data_files.read(store.catalog.paths(version)).values()
    rows = pa.concat_tables([SCHEMA.empty_table(), *(part for part in parts if not isinstance(part, Damaged))])
    picked = [entries(of_set) for of_set in by_feature_set(rows).values()]
    return pa.concat_tables([SCHEMA.empty_table(), *(of_set.filter(is_stored(of_set)) for of_set in picked)])


def _unique(rows: pa.Table) -> pa.Table:
    """What these rows say of where features lie, each once."""
    return rows.group_by(list(_PLACE)).aggregate([])


def _places(store: FeatureStore, feature_set: str, rows: pa.Table, findings: list[Finding]) -> Iterator[_Place]:
    """Where the features of one set lie; nothing where its spec is damaged, for then nobody knows their shape."""
    try:
        spec = store.read_spec(feature_set).spec
    except StoreError as error:
        findings.append(Finding(kind="spec", path=spec_path(feature_set), problem=str(error), feature_set=feature_set))
        return
    unique = rows.sort_by([("shard", "ascending"), ("offset", "ascending")])
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
    rows, spec = place.rows.to_pylist(), place.spec
    try:
        tar = storage.read(place.path)
    except FileNotFoundError:
        yield _finding("shard", place, place.path, "the shard is gone", [row["asset"] for row in rows])
        return
    damaged = [row["asset"] for row in rows if not is_intact(array_at(tar, spec, row), row)]
    if damaged:
        problem = f"{len(damaged)} of {len(rows)} arrays do not match their checksums"
        yield _finding("shard", place, place.path, problem, damaged)
        return
    try:
        sums = describe_shard(tar, spec)[0]
    except Damaged:
        sums = b""
    there = read_or_nothing(storage, sums_path(place.path))
    if sums and there == sums:
        return
    if not sums or not is_as_packed(tar, spec):
        yield _finding("shard", place, place.path, "the arrays are whole, the tar around them is not", [])
    elif not there:
        yield _finding("checksums", place, sums_path(place.path), "the checksums are gone", [])
    elif not _may_be_unnamed(there, sums) or not all(_is_summed(there, spec, row) for row in rows):
        yield _finding("checksums", place, sums_path(place.path), "the checksums do not match the shard", [])


def _may_be_unnamed(there: bytes, sums: bytes) -> bool:
    """Whether an array that no live version names may be all that differs: then nothing is lost."""
    return len(there) == len(sums) and there[:-8] != sums[:-8]


def _is_summed(sums: bytes, spec: EncoderSpec, row: dict[str, int]) -> bool:
    length = sums_length(spec, row["num_frames"])
    return digest_of(sums[row["sums_offset"] : row["sums_offset"] + length]) == row["checksum"]


def _verify_chunk(storage: Storage, place: _Place) -> Iterator[Finding]:
    rows, spec = place.rows.to_pylist(), place.spec
    count = shape_of(place.path).chunk_rows
    start = rows[0]["offset"] // count * count
    paths = {name: chunk_path(place.path, name, start) for name in ARRAYS}
    files = {name: read_or_nothing(storage, path) for name, path in paths.items()}
    found = {name: rows_in(files[name], spec, name, count) for name in ARRAYS}
    damaged = [
        row["asset"] for row in rows if digest_of(found["vectors"][row["offset"] - start].data) != row["checksum"]
    ]
    # One that is gone is told by its rows, of which none is there then.
    unsealed = {
        name for name in ARRAYS if files[name] and not is_whole_chunk(files[name], found[name][0].nbytes, count)
    }
    if damaged:
        problem = f"{len(damaged)} of {len(rows)} rows from {start} on do not match their checksums"
        yield _finding("chunk", place, paths["vectors"], problem, damaged)
    elif "vectors" in unsealed:
        yield _finding("chunk", place, paths["vectors"], _UNSEALED, [])
    are_its_keys = all(bytes(found["keys"][row["offset"] - start]) == bytes(key_row(row["asset"])) for row in rows)
    if "keys" in unsealed or not are_its_keys:
        problem = _UNSEALED if "keys" in unsealed else "not the keys of its rows"
        yield _finding("keys", place, paths["keys"], problem, [])


def _verify_metadata(storage: Storage, spec: EncoderSpec, path: str) -> Iterator[Finding]:
    files = {}
    for name in METADATA:
        try:
            files[name] = storage.read(f"{path}/{name}")
        except FileNotFoundError:
            continue
    if len(files) < len(METADATA) or not is_same_metadata(spec, path, files):
        problem = "the matrix's metadata does not say what its name states: other readers may fail"
        yield Finding(kind="metadata", path=path, problem=problem, feature_set=spec.fingerprint)


def _finding(kind: Kind, place: _Place, path: str, problem: str, keys: list[str]) -> Finding:
    return Finding(kind=kind, path=path, problem=problem, feature_set=place.spec.fingerprint, keys=tuple(keys))
