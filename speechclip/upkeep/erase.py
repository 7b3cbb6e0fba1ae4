"""Write shards and chunks again without certain assets, so that `gc` can delete every byte of these assets.

The features of one speaker lie in shards together with those of others. A `drop` makes the catalog name the speaker's
features no more. But `gc` deletes whole files, and the catalog still names these shards for the other speakers. So
`drop --erase` first writes the other speakers' features into new shards, and commits that these count instead.
"""

import itertools
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from speechclip.errors import Damaged
from speechclip.records import Asset, Receipt, Task
from speechclip.store import changes
from speechclip.store.feature_store import FeatureStore
from speechclip.store.frames import Frames
from speechclip.store.layout import CATALOG, data_file_path, partition
from speechclip.store.matrices import matrix_in, shape_of
from speechclip.store.rows import SCHEMA, is_among, is_stored, places, rows_of
from speechclip.store.shards import pack_members, provenance_in, write_shard
from speechclip.store.vectors import Vectors, write_chunk

# Each commit reads all rows of its feature sets, so there is at most one in this time.
COMMIT_SECONDS = 300.0


def rewrite_shared_shards(
    store: FeatureStore,
    doomed: Mapping[str, Collection[str]],
    *,
    job: str = "",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write each shard and chunk that holds doomed keys again without them; returns how many were written.

    `doomed` are keys by feature set; they may be dropped already. Nothing is written for a shard that holds doomed
    keys alone. The features are checked when they are read, and are the same to the bit afterwards. If the process is
    killed, the next call continues.
    """
    snapshot = store.snapshot()
    snapshot.check_tags()
    leaving = [SCHEMA.empty_table()]
    shared: list[tuple[Frames | Vectors, pa.Table]] = []
    for name in sorted(doomed.keys() & {info.fingerprint for info in snapshot.feature_sets()}):
        staying = _without(snapshot.all_stored(name), doomed[name])
        found = _places(store, name, doomed[name]) if len(staying) else []
        leaving.append(staying.filter(is_among(places(staying), found)))
        spec, counted = store.read_spec(name).spec, _without(snapshot.stored(name), doomed[name])
        moving = counted.filter(is_among(places(counted), found))
        features = (Frames if spec.is_frames else Vectors)(store.storage, spec, moving)
        shared += [(features, rows) for rows in _by_place(moving)]
    old, new, since = [SCHEMA.empty_table()], [SCHEMA.empty_table()], time.monotonic()
    for done, (features, rows) in enumerate(shared, start=1):
        old.append(rows)
        new.append(_rewrite(features, rows))
        if time.monotonic() - since > COMMIT_SECONDS:
            _commit(store, job, old, new)
            old, new, since = old[:1], new[:1], time.monotonic()
        on_progress(done, len(shared))
    # If a key is stored twice, no reader uses the second copy, so it is not written again. But its row names the old
    # shard, so the row must leave the catalog too.
    _commit(store, job, old, new, leaving)
    return len(shared)


def _without(rows: pa.Table, keys: Collection[str]) -> pa.Table:
    return rows.filter(pc.invert(is_among(rows["asset"], sorted(keys))))


def _places(store: FeatureStore, name: str, keys: Collection[str]) -> list[str]:
    """The shards and chunks that hold these keys, as `store.rows.places` names them.

    Every data file on storage is read, also those that only older versions name: keys that were dropped before are
    found there until `gc` deletes these files.
    """
    found: set[str] = set()
    paths = [path.removeprefix(f"{CATALOG}/") for path in store.storage.list(data_file_path(partition(name)))]
    for _, rows in store.catalog.data_files.read_each(paths):
        if not isinstance(rows, Damaged):
            is_there = pc.and_(is_stored(rows), is_among(rows["asset"], sorted(keys)))
            found.update(places(rows.filter(is_there)).to_pylist())
    return sorted(found)


def _by_place(rows: pa.Table) -> Iterator[pa.Table]:
    """One table for each shard or chunk, its rows in the order of their offsets."""
    rows = rows.sort_by([(name, "ascending") for name in ("task", "shard", "offset")])
    for _, group in itertools.groupby(enumerate(places(rows).to_pylist()), key=lambda numbered: numbered[1]):
        numbers = [number for number, _ in group]
        yield rows.slice(numbers[0], len(numbers))


def _rewrite(features: Frames | Vectors, rows: pa.Table) -> pa.Table:
    """Write the features of these rows, all from one shard or chunk, into a new one; returns the rows for it."""
    task, shard = rows["task"][0].as_py(), rows["shard"][0].as_py()
    storage, spec = features.storage, features.spec
    keys: list[str] = rows["asset"].to_pylist()
    if isinstance(features, Frames):
        entries = [(key, features.members(key)) for key in keys]
        tar = pack_members(spec, entries, provenance_in(storage.read(shard)))
        path, stored = write_shard(storage, spec, task, tar, keys, is_exact=True)
    else:
        arrays = {key: features[key] for key in keys}
        assets = tuple(Asset(key=key, modality=spec.modality) for key in keys)
        matrix, generation = matrix_in(shard)
        count = shape_of(matrix).chunk_rows
        first_row = rows["offset"][0].as_py() // count * count
        again = Task(id=task, feature_set=spec.fingerprint, assets=assets, matrix=matrix, first_row=first_row)
        path, stored, _ = write_chunk(storage, spec, again, arrays, generation + 1, is_exact=True)
    receipt = Receipt(
        task=task,
        feature_set=spec.fingerprint,
        shard=path,
        stored=stored,
        rejected=(),
        num_bytes=0,
        seconds=0.0,
        num_encoded=0,
    )
    moved = rows_of([receipt], 0, "")
    assert moved["asset"].to_pylist() == keys
    # The new rows keep the old rows' versions. If a key is stored twice, readers use the row with the lowest version,
    # and that must be the same row as before.
    return moved.set_column(moved.schema.get_field_index("version"), SCHEMA.field("version"), rows["version"])


def _commit(
    store: FeatureStore, job: str, old: Sequence[pa.Table], new: Sequence[pa.Table], leaving: Sequence[pa.Table] = ()
) -> None:
    """Commit that the `new` rows replace the `old` ones, and that the `leaving` rows are gone."""
    leaving = [*old, *leaving]
    change = changes.move(store.catalog, pa.concat_tables(old), pa.concat_tables(new), pa.concat_tables(leaving))
    store.catalog.commit(secrets.token_hex(16), "erase", job, change)
