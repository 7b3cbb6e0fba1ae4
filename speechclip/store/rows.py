"""The catalog's rows: what a receipt becomes, which of two rows of one key counts, and the files that hold them."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from speechclip.errors import Damaged
from speechclip.records import Receipt, RejectedAsset, StoredAsset
from speechclip.storage import parse_parquet

SCHEMA = pa.schema(
    [
        pa.field("feature_set", pa.string(), nullable=False),
        pa.field("asset", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # stored | rejected
        pa.field("version", pa.int64(), nullable=False),  # the version of the table that added this row
        pa.field("task", pa.string(), nullable=False),
        pa.field("shard", pa.string()),  # path within the store: a tar, or a Zarr group
        pa.field("offset", pa.int64()),  # first byte of the array in the tar, or row in the group
        pa.field("num_frames", pa.int64()),
        pa.field("sums_offset", pa.int64()),  # first byte of its block checksums beside the shard
        pa.field("checksum", pa.int64()),  # xxh3-64 of those block checksums, or of the row
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("source", pa.string()),  # set where the source, not the bytes, was at fault: then it belongs to
        pa.field("manifest", pa.string()),  # this manifest alone
    ]
)
# Delta keeps the partition's value in the folder's name, not in the file.
_FILE_SCHEMA = SCHEMA.remove(SCHEMA.get_field_index("feature_set"))


def rows_of(receipts: Iterable[Receipt], version: int, manifest: str) -> pa.Table:
    """The rows that these receipts add as that version of the table."""
    rows = []
    for receipt in receipts:
        base = {"feature_set": receipt.feature_set, "task": receipt.task, "version": version}
        rows += [base | _stored_row(entry, receipt.shard) for entry in receipt.stored]
        rows += [base | _rejected_row(entry, manifest) for entry in receipt.rejected]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def entries(rows: pa.Table) -> pa.Table:
    """Of one feature set's rows each (asset, manifest, source) once: the one rule for a key committed twice.

    Stored beats rejected. Of what is stored the oldest stands, so that nothing changes under a reader; of what is
    rejected the newest, which is what the last attempt came to.
    """
    ranked, counts = _ranked(rows)
    return ranked.filter(counts)


def worth_keeping(rows: pa.Table) -> pa.Table:
    """The entries, and what else is stored in their shards and chunks: `drop --erase` must know of these bytes."""
    ranked, counts = _ranked(rows)
    named = pc.drop_null(places(ranked.filter(counts)))
    return ranked.filter(pc.or_(counts, pc.is_in(places(ranked), named.combine_chunks())))


def places(rows: pa.Table) -> Any:
    """Each row's task and shard, which are one shard of frames or one chunk of vectors; null for the rejected."""
    return pc.binary_join_element_wise(rows["task"], rows["shard"], " ")


def _ranked(rows: pa.Table) -> tuple[pa.Table, Any]:
    """The rows, best first within each scope, and where a row is the first of its scope."""
    scope = pc.fill_null(pc.binary_join_element_wise(rows["manifest"], rows["source"], " "), "")
    is_rejected = pc.not_equal(rows["status"], "stored")
    age = pc.if_else(is_rejected, pc.negate(rows["version"]), rows["version"])
    ranked = rows.append_column("scope", scope).append_column("is_rejected", is_rejected).append_column("age", age)
    ranked = ranked.sort_by([(name, "ascending") for name in ("asset", "scope", "is_rejected", "age", "task")])
    is_new = [pc.not_equal(ranked[name][1:], ranked[name][:-1]).combine_chunks() for name in ("asset", "scope")]
    is_first = pa.concat_arrays([pa.array([True] * min(1, len(ranked)), pa.bool_()), pc.or_(*is_new)])
    return ranked.select(SCHEMA.names), is_first


def encode_data_file(rows: pa.Table, generation: int = 0) -> tuple[str, bytes]:
    """The name and the Parquet file of one feature set's rows; the name is the checksum of the bytes.

    Another generation of the same rows has another name.
    """
    buffer = io.BytesIO()
    noted = rows.select(_FILE_SCHEMA.names).replace_schema_metadata({"generation": str(generation)})
    pq.write_table(noted, buffer, compression="zstd")
    return _name_of(buffer.getvalue()), buffer.getvalue()


def check_data_file(path: str, data: bytes) -> None:
    """`Damaged` if the name of the file at `path` denies these bytes."""
    if _name_of(data) != path.rpartition("/")[2]:
        raise Damaged(f"{path}: the catalog's file does not match its checksum")


def decode_data_file(path: str, data: bytes) -> pa.Table:
    """The rows in the file at `path` (`.../feature_set=<fingerprint>/<name>`); `Damaged` if the name denies them."""
    check_data_file(path, data)
    part, feature_set = parse_parquet(data), path.rpartition("/")[0].rpartition("feature_set=")[2]
    names = pa.repeat(pa.scalar(feature_set, pa.string()), len(part))
    return pa.Table.from_arrays([names, *(part[name] for name in _FILE_SCHEMA.names)], schema=SCHEMA)


def by_feature_set(rows: pa.Table) -> dict[str, pa.Table]:
    """The rows of each feature set apart, in the order of their names."""
    names = sorted(rows["feature_set"].unique().to_pylist())
    return {name: rows.filter(pc.equal(rows["feature_set"], name)) for name in names}


def is_stored(rows: pa.Table) -> Any:
    """Where a row says that its asset is stored."""
    return pc.equal(rows["status"], "stored")


def is_among(column: Any, values: Sequence[str]) -> Any:
    """Where a column holds one of these values."""
    return pc.is_in(column, pa.array(values, pa.string()))


def _name_of(data: bytes) -> str:
    return f"part-{xxhash.xxh3_128_hexdigest(data)}.parquet"


def _stored_row(entry: StoredAsset, shard: str) -> dict[str, Any]:
    fields = msgspec.structs.asdict(entry)
    return {"asset": fields.pop("key"), "status": "stored", "shard": shard, **fields}


def _rejected_row(entry: RejectedAsset, manifest: str) -> dict[str, Any]:
    fields = msgspec.structs.asdict(entry)
    scope = manifest if entry.source is not None else None
    return {"asset": fields.pop("key"), "status": "rejected", "manifest": scope, **fields}
