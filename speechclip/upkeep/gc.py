"""gc: free what no live version names, after the grace period.

Live are the newest version, every version that was the newest within the grace period, and the tagged ones. What lies
on storage is listed first and the catalog read after, so a file that was committed in between is seen as named; and
what no version names yet is a run's at work while it is younger than the grace period (see `grace`).
"""

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from speechclip.errors import Damaged
from speechclip.records import Record, StoredFile
from speechclip.storage import Storage
from speechclip.storage.folder import INCOMING
from speechclip.store.data_files import decode_data_file
from speechclip.store.feature_store import FeatureStore
from speechclip.store.grace import GRACE_SECONDS
from speechclip.store.layout import (
    CATALOG,
    FEATURES,
    JOURNAL,
    PROBE,
    data_file_copy_path,
    data_file_path,
    partition,
    sums_path,
)
from speechclip.store.matrices import ARRAYS, chunk_path, shape_of
from speechclip.store.rows import is_stored
from speechclip.store.tags import GcRecord

logger = logging.getLogger(__name__)

BATCH = 500
# Their metadata is small, made once and relied upon by whoever continues an old plan.
_NEVER = ("/spec.json", "/zarr.json")


class Freed(Record, frozen=True):
    """What a `gc` freed, or with `dry_run` would free."""

    files: int
    bytes: int
    uploads: int
    upload_bytes: int
    since: int
    versions: tuple[int, ...]


def collect(
    store: FeatureStore,
    *,
    grace_seconds: float = GRACE_SECONDS,
    dry_run: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Freed:
    """Free what no live version names; a shorter grace period is safe only while nothing else writes to the store.

    `Damaged`, and nothing is freed, where the catalog can't be read: then nobody knows what is live.
    """
    store.snapshot().check_tags()
    oldest = time.time() - grace_seconds
    listed = [file for file in _listed(store.storage) if file.modified < oldest]
    kept = _kept(store, oldest) if dry_run else _begin(store, oldest)
    named = named_by(store, kept)
    garbage = [file for file in listed if is_ours_to_free(file.path) and file.path not in named]
    if not dry_run:
        for start in range(0, len(garbage), BATCH):
            # Another `gc` may have freed one of these, and a run written it anew.
            store.storage.delete([file.path for file in garbage[start : start + BATCH]], older_than=oldest)
            on_progress(min(start + BATCH, len(garbage)), len(garbage))
    uploads = list(store.storage.abort_uploads(oldest, dry_run=dry_run))
    return Freed(
        files=len(garbage),
        bytes=sum(file.size for file in garbage),
        uploads=len(uploads),
        upload_bytes=sum(upload.size for upload in uploads),
        since=kept.since,
        versions=kept.versions,
    )


def named_by(store: FeatureStore, kept: GcRecord) -> set[str]:
    """The paths of every file that these versions name: shards, checksums, chunks, and the catalog's own.

    Where a file of rows is lost with its copy, and only versions of the window named it, all of its feature set counts
    as named: nobody knows what of it was. `Damaged` where the newest or a tagged version needs it, or `repair` has it.
    """
    vital, passing = data_files_of(store, store.catalog.newest(), kept.since, kept.versions)
    named = {place(path) for path in vital | passing for place in (data_file_path, data_file_copy_path)}
    for path, rows in store.catalog.data_files.read_each(sorted(vital | passing)):
        if not isinstance(rows, Damaged):
            named |= named_by_rows(rows)
        elif path in vital or find_rows(store, path) is not None:
            raise rows
        else:
            feature_set = path.partition("/")[0].removeprefix(partition(""))
            logger.warning(
                "%s: lost with its copy; nothing of feature set %s is freed; `speechclip repair` says until when",
                data_file_path(path),
                feature_set,
            )
            named |= set(store.storage.list(f"{FEATURES}/{feature_set}"))
    return named


def data_files_of(
    store: FeatureStore, newest: int, since: int, versions: Collection[int] = ()
) -> tuple[set[str], set[str]]:
    """The files of rows that the newest version, these and the tagged ones name; and what others named from `since` on.

    A tag whose maker was killed may name a version that was freed: that counts for nothing.
    """
    tagged = {tag.version for tag in store.tags.readable(newest)}
    live = {newest, *tagged, *(version for version in versions if store.tags.deleted_by(version) is None)}
    vital = {path for version in live for path in store.catalog.paths(version)}
    # What a version in the window named and a later one removed was added by an entry of the window, or before it.
    passing = {path for entry in store.catalog.history(newest, since) for path in entry.added}
    return vital, passing.union(store.catalog.paths(since)) - vital


def find_rows(store: FeatureStore, part: str) -> pa.Table | None:
    """The rows in that file of the catalog, or in its copy; None where both are lost."""
    for path in (data_file_path(part), data_file_copy_path(part)):
        with contextlib.suppress(Damaged, FileNotFoundError):
            return decode_data_file(path, store.storage.read(path))
    return None


def named_by_rows(rows: pa.Table) -> set[str]:
    """The files that hold what these rows of the catalog say is stored."""
    places = rows.filter(is_stored(rows)).select(["shard", "offset"])
    is_tar = pc.ends_with(places["shard"], ".tar")
    tars = places.filter(is_tar)["shard"].unique().to_pylist()
    named = {*tars, *map(sums_path, tars)}
    vectors = places.filter(pc.invert(is_tar))
    for matrix in vectors["shard"].unique().to_pylist():
        rows = shape_of(matrix).chunk_rows
        offsets = vectors.filter(pc.equal(vectors["shard"], matrix))["offset"].to_numpy()
        for chunk in np.unique(offsets // rows).tolist():
            named |= {chunk_path(matrix, name, chunk * rows) for name in ARRAYS}
    return named


def is_ours_to_free(path: str) -> bool:
    """Whether `gc` may free a file there once nothing names it."""
    folder, _, name = path.rpartition("/")
    if name.startswith(INCOMING) or path.startswith(PROBE):
        return True
    if path.startswith((CATALOG, JOURNAL)):
        return folder.startswith((data_file_path(partition("")), data_file_copy_path(partition(""))))
    return path.startswith(f"{FEATURES}/") and not path.endswith(_NEVER)


def _listed(storage: Storage) -> Iterator[StoredFile]:
    return storage.stat("", with_incoming=True)


def _kept(store: FeatureStore, oldest: float) -> GcRecord:
    """The live versions: all since the one that was the newest when the grace period began, and the tagged ones."""
    since = oldest_kept(store, store.catalog.newest(), oldest)
    tagged = {tag.version for tag in store.tags.list()}
    return GcRecord(time=datetime.now(UTC), since=since, versions=tuple(sorted(v for v in tagged if v < since)))


def oldest_kept(store: FeatureStore, newest: int, oldest: float | None = None) -> int:
    """The oldest version of the window: the newest at that Unix time, by default when the grace period began."""
    oldest = time.time() - GRACE_SECONDS if oldest is None else oldest
    since = next((entry.version for entry in store.catalog.history(newest) if entry.time.timestamp() < oldest), 0)
    # A collection with a shorter grace period may have freed later versions.
    return max(since, store.tags.since())


def _begin(store: FeatureStore, oldest: float) -> GcRecord:
    """Record what will be kept, so that from now on no other version can be tagged; a tag that came first counts."""
    while True:
        announcement = store.tags.announce()
        kept = _kept(store, oldest)
        if store.tags.begin(announcement, kept):
            return kept
