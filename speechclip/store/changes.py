"""The changes that a commit can make to the catalog: receipts added or replaced, assets dropped, files put together."""

from collections.abc import Callable, Collection, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from speechclip.errors import Damaged
from speechclip.records import Receipt
from speechclip.store.catalog import Catalog, Change, feature_sets, paths_of
from speechclip.store.journal import Part
from speechclip.store.rows import by_feature_set, entries, is_among, is_stored, rows_of

# Keys by feature set.
Keys = Mapping[str, Collection[str]]


def replace(
    catalog: Catalog, receipts: Sequence[Receipt], manifest: str, damaged: Keys
) -> Callable[[DeltaTable, int], Change]:
    """The receipts' rows, in place of those of the `damaged` keys that they store anew; all else stays beside them."""

    def change(table: DeltaTable, version: int) -> Change:
        made = Change(by_feature_set(rows_of(receipts, version, manifest)), [], _parts(receipts))
        for name in sorted(made.added.keys() & damaged.keys()):
            new, rows = made.added[name], catalog.rows(table, name)
            # What was dropped meanwhile stays so.
            dropped = set(damaged[name]) - set(rows["asset"].to_pylist())
            new = new.filter(pc.invert(is_among(new["asset"], sorted(dropped))))
            if not len(new):
                del made.added[name]
                continue
            is_anew = is_among(rows["asset"], new.filter(is_stored(new))["asset"].to_pylist())
            is_doomed = pc.and_(is_anew, is_among(rows["asset"], sorted(damaged[name])))
            made.added[name] = pa.concat_tables([rows.filter(pc.invert(is_doomed)), new])
            made.removed += paths_of(table, name)
        return made

    return change


def drop(catalog: Catalog, doomed: Mapping[str, Collection[str] | None]) -> Callable[[DeltaTable, int], Change]:
    """No row of these keys any more, by feature set; None stands for all of a set."""

    def change(table: DeltaTable, _version: int) -> Change:
        made = Change()
        for name in sorted(doomed.keys() & set(feature_sets(table))):
            keys, rows = doomed[name], catalog.rows(table, name)
            kept = rows.slice(0, 0) if keys is None else rows.filter(pc.invert(is_among(rows["asset"], sorted(keys))))
            if len(kept) < len(rows):
                _rewrite(made, table, name, rows, kept)
        return made

    return change


def compact(catalog: Catalog, min_files: int) -> Callable[[DeltaTable, int], Change]:
    """One file for each feature set of `min_files` or more, without the rows that no reader picks."""

    def change(table: DeltaTable, _version: int) -> Change:
        made = Change()
        for name in feature_sets(table):
            if len(paths_of(table, name)) >= max(2, min_files):
                rows = catalog.rows(table, name)
                _rewrite(made, table, name, rows, entries(rows))
        return made

    return change


def forget_unreadable(catalog: Catalog) -> Callable[[DeltaTable, int], Change]:
    """No file that can't be read any more: what only it named is missing again, and the next run finds or makes it."""

    def change(table: DeltaTable, _version: int) -> Change:
        paths = paths_of(table)
        return Change({}, [path for path, part in catalog.read_parts(paths).items() if isinstance(part, Damaged)])

    return change


def _rewrite(made: Change, table: DeltaTable, name: str, rows: pa.Table, kept: pa.Table) -> None:
    made.removed += paths_of(table, name)
    made.added |= {name: kept} if len(kept) else {}
    made.parts.append(Part(feature_set=name, removed=len(rows) - len(kept)))


def _parts(receipts: Sequence[Receipt]) -> list[Part]:
    """What the commit's own log entry says of it, per feature set."""
    found: dict[str, Part] = {}
    for receipt in receipts:
        before = found.get(receipt.feature_set, Part(feature_set=receipt.feature_set))
        found[receipt.feature_set] = Part(
            feature_set=receipt.feature_set,
            stored=before.stored + len(receipt.stored),
            rejected=before.rejected + len(receipt.rejected),
            encoded=before.encoded + receipt.num_encoded,
            seconds=before.seconds + receipt.seconds,
            bytes=before.bytes + receipt.num_bytes,
        )
    return list(found.values())
