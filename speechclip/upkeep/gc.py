"""gc deletes the files that no live version names, once they are older than the grace period.

Jobs may write to the store at the same time. No lock keeps them apart from `gc`; these rules do:

- A job writes its files first and commits them later. Until then no version names them. So `gc` deletes no file that is
  younger than the grace period (see `store.grace`).
- `gc` lists the files first and reads the catalog afterwards. A file that a job commits in between is not deleted,
  because the catalog names it by then.
- `gc` looks at the age of each file again when it deletes it. Another `gc` may have deleted the file, and a job may
  have written it again.
- Before it deletes the first file, `gc` records which versions it keeps. From then on no other version can be tagged.
  If a tag is made just before that, `gc` starts again and keeps the tagged version (see `store.tags`).
"""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from speechclip.records import Record, StoredFile
from speechclip.storage import Storage
from speechclip.storage.folder import INCOMING
from speechclip.store.feature_store import FeatureStore
from speechclip.store.grace import GRACE_SECONDS
from speechclip.store.layout import CATALOG, FEATURES, JOURNAL, PROBE, data_file_copy_path, data_file_path, partition
from speechclip.store.tags import GcRecord
from speechclip.upkeep.live import live_files, oldest_live_version

BATCH = 500
# These files stay although no row names them. They are small, are written once, and jobs that continue an old plan
# need them.
_KEPT_NAMES = ("/spec.json", "/zarr.json")


class Deleted(Record, frozen=True):
    """What a `gc` has deleted, or with `dry_run` would delete.

    The versions from `since` on and those in `versions` stay readable.
    """

    files: int
    bytes: int
    uploads: int
    upload_bytes: int
    since: int
    versions: tuple[int, ...]


def delete_unused(
    store: FeatureStore,
    *,
    grace_seconds: float = GRACE_SECONDS,
    dry_run: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Deleted:
    """Delete what no live version names.

    A grace period below seven days is safe only while no other process uses the store. Raises `Damaged`, and deletes
    nothing, if the catalog can't be read, because then nobody knows what is live.
    """
    store.snapshot().check_tags()
    start = time.time() - grace_seconds
    old_files = [file for file in _listed(store.storage) if file.modified < start]
    record = _live_versions(store, start) if dry_run else _create_record(store, start)
    live = live_files(store, record)
    unused = [file for file in old_files if is_deletable(file.path) and file.path not in live]
    if not dry_run:
        for first in range(0, len(unused), BATCH):
            store.storage.delete([file.path for file in unused[first : first + BATCH]], older_than=start)
            on_progress(min(first + BATCH, len(unused)), len(unused))
    uploads = list(store.storage.abort_uploads(start, dry_run=dry_run))
    return Deleted(
        files=len(unused),
        bytes=sum(file.size for file in unused),
        uploads=len(uploads),
        upload_bytes=sum(upload.size for upload in uploads),
        since=record.since,
        versions=record.versions,
    )


def is_deletable(path: str) -> bool:
    """Whether `gc` may delete a file at this path when no live version names it.

    That holds for features, for data files and their copies, and for what a killed writer has left half written. It
    never holds for the log, the journal's entries, tags, manifests, plans or specs.
    """
    folder, _, name = path.rpartition("/")
    if name.startswith(INCOMING) or path.startswith(PROBE):
        return True
    if path.startswith((CATALOG, JOURNAL)):
        return folder.startswith((data_file_path(partition("")), data_file_copy_path(partition(""))))
    return path.startswith(f"{FEATURES}/") and not path.endswith(_KEPT_NAMES)


def _listed(storage: Storage) -> Iterator[StoredFile]:
    return storage.stat("", with_incoming=True)


def _live_versions(store: FeatureStore, start: float) -> GcRecord:
    """The record of the versions that are live if the grace period began at `start`."""
    since = oldest_live_version(store, store.catalog.newest(), start)
    tagged = {tag.version for tag in store.tags.list()}
    return GcRecord(time=datetime.now(UTC), since=since, versions=tuple(sorted(v for v in tagged if v < since)))


def _create_record(store: FeatureStore, start: float) -> GcRecord:
    """Store the record of the versions that this `gc` keeps.

    A tag that is made between the look at the tags and the record makes this start again, so that the tag counts.
    """
    while True:
        announcement = store.tags.announce()
        record = _live_versions(store, start)
        if store.tags.begin(announcement, record):
            return record
