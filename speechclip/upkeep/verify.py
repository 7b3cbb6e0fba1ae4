"""Verify a store: read every file that the newest and the tagged versions name, and compare it with its checksums."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from speechclip.errors import Damaged
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
    tag_path,
)
from speechclip.store.rows import SCHEMA, by_feature_set, entries, is_stored
from speechclip.store.snapshot import lost_tags
from speechclip.upkeep.findings import BLOCKING, Finding, Kind, Report, finding_of
from speechclip.upkeep.gc import is_deletable
from speechclip.upkeep.live import files_of_rows, live_data_files, oldest_live_version
from speechclip.upkeep.verify_features import Place, places_of, verify_metadata, verify_place
from speechclip.upkeep.verify_log import verify_log, verify_newest

THREADS = 4
_PLACE = ("feature_set", "asset", "shard", "offset", "num_frames", "sums_offset", "checksum", "status")


def verify(store: FeatureStore, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Report:
    """Read and check the whole store; `on_progress(done, total)` counts bytes of features.

    Damage becomes a finding, not an error. If the log or `store.json` is damaged, nothing else can be checked, and the
    report names no version. Raises `NotStored` where there is no store.
    """
    findings = [*verify_format(store), *verify_log(store.catalog)]
    findings += [] if findings else verify_newest(store.catalog)
    if any(finding.kind in BLOCKING for finding in findings):
        return Report(versions=(), assets=0, files=0, bytes=0, orphans=0, orphan_bytes=0, findings=tuple(findings))
    sizes = {file.path: file.size for file in store.storage.stat(FEATURES)}
    newest = store.catalog.newest()
    versions = sorted({newest, *(tag.version for tag in store.tags.readable(newest))})
    findings += _verify_data_files(store, newest)
    by_set = by_feature_set(_rows_to_check(store, versions))
    places = [place for name, rows in by_set.items() for place in places_of(store, name, rows, findings)]
    files = [files_of_rows(place.rows) for place in places]
    named = set[str]().union(*files)
    total, done = sum(sizes.get(path, 0) for path in named), 0
    with ThreadPoolExecutor(THREADS) as pool:
        checks = pool.map(lambda place: list(verify_place(store.storage, place)), places)
        for paths, found in zip(files, checks, strict=True):
            findings += found
            done += sum(sizes.get(path, 0) for path in paths)
            on_progress(done, total)
    findings += [*_verify_matrices(store, places), *_verify_tags(store, newest), *_verify_manifests(store)]
    orphans = [size for path, size in sizes.items() if path not in named and is_deletable(path)]
    return Report(
        versions=tuple(versions),
        assets=sum(len(place.rows) for place in places),
        files=len(named),
        bytes=total,
        orphans=len(orphans),
        orphan_bytes=sum(orphans),
        findings=tuple(dict.fromkeys(findings)),
    )


def verify_format(store: FeatureStore) -> list[Finding]:
    """The finding of a damaged `store.json`.

    Raises `NotStored` where there is no store, and `UnsupportedStore` for a newer format.
    """
    try:
        store.check_exists()
    except Damaged as error:
        return [finding_of(error, "store", STORE_FILE)]
    return []


def _verify_data_files(store: FeatureStore, newest: int) -> list[Finding]:
    """The findings of all data files of live versions, and of their copies: `gc` reads them."""
    try:
        oldest = oldest_live_version(store, newest)
    except Damaged:
        # The record of a `gc` is damaged, so it is not known which versions of the last seven days are live.
        oldest = newest
    data_files = live_data_files(store, newest, oldest)
    paths = sorted(data_files.required | data_files.recent)
    checked = store.storage.in_parallel(lambda path: list(_verify_data_file(store, path)), paths)
    return [finding for found in checked for finding in found]


def _verify_data_file(store: FeatureStore, data_file: str) -> Iterator[Finding]:
    paths: dict[Kind, str] = {"catalog": data_file_path(data_file), "copy": data_file_copy_path(data_file)}
    for kind, path in paths.items():
        try:
            check_data_file(path, store.storage.read(path))
        except FileNotFoundError:
            yield Finding(kind=kind, path=path, problem="the file is gone")
        except Damaged as error:
            yield finding_of(error, kind, path)


def _verify_matrices(store: FeatureStore, places: list[Place]) -> Iterator[Finding]:
    matrices = {place.path: place.spec for place in places if not place.spec.is_frames}
    for path, spec in matrices.items():
        yield from verify_metadata(store.storage, spec, path)


def _verify_tags(store: FeatureStore, newest: int) -> Iterator[Finding]:
    for path, error in store.tags.damaged():
        yield finding_of(error, "tag" if path.startswith(TAGS) else "collection", path)
    for tag in lost_tags(store.catalog, newest):
        yield Finding(
            kind="tag",
            path=tag_path(tag.name),
            problem=(
                f"the tag names catalog version {tag.version}, but the newest is {newest}: entries of the log are lost"
            ),
            advice=f"bring them back from a backup, or delete the tag by `speechclip tag --delete {tag.name}`",
        )


def _verify_manifests(store: FeatureStore) -> Iterator[Finding]:
    for path in store.storage.list(MANIFESTS):
        try:
            store.read_manifest(digest_in(path))
        except Damaged as error:
            yield finding_of(error, "manifest", path)


def _rows_to_check(store: FeatureStore, versions: list[int]) -> pa.Table:
    """The rows of the stored features that readers of these versions use, each once, as far as they can be read."""
    rows = _unique(SCHEMA.empty_table())
    for version in versions:
        rows = _unique(pa.concat_tables([rows, _unique(_rows_of_version(store, version))]))
    return rows


def _rows_of_version(store: FeatureStore, version: int) -> pa.Table:
    """The rows of the stored features that a reader of this version uses, from all data files that are whole."""
    tables = store.catalog.data_files.read(store.catalog.paths(version)).values()
    rows = pa.concat_tables([SCHEMA.empty_table(), *(table for table in tables if not isinstance(table, Damaged))])
    used = [entries(of_set) for of_set in by_feature_set(rows).values()]
    return pa.concat_tables([SCHEMA.empty_table(), *(of_set.filter(is_stored(of_set)) for of_set in used)])


def _unique(rows: pa.Table) -> pa.Table:
    """The columns that say where a feature lies, each combination once."""
    return rows.group_by(list(_PLACE)).aggregate([])
