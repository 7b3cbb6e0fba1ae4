"""The changes that a commit can make: add or replace receipts, drop assets, move features, compact data files.

Each function here returns a `MakeChange`. The catalog calls it with the version that the commit starts from, and again
with a newer one whenever the commit loses a race. Work that the newer version does not touch is done only once.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from speechclip.errors import Damaged
from speechclip.records import Receipt
from speechclip.store.catalog import Catalog, Change, MakeChange, NewFile
from speechclip.store.journal import FeatureSetChange
from speechclip.store.rows import SCHEMA, by_feature_set, is_among, is_stored, places, rows_of, worth_keeping
from speechclip.store.versions import Version

# Keys by feature set.
Keys = Mapping[str, Collection[str]]


class _FilteredFile(NamedTuple):
    """One data file, the rows to take out of it, and the file of its other rows."""

    path: str
    taken: pa.Table
    rest: NewFile


class _Filter:
    """Takes rows out of a feature set. Data files without such rows stay as they are.

    Each data file is read and filtered once, even if the commit loses several races.
    """

    def __init__(self, catalog: Catalog, is_taken: Callable[[str, pa.Table], Any]) -> None:
        self._catalog, self._is_taken = catalog, is_taken
        self._filtered: dict[str, _FilteredFile] = {}

    def taken(self, before: Version, name: str) -> pa.Table:
        """The rows that are taken out of a feature set."""
        return pa.concat_tables([SCHEMA.empty_table(), *(file.taken for file in self._files(before, name))])

    def apply(self, change: Change, before: Version, name: str) -> None:
        """Replace, in this change, each data file that holds such rows by one without them."""
        for path, taken, rest in self._files(before, name):
            if len(taken):
                change.removed.append(path)
                change.added += [rest] if len(rest.rows) else []

    def _files(self, before: Version, name: str) -> list[_FilteredFile]:
        paths = before.paths(name)
        new = self._catalog.data_files.rows([path for path in paths if path not in self._filtered])
        # Look at the rows of all files together. To look for a million keys takes as long in one file as in all.
        is_taken = self._is_taken(name, pa.concat_tables([SCHEMA.empty_table(), *new.values()]))
        start = 0
        for path, rows in new.items():
            own, start = is_taken.slice(start, len(rows)), start + len(rows)
            self._filtered[path] = _FilteredFile(path, rows.filter(own), NewFile(name, rows.filter(pc.invert(own))))
        return [self._filtered[path] for path in paths]


def replace(catalog: Catalog, receipts: Sequence[Receipt], manifest: str, damaged: Keys) -> MakeChange:
    """Add the rows of the receipts.

    If a receipt stores a key that `damaged` names for its feature set, the new row replaces the old one. A damaged key
    that was dropped meanwhile stays dropped.
    """
    old_rows = _Filter(catalog, lambda name, rows: is_among(rows["asset"], sorted(damaged[name])))

    def make(before: Version) -> Change:
        change = Change(changes=_summaries(receipts))
        for name, new in by_feature_set(rows_of(receipts, before.number + 1, manifest)).items():
            if damaged.get(name):
                old = old_rows.taken(before, name)
                dropped = set(damaged[name]) - set(old["asset"].to_pylist())
                new = new.filter(pc.invert(is_among(new["asset"], sorted(dropped))))
                if not len(new):
                    continue
                old_rows.apply(change, before, name)
                is_replaced = is_among(old["asset"], new.filter(is_stored(new))["asset"].to_pylist())
                new = pa.concat_tables([old.filter(pc.invert(is_replaced)), new])
            change.added.append(NewFile(name, new))
        return change

    return make


def drop(catalog: Catalog, keys: Mapping[str, Collection[str] | None]) -> MakeChange:
    """Remove all rows of these keys, by feature set. None instead of keys means the whole feature set."""

    def is_dropped(name: str, rows: pa.Table) -> Any:
        of_set = keys[name]
        return pc.is_valid(rows["asset"]) if of_set is None else is_among(rows["asset"], sorted(of_set))

    dropped = _Filter(catalog, is_dropped)

    def make(before: Version) -> Change:
        change = Change()
        for name in sorted(keys.keys() & set(before.feature_sets())):
            num_removed = len(dropped.taken(before, name))
            if num_removed:
                dropped.apply(change, before, name)
                change.changes.append(FeatureSetChange(feature_set=name, removed=num_removed))
        return change

    return make


def move(catalog: Catalog, old: pa.Table, new: pa.Table, removed: pa.Table) -> MakeChange:
    """Remove the rows in `removed`, and add the new place of each moved feature.

    `old` and `new` have one row for each moved feature, in the same order: where it lay and where it lies now.
    `removed` holds the rows of `old` and possibly more. A row of `new` is added only if its `old` row is still in the
    catalog. So a feature that was dropped meanwhile does not come back.
    """
    removal = _Filter(catalog, lambda _, rows: pc.is_in(_ids(rows), _ids(removed).combine_chunks()))
    new_files: dict[str, NewFile] = {}

    def make(before: Version) -> Change:
        change = Change()
        for name in sorted(set(removed["feature_set"].unique().to_pylist()) & set(before.feature_sets())):
            taken = removal.taken(before, name)
            if not len(taken):
                continue
            removal.apply(change, before, name)
            is_moved = pc.is_in(_ids(old), _ids(taken).combine_chunks())
            rows = new.filter(pc.and_(is_moved, pc.equal(new["feature_set"], name)))
            if name not in new_files or not new_files[name].rows.equals(rows):
                new_files[name] = NewFile(name, rows)
            change.added += [new_files[name]] if len(rows) else []
            change.changes.append(FeatureSetChange(feature_set=name, stored=len(rows), removed=len(taken)))
        return change

    return make


class _Compaction(NamedTuple):
    """The data files of a feature set that become one, that one, and the summary for the log."""

    paths: list[str]
    file: NewFile
    summary: FeatureSetChange


def compact(catalog: Catalog, min_files: int) -> MakeChange:
    """Put the rows of each feature set with `min_files` or more data files into one file.

    Rows that no reader needs are left out. After a lost race the same data files are put together, and files that were
    added meanwhile stay beside them, so that the work is done once.
    """
    chosen: dict[str, _Compaction] = {}

    def make(before: Version) -> Change:
        change = Change()
        for name in before.feature_sets():
            paths = before.paths(name)
            if name in chosen and not set(chosen[name].paths) <= set(paths):
                del chosen[name]
            if name not in chosen and len(paths) >= max(2, min_files):
                chosen[name] = _compaction(catalog, name, paths)
            if name in chosen:
                change.removed += chosen[name].paths
                change.added.append(chosen[name].file)
                change.changes.append(chosen[name].summary)
        return change

    return make


def _compaction(catalog: Catalog, name: str, paths: list[str]) -> _Compaction:
    rows = pa.concat_tables(catalog.data_files.rows(paths).values())
    needed = worth_keeping(rows)
    summary = FeatureSetChange(feature_set=name, removed=len(rows) - len(needed))
    return _Compaction(paths, NewFile(name, needed), summary)


def forget_unreadable(catalog: Catalog) -> MakeChange:
    """Remove all data files that can't be read. The assets that only they named count as missing from then on."""

    def make(before: Version) -> Change:
        change, num_rows = Change(), before.num_rows()
        for name in before.feature_sets():
            read = catalog.data_files.read(before.paths(name))
            lost = [path for path, rows in read.items() if isinstance(rows, Damaged)]
            if lost:
                change.removed += lost
                num_lost = sum(num_rows[path] for path in lost)
                change.changes.append(FeatureSetChange(feature_set=name, removed=num_lost))
        return change

    return make


def _ids(rows: pa.Table) -> Any:
    """The identity of each stored row: its key and its place, because one key may be stored in two shards."""
    return pc.binary_join_element_wise(rows["asset"], places(rows), " ")


def _summaries(receipts: Sequence[Receipt]) -> list[FeatureSetChange]:
    """What the receipts add to each feature set, for the log."""
    found: dict[str, FeatureSetChange] = {}
    for receipt in receipts:
        before = found.get(receipt.feature_set, FeatureSetChange(feature_set=receipt.feature_set))
        found[receipt.feature_set] = FeatureSetChange(
            feature_set=receipt.feature_set,
            stored=before.stored + len(receipt.stored),
            rejected=before.rejected + len(receipt.rejected),
            encoded=before.encoded + receipt.num_encoded,
            seconds=before.seconds + receipt.seconds,
            bytes=before.bytes + receipt.num_bytes,
        )
    return list(found.values())
