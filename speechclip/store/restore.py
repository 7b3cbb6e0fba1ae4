"""restore: a damaged shard or chunk put back in its place, where the catalog's checksums prove it to be what it was.

So every version that names it is whole again, tagged ones too, and the catalog need not change. All that is whole of the
old file is kept, also what no version names any more.
"""

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from speechclip.errors import Damaged
from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store.catalog import Catalog
from speechclip.store.checksums import digest_of, sums_of
from speechclip.store.feature_store import FeatureStore
from speechclip.store.features import Features
from speechclip.store.findings import Finding
from speechclip.store.frames import Frames, describe_shard, pack_shard, provenance_in
from speechclip.store.layout import sums_path
from speechclip.store.rows import is_stored
from speechclip.store.segments import chunk_path, shape_of
from speechclip.store.vectors import Vectors, encode_chunk

_PLACE = ("asset", "offset", "num_frames", "sums_offset", "checksum")
# What the catalog says of one feature in a shard or chunk.
Row = dict[str, Any]


def restore(store: FeatureStore, finding: Finding, anew: Features | None = None) -> set[str]:
    """Put a damaged file back, with the features in `anew` for its lost ones; the keys that are whole again.

    Nothing changes where these come out otherwise than the catalog says, as on another kind of hardware.
    """
    spec = store.read_spec(finding.feature_set).spec
    rows = rows_at(store.catalog, finding.path)
    if isinstance(anew, Vectors):
        return _restore_chunk(store.storage, spec, finding, rows, anew)
    return _restore_shard(store.storage, spec, finding, rows, anew)


def rows_at(catalog: Catalog, path: str) -> list[Row]:
    """What any version, live or not, says of the shard or segment at `path`, in the order of the places in it."""
    added = {part for entry in catalog.history(int(catalog.open().version())) for part in entry.added}
    parts = [part for part in catalog.read_parts(sorted(added)).values() if not isinstance(part, Damaged)]
    rows = pa.concat_tables(parts)
    rows = rows.filter(pc.and_(is_stored(rows), pc.fill_null(pc.equal(rows["shard"], path), False)))
    found: list[Row] = rows.group_by(list(_PLACE)).aggregate([]).sort_by("offset").to_pylist()
    return found


def is_intact(tar: bytes, spec: EncoderSpec, row: Row) -> bool:
    """Whether the array of a row lies in the tar as its checksum says."""
    array = _array_at(tar, spec, row)
    return array is not None and _checksum(array) == row["checksum"]


def _restore_shard(
    storage: Storage, spec: EncoderSpec, finding: Finding, rows: list[Row], anew: Frames | None
) -> set[str]:
    old = _read(storage, finding.path)
    features = {}
    for row in rows:
        key, array = row["asset"], _array_at(old, spec, row)
        if anew is not None and key in anew and key in finding.keys:
            array = anew[key]
        # What is lost, and named by no live version, keeps its place: the others' offsets depend on it.
        features[key] = _zeros(spec, row) if array is None else array
    provenance = provenance_in(old) or (provenance_in(storage.read(anew.shards[0])) if anew is not None else {})
    tar = pack_shard(spec, features.items(), provenance or {})
    sums, stored = describe_shard(tar, spec)
    made = {(entry.key, *msgspec.structs.astuple(entry)[1:]) for entry in stored}
    ...
