"""Repair a damaged shard or chunk in its place.

The repaired file has the same path, and its features have the same offsets and checksums as before. So every version
that names the file is whole again, tagged ones too, and the catalog need not change. The checksums in the catalog prove
that the features are the old ones. Whole features stay in the file, even those that no version names any more.
"""

from speechclip.store.feature_store import FeatureStore
from speechclip.store.frames import Frames
from speechclip.store.shards import describe_shard
from speechclip.store.vectors import Vectors
from speechclip.upkeep.catalog_rows import RowsByFile, place_of
from speechclip.upkeep.findings import Finding
from speechclip.upkeep.repair_chunks import repair_chunk, repair_keys
from speechclip.upkeep.repair_shards import keep_unproved_checksums, repair_shard


def repair_feature_file(
    store: FeatureStore, finding: Finding, rows: RowsByFile, encoded: Frames | Vectors | None = None
) -> set[str]:
    """Repair a shard, a chunk or its keys; returns the keys of the assets that are whole in the file now.

    `encoded` holds features that were encoded again and take the place of the lost ones. They may differ from what the
    catalog says, for example if they come from another kind of hardware. If no lost feature can be repaired, the file
    stays as it is and the result is empty.
    """
    storage, spec, of_file = store.storage, store.read_spec(finding.feature_set).spec, rows[finding.path]
    match finding.kind:
        case "keys":
            return repair_keys(storage, spec, finding, of_file)
        case "chunk":
            assert not isinstance(encoded, Frames)
            return repair_chunk(storage, spec, finding, of_file, encoded)
        case _:
            assert not isinstance(encoded, Vectors)
            return repair_shard(storage, spec, finding, of_file, encoded)


def repair_checksums(store: FeatureStore, finding: Finding, rows: RowsByFile) -> None:
    """Make the file with checksums beside a shard again, from the shard."""
    shard, spec = place_of(finding.path)[0], store.read_spec(finding.feature_set).spec
    sums, stored = describe_shard(store.storage.read(shard), spec)
    before = store.storage.read_or_empty(finding.path)
    store.storage.replace(finding.path, keep_unproved_checksums(sums, stored, rows[finding.path], before))
