"""The changes that a commit can make to the catalog: receipts added or replaced, assets dropped, files put together."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from speechclip.errors import Damaged
from speechclip.records import Receipt
from speechclip.store.catalog import Catalog, Change, NewFile, feature_sets, num_rows_of, paths_of
from speechclip.store.journal import FeatureSetChange
from speechclip.store.rows import SCHEMA, by_feature_set, is_among, is_stored, places, rows_of, worth_keeping

# Keys by feature set.
Keys = Mapping[str, Collection[str]]


class _Cut:
    """Takes rows out of a feature set's files: those with such rows are replaced, all others stay as they are.

    Each file is read and filtered once, however often a commit loses its race.
    """

    def __init__(self, catalog: Catalog, is_doomed: Callable[[str, pa.Table], Any]) -> None:
        self._catalog, self._is_doomed = catalog, is_doomed
        self._seen: dict[str, tuple[pa.Table, NewFile]] = {}

    def gone(self, table: DeltaTable, name: str) -> pa.Table:
        """The rows that this takes out of a feature set."""
        return pa.concat_tables([SCHEMA.empty_table(), *(gone for _, gone, _ in self._files(table, name))])

    def make(self, made: Change, table: DeltaTable, name: str) -> None:
        """Add to the change that they are gone."""
        for path, gone, rest in self._files(table, name):
            if len(gone):
                made.removed.append(path)
                made.added += [rest] if len(rest.rows) else []

    def _files(self, table: DeltaTable, name: str) -> list[tuple[str, pa.Table, NewFile]]:
        paths = paths_of(table, name)
        found = self._catalog.rows_in([path for path in paths if path not in self._seen])
        # All at once: to look for a million keys in one file takes as long as in all.
        is_doomed = self._is_doomed(name, pa.concat_tables([SCHEMA.empty_table(), *found.values()]))
        start = 0
        for path, rows in found.items():
            goes, start = is_doomed.slice(start, len(rows)), start + len(rows)
            self._seen[path] = rows.filter(goes), NewFile(name, rows.filter(pc.invert(goes)))
        return [(path, *self._seen[path]) for path in paths]


def replace(
    catalog: Catalog, receipts: Sequence[Receipt], manifest: str, damaged: Keys
) -> Callable[[DeltaTable, int], Change]:
    """The receipts' rows, in place of those of the `damaged` keys that they store anew; all else stays beside them."""
    cut = _Cut(catalog, lambda name, rows: is_among(rows["asset"], sorted(damaged[name])))

    def change(table: DeltaTable, version: int) -> Change:
        made = Change(changes=_changes(receipts))
        for name, new in by_feature_set(rows_of(receipts, version, manifest)).items():
            if damaged.get(name):
                old = cut.gone(table, name)
                # What was dropped meanwhile stays so.
                dropped = set(damaged[name]) - set(old["asset"].to_pylist())
                new = new.filter(pc.invert(is_among(new["asset"], sorted(dropped))))
                if not len(new):
                    continue
                cut.make(made, table, name)
                is_anew = is_among(old["asset"], new.filter(is_stored(new))["asset"].to_pylist())
                new = pa.concat_tables([old.filter(pc.invert(is_anew)), new])
            made.added.append(NewFile(name, new))
        return made

    return change


def drop(catalog: Catalog, doomed: Mapping[str, Collection[str] | None]) -> Callable[[DeltaTable, int], Change]:
    """No row of these keys any more, by feature set; None stands for all of a set."""

    def is_doomed(name: str, rows: pa.Table) -> Any:
        keys = doomed[name]
        return pc.is_valid(rows["asset"]) if keys is None else is_among(rows["asset"], sorted(keys))

    cut = _Cut(catalog, is_doomed)

    def change(table: DeltaTable, _version: int) -> Change:
        made = Change()
        for name in sorted(doomed.keys() & set(feature_sets(table))):
            num_removed = len(cut.gone(table, name))
            if num_removed:
                cut.make(made, table, name)
                made.changes.append(FeatureSetChange(feature_set=name, removed=num_removed))
        return made

    return change


def move(catalog: Catalog, old: pa.Table, new: pa.Table, left: pa.Table) -> Callable[[DeltaTable, int], Change]:
    """None of the rows in `left`; in place of each in `old` that was there still the one beside it in `new`."""
    cut = _Cut(catalog, lambda _, rows: pc.is_in(_ids(rows), _ids(left).combine_chunks()))
    made_of: dict[str, NewFile] = {}

    def change(table: DeltaTable, _version: int) -> Change:
        made = Change()
        for name in sorted(set(left["feature_set"].unique().to_pylist()) & set(feature_sets(table))):
            gone = cut.gone(table, name)
            if not len(gone):
                continue
            cut.make(made, table, name)
            was_there = pc.is_in(_ids(old), _ids(gone).combine_chunks())
            rows = new.filter(pc.and_(was_there, pc.equal(new["feature_set"], name)))
            if name not in made_of or not made_of[name].rows.equals(rows):
                made_of[name] = NewFile(name, rows)
            made.added += [made_of[name]] if len(rows) else []
            made.changes.append(FeatureSetChange(feature_set=name, stored=len(rows), removed=len(gone)))
        return made

    return change


def compact(catalog: Catalog, min_files: int) -> Callable[[DeltaTable, int], Change]:
    """One file for each feature set of `min_files` or more, of the rows that are worth keeping.

    After a lost race the same files are put together, so that this is done once; what came meanwhile waits.
    """
    chosen: dict[str, tuple[list[str], NewFile, FeatureSetChange]] = {}

    def change(table: DeltaTable, _version: int) -> Change:
        made = Change()
        for name in feature_sets(table):
            paths = paths_of(table, name)
            if name in chosen and not set(chosen[name][0]) <= set(paths):
                del chosen[name]
            if name not in chosen and len(paths) >= max(2, min_files):
                rows = pa.concat_tables(catalog.rows_in(paths).values())
                kept = worth_keeping(rows)
                chosen[name] = (
                    paths,
                    NewFile(name, kept),
                    FeatureSetChange(feature_set=name, removed=len(rows) - len(kept)),
                )
            if name in chosen:
                removed, file, part = chosen[name]
                made.removed += removed
                made.added.append(file)
                made.changes.append(part)
        return made

    return change


def forget_unreadable(catalog: Catalog) -> Callable[[DeltaTable, int], Change]:
    """No file that can't be read any more: what only it named is missing again, and the next run finds or makes it."""

    def change(table: DeltaTable, _version: int) -> Change:
        made, num_rows = Change(), num_rows_of(table)
        for name in feature_sets(table):
            parts = catalog.read_data_files(paths_of(table, name))
            lost = [path for path, part in parts.items() if isinstance(part, Damaged)]
            if lost:
                made.removed += lost
                made.changes.append(FeatureSetChange(feature_set=name, removed=sum(num_rows[path] for path in lost)))
        return made

    return change


def _ids(rows: pa.Table) -> Any:
    """What tells stored rows apart: one key in two shards is two rows."""
    return pc.binary_join_element_wise(rows["asset"], places(rows), " ")


def _changes(receipts: Sequence[Receipt]) -> list[FeatureSetChange]:
    """What the commit's own log entry says of it, per feature set."""
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
