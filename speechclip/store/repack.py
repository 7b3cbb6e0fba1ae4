"""repack: write what stays of a shared shard anew, so that `gc` can free every byte of what is about to be dropped.

A speaker's features lie in shards beside those of others. A `drop` alone makes them unnamed, but a file that still
holds something named is never freed.
"""

from collections.abc import Callable, Collection, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from speechclip.records import Asset, Receipt, Task
from speechclip.store.feature_store import FeatureStore, Snapshot
from speechclip.store.frames import pack_shard, provenance_in, write_shard
from speechclip.store.rows import is_among
from speechclip.store.segments import segment_in, shape_of
from speechclip.store.vectors import write_chunk

# Receipts of one commit.
GROUP = 16


def repack(
    store: FeatureStore,
    doomed: Mapping[str, Collection[str]],
    *,
    run: str = "",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Move what is not doomed out of every shard and chunk that it shares with doomed keys; how many were rewritten.

    The features are read verified and come out bit by bit the same; killed midway, the next call goes on.
    """
    snapshot = store.snapshot()
    shared = [
        (name, task, rows)
        for name, keys in doomed.items()
        for task, rows in _survivors(snapshot.stored(name), keys).items()
    ]
    receipts: list[Receipt] = []
    for done, (name, task, rows) in enumerate(shared, start=1):
        receipts.append(_rewrite(store, snapshot, name, task, rows))
        if len(receipts) == GROUP or done == len(shared):
            moved = {name: {e.key for r in receipts if r.feature_set == name for e in r.stored} for name in doomed}
            store.commit(receipts, "", run=run, damaged=moved)
            receipts = []
        on_progress(done, len(shared))
    return len(shared)


def _survivors(stored: pa.Table, doomed: Collection[str]) -> dict[tuple[str, str], pa.Table]:
    """By (task, shard), the rows that stay where others of the same shard go."""
    is_doomed = is_among(stored["asset"], sorted(doomed))
    shards = stored.filter(is_doomed)["shard"].unique().to_pylist()
    mixed = stored.filter(pc.and_(pc.invert(is_doomed), is_among(stored["shard"], shards)))
    places = mixed.group_by(["task", "shard"]).aggregate([]).to_pylist()
    return {
        (place["task"], place["shard"]): mixed.filter(
            pc.and_(pc.equal(mixed["task"], place["task"]), pc.equal(mixed["shard"], place["shard"]))
        ).sort_by("offset")
        for place in places
    }


def _rewrite(store: FeatureStore, snapshot: Snapshot, name: str, place: tuple[str, str], rows: pa.Table) -> Receipt:
    task, shard = place
    kept = snapshot.feature_set(name)
    features = {key: kept[key] for key in rows["asset"].to_pylist()}
    if kept.spec.is_frames:
        tar = pack_shard(kept.spec, features.items(), provenance_in(store.storage.read(shard)))
        path, stored = write_shard(store.storage, kept.spec, task, tar, list(features), is_exact=True)
        num_bytes = len(tar)
    else:
        assets = tuple(Asset(key=key, modality=kept.spec.modality) for key in features)
        segment, generation = segment_in(shard)
        count = shape_of(segment).chunk_rows
        first_row = rows["offset"][0].as_py() // count * count
        again = Task(id=task, feature_set=name, assets=assets, segment=segment, first_row=first_row)
        path, stored, num_bytes = write_chunk(store.storage, kept.spec, again, features, generation + 1, is_exact=True)
    return Receipt(
        task=task,
        feature_set=name,
        shard=path,
        stored=stored,
        rejected=(),
        num_bytes=num_bytes,
        seconds=0.0,
        num_encoded=0,
    )
