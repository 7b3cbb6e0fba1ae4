"""Put features that were encoded again in the place of lost ones."""

from collections.abc import Sequence

import msgspec
import pyarrow.compute as pc

from speechclip.records import Receipt
from speechclip.store.feature_store import FeatureStore
from speechclip.store.frames import Frames
from speechclip.store.matrices import chunk_at
from speechclip.store.rows import by_feature_set, is_among, is_stored, rows_of
from speechclip.store.snapshot import Snapshot
from speechclip.store.vectors import Vectors
from speechclip.upkeep.catalog_rows import RowsByFile
from speechclip.upkeep.findings import Finding
from speechclip.upkeep.repair_features import repair_feature_file


def replace_lost(
    store: FeatureStore, lost: Sequence[Finding], rows: RowsByFile, receipts: Sequence[Receipt], job: str
) -> list[Finding]:
    """Replace lost features by those in the receipts; returns the findings that remain, with the keys still lost.

    A new feature that is equal to the lost one goes into the damaged file, so it is whole in every version. Another
    kind of hardware may give a slightly different feature. Such a feature is committed, so it replaces the lost one in
    the newest version alone: a commit can't change older versions.
    """
    encoded = _features(store, receipts)
    remaining = [
        finding.without(repair_feature_file(store, finding, rows, encoded.get(finding.feature_set))) for finding in lost
    ]
    newest = store.snapshot()
    moved: dict[str, set[str]] = {}
    for name, features in encoded.items():
        of_set = [finding for finding in remaining if finding.feature_set == name]
        moved[name] = {key for finding in of_set for key in keys_in_file(newest, finding) if key in features}
    if any(moved.values()):
        store.commit([_only(receipt, moved) for receipt in receipts], "", job=job, damaged=moved)
        tagged = [store.snapshot(tag.version) for tag in store.tags.readable(newest.version)]
        remaining = [
            finding.without(
                moved.get(finding.feature_set, set()).difference(*(keys_in_file(t, finding) for t in tagged))
            )
            for finding in remaining
        ]
    return [finding for finding in remaining if finding.keys]


def keys_in_file(snapshot: Snapshot, finding: Finding) -> set[str]:
    """The keys of a finding whose features this snapshot reads from the damaged file."""
    place = finding.path if finding.path.endswith(".tar") else chunk_at(finding.path)[0]
    rows = snapshot.stored(finding.feature_set)
    is_there = pc.and_(pc.equal(rows["shard"], place), is_among(rows["asset"], finding.keys))
    return set(rows.filter(is_there)["asset"].to_pylist())


def _features(store: FeatureStore, receipts: Sequence[Receipt]) -> dict[str, Frames | Vectors]:
    """The features that the receipts' tasks have stored, by feature set, although no version names them yet."""
    rows = rows_of(receipts, 0, "")
    found: dict[str, Frames | Vectors] = {}
    for name, stored in by_feature_set(rows.filter(is_stored(rows))).items():
        spec = store.read_spec(name).spec
        found[name] = (Frames if spec.is_frames else Vectors)(store.storage, spec, stored)
    return found


def _only(receipt: Receipt, keys: dict[str, set[str]]) -> Receipt:
    """The receipt with these keys alone, and without rejections."""
    stored = tuple(entry for entry in receipt.stored if entry.key in keys[receipt.feature_set])
    return msgspec.structs.replace(receipt, stored=stored, rejected=())
