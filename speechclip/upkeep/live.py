"""Which versions are live, and which files they name. `gc` deletes no such file.

Three kinds of versions are live: the newest one, those of the grace period, and the tagged ones.

Example: today is the 20th, and the grace period began seven days ago, on the 13th. Version 5 was committed on the 10th,
version 6 on the 15th, version 7 on the 19th. Versions 5, 6 and 7 are live. Version 5 is older than seven days, but it
was the newest one until the 15th, so a reader that started on the 14th still reads it. If version 2 has a tag, it is
live too.
"""

import contextlib
import logging
import time
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from speechclip.errors import Damaged
from speechclip.store.data_files import decode_data_file
from speechclip.store.feature_store import FeatureStore
from speechclip.store.grace import GRACE_SECONDS
from speechclip.store.layout import FEATURES, data_file_copy_path, data_file_path, partition, sums_path
from speechclip.store.matrices import ARRAYS, chunk_path, shape_of
from speechclip.store.rows import is_stored
from speechclip.store.tags import GcRecord

logger = logging.getLogger(__name__)


class DataFiles(NamedTuple):
    """The data files of the live versions, by their paths within the catalog's folder.

    `required` are those that the newest or a tagged version names. `recent` are the others: only older versions of the
    grace period name them.
    """

    required: set[str]
    recent: set[str]


def oldest_live_version(store: FeatureStore, newest: int, start: float | None = None) -> int:
    """The version that was the newest when the grace period began; it and all later versions are live.

    `start` is the begin of the grace period as a Unix time; without it, seven days ago.
    """
    start = time.time() - GRACE_SECONDS if start is None else start
    oldest = next((entry.version for entry in store.catalog.history(newest) if entry.time.timestamp() < start), 0)
    # A `gc` with a shorter grace period may have deleted files of later versions.
    return max(oldest, store.tags.since())


def live_data_files(store: FeatureStore, newest: int, oldest: int, tagged: Collection[int] = ()) -> DataFiles:
    """The data files of the newest version, of all versions from `oldest` on, and of the tagged ones.

    `tagged` adds versions to those that have a tag now. A version whose files a `gc` has deleted before is left out,
    even if it has a tag: a `tag` that was killed may leave such a tag.
    """
    with_tag = {tag.version for tag in store.tags.readable(newest)}
    versions = {newest, *with_tag, *(version for version in tagged if store.tags.deleted_by(version) is None)}
    required = {path for version in versions for path in store.catalog.paths(version)}
    # A version after `oldest` names files that `oldest` named already, and files that a later entry has added.
    added = {path for entry in store.catalog.history(newest, oldest) for path in entry.added}
    return DataFiles(required, added.union(store.catalog.paths(oldest)) - required)


def live_files(store: FeatureStore, record: GcRecord) -> set[str]:
    """The paths of all files that the versions of a gc's record name: shards, checksums, chunks, and data files.

    A data file may be lost together with its copy. Then its rows are unknown, and so are the files that they name:

    - If the newest or a tagged version names the lost file, this raises `Damaged`. It does so too if only the original
      is lost, as `repair` can bring that back.
    - If only other versions of the grace period name it, all files of its feature set count as named. So `gc` deletes
      none of them until those versions are no longer live.
    """
    data_files = live_data_files(store, store.catalog.newest(), record.since, record.versions)
    paths = data_files.required | data_files.recent
    files = {place(path) for path in paths for place in (data_file_path, data_file_copy_path)}
    for path, rows in store.catalog.data_files.read_each(sorted(paths)):
        if not isinstance(rows, Damaged):
            files |= files_of_rows(rows)
        elif path in data_files.required or read_rows(store, path) is not None:
            raise rows
        else:
            feature_set = path.partition("/")[0].removeprefix(partition(""))
            logger.warning(
                "%s: the file and its copy are lost; nothing of feature set %s is deleted; "
                "`speechclip repair` says until when",
                data_file_path(path),
                feature_set,
            )
            files |= set(store.storage.list(f"{FEATURES}/{feature_set}"))
    return files


def files_of_rows(rows: pa.Table) -> set[str]:
    """The files that hold the features of these catalog rows: shards with their checksums, and chunks with their keys.

    Rows of rejected assets name no file.
    """
    places = rows.filter(is_stored(rows)).select(["shard", "offset"])
    is_tar = pc.ends_with(places["shard"], ".tar")
    tars = places.filter(is_tar)["shard"].unique().to_pylist()
    files = {*tars, *map(sums_path, tars)}
    vectors = places.filter(pc.invert(is_tar))
    for matrix in vectors["shard"].unique().to_pylist():
        chunk_rows = shape_of(matrix).chunk_rows
        offsets = vectors.filter(pc.equal(vectors["shard"], matrix))["offset"].to_numpy()
        for chunk in np.unique(offsets // chunk_rows).tolist():
            files |= {chunk_path(matrix, name, chunk * chunk_rows) for name in ARRAYS}
    return files


def read_rows(store: FeatureStore, data_file: str) -> pa.Table | None:
    """The rows of a data file, read from the file or from its copy; None if both are lost."""
    for path in (data_file_path(data_file), data_file_copy_path(data_file)):
        with contextlib.suppress(Damaged, FileNotFoundError):
            return decode_data_file(path, store.storage.read(path))
    return None


def oldest_complete_version(store: FeatureStore) -> int:
    """The oldest version from which on every file still exists; files that exist may be damaged.

    `repair` needs this when the record of a `gc` is damaged: nobody knows which versions that `gc` has kept. It goes
    from the newest version back. Each step looks at the data files that the older version named and the newer one does
    not. If one of them is lost, or a file that its rows name, then the newer version is the answer.

    Example: version 6 dropped a feature set, and a `gc` deleted the shards of that set. Version 5 names these shards,
    so the answer is 6.
    """
    files = set(store.storage.list(FEATURES))
    for entry in store.catalog.history(store.catalog.newest()):
        for data_file in entry.removed:
            rows = read_rows(store, data_file)
            if rows is None or not files_of_rows(rows) <= files:
                return entry.version
    return 0
