"""The catalog's rows: which rows a receipt adds, and which row counts if a key has several."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from speechclip.records import Receipt, RejectedAsset, StoredAsset

SCHEMA = pa.schema(
    [
        pa.field("feature_set", pa.string(), nullable=False),
        pa.field("asset", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # stored | rejected
        pa.field("version", pa.int64(), nullable=False),  # the version of the catalog that added this row
        pa.field("task", pa.string(), nullable=False),
        pa.field("shard", pa.string()),  # path within the store: a tar, or a Zarr group
        pa.field("offset", pa.int64()),  # first byte of the numbers in the tar, or row in the matrix
        pa.field("num_frames", pa.int64()),
        pa.field("sums_offset", pa.int64()),  # first byte of its block checksums in the checksum file
        pa.field("checksum", pa.int64()),  # xxh3-64 of these block checksums, or of the row in the matrix
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("source", pa.string()),  # only set if the source was at fault, not the bytes
        pa.field("manifest", pa.string()),  # the only manifest for which such a row counts
    ]
)


def rows_of(receipts: Iterable[Receipt], version: int, manifest: str) -> pa.Table:
    """The rows that these receipts add to that version of the catalog."""
    rows = []
    for receipt in receipts:
        base = {"feature_set": receipt.feature_set, "task": receipt.task, "version": version}
        rows += [base | _stored_row(entry, receipt.shard) for entry in receipt.stored]
        rows += [base | _rejected_row(entry, manifest) for entry in receipt.rejected]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def entries(rows: pa.Table) -> pa.Table:
    """The rows that count: of one feature set, one row for each (asset, manifest, source).

    A stored row counts before a rejected one. Among stored rows the oldest counts, so that nothing changes for a
    reader. Among rejected rows the newest counts, because it is the result of the last attempt.
    """
    ranked, counts = _ranked(rows)
    return ranked.filter(counts)


def worth_keeping(rows: pa.Table) -> pa.Table:
    """The rows that count, and all other stored rows of the shards and chunks that these name.

    `drop --erase` needs the others: their bytes lie in files that `gc` does not delete.
    """
    ranked, counts = _ranked(rows)
    named = pc.drop_null(places(ranked.filter(counts)))
    return ranked.filter(pc.or_(counts, pc.is_in(places(ranked), named.combine_chunks())))


def places(rows: pa.Table) -> Any:
    """The task and the shard of each row, as one text. It stands for one shard or one chunk. Null if rejected."""
    return pc.binary_join_element_wise(rows["task"], rows["shard"], " ")


def _ranked(rows: pa.Table) -> tuple[pa.Table, Any]:
    """The rows sorted by (asset, scope) and then by rank, and which of them are the first of their scope."""
    scope = pc.fill_null(pc.binary_join_element_wise(rows["manifest"], rows["source"], " "), "")
    is_rejected = pc.not_equal(rows["status"], "stored")
    age = pc.if_else(is_rejected, pc.negate(rows["version"]), rows["version"])
    ranked = rows.append_column("scope", scope).append_column("is_rejected", is_rejected).append_column("age", age)
    ranked = ranked.sort_by([(name, "ascending") for name in ("asset", "scope", "is_rejected", "age", "task")])
    is_new = [pc.not_equal(ranked[name][1:], ranked[name][:-1]).combine_chunks() for name in ("asset", "scope")]
    is_first = pa.concat_arrays([pa.array([True] * min(1, len(ranked)), pa.bool_()), pc.or_(*is_new)])
    return ranked.select(SCHEMA.names), is_first


def by_feature_set(rows: pa.Table) -> dict[str, pa.Table]:
    """The rows of each feature set, in the order of the fingerprints."""
    names = sorted(rows["feature_set"].unique().to_pylist())
    return {name: rows.filter(pc.equal(rows["feature_set"], name)) for name in names}


def is_stored(rows: pa.Table) -> Any:
    """True for each row that says that its asset is stored."""
    return pc.equal(rows["status"], "stored")


def is_among(column: Any, values: Sequence[str]) -> Any:
    """True for each place of the column that holds one of these values."""
    return pc.is_in(column, pa.array(values, pa.string()))


def _stored_row(entry: StoredAsset, shard: str) -> dict[str, Any]:
    fields = msgspec.structs.asdict(entry)
    return {"asset": fields.pop("key"), "status": "stored", "shard": shard, **fields}


def _rejected_row(entry: RejectedAsset, manifest: str) -> dict[str, Any]:
    fields = msgspec.structs.asdict(entry)
    scope = manifest if entry.source is not None else None
    return {"asset": fields.pop("key"), "status": "rejected", "manifest": scope, **fields}
