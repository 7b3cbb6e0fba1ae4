"""replacement: features that were encoded anew take the place of lost ones, in every version if they are the same."""

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
from speechclip.upkeep.findings import Finding
from speechclip.upkeep.restore import Rows, restore


def replace_lost(
    store: FeatureStore, lost: Sequence[Finding], rows: Rows, receipts: Sequence[Receipt], job: str
) -> list[Finding]:
    """Put the receipts' features where they were lost; the findings that remain, with the keys that do.

    What came out otherwise than the catalog says, as on other hardware, takes the old one's place in the newest version
    alone: a commit can change no other.
    """
    anew = _features(store, receipts)
    left = [finding.without(restore(store, finding, rows, anew.get(finding.feature_set))) for finding in lost]
    head = store.snapshot()
    moved: dict[str, set[str]] = {}
    for name, features in anew.items():
        of_set = [finding for finding in left if finding.feature_set == name]
        moved[name] = {key for finding in of_set for key in named_keys(head, finding) if key in features}
    if any(moved.values()):
        store.commit([_only(receipt, moved) for receipt in receipts], "", job=job, damaged=moved)
        tagged = [store.snapshot(tag.version) for tag in store.tags.readable(head.version)]
        left = [
            finding.without(moved.get(finding.feature_set, set()).difference(*(named_keys(t, finding) for t in tagged)))
            for finding in left
        ]
    return [finding for finding in left if finding.keys]


def named_keys(snapshot: Snapshot, finding: Finding) -> set[str]:
    """Which keys of a finding this snapshot looks for in the damaged file."""
    place = finding.path if finding.path.endswith(".tar") else chunk_at(finding.path)[0]
    rows = snapshot.stored(finding.feature_set)
    is_there = pc.and_(pc.equal(rows["shard"], place), is_among(rows["asset"], finding.keys))
    return set(rows.filter(is_there)["asset"].to_pylist())


def _features(store: FeatureStore, receipts: Sequence[Receipt]) -> dict[str, Frames | Vectors]:
    """What these receipts say is stored, to be read, by feature set."""
    rows = rows_of(receipts, 0, "")
    found: dict[str, Frames | Vectors] = {}
    for name, stored in by_feature_set(rows.filter(is_stored(rows))).items():
        spec = store.read_spec(name).spec
        found[name] = (Frames if spec.is_frames else Vectors)(store.storage, spec, stored)
    return found


def _only(receipt: Receipt, keys: dict[str, set[str]]) -> Receipt:
    stored = tuple(entry for entry in receipt.stored if entry.key in keys[receipt.feature_set])
    return msgspec.structs.replace(receipt, stored=stored, rejected=())
