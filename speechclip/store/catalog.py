"""The catalog: a Delta Lake table with one row per (feature set, asset), stored or rejected, and where it lies.

Every commit names the exact version that it makes in each of its rows and carries its digest as a Delta transaction id.
So a commit whose answer was lost is recognised, and where two runs commit one key, every reader picks the same row:
stored beats rejected, then the lowest version.
"""

import hashlib
import logging
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from speechclip.errors import NotStored, StoreError
from speechclip.records import Receipt, RejectedAsset, StoredAsset, to_json
from speechclip.storage import Storage, parse_parquet
from speechclip.store.layout import CATALOG

logger = logging.getLogger(__name__)

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
# The log is the history that pinned versions and tags rely on: nothing cleans it up behind our back.
CONFIGURATION: dict[str, str | None] = {
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.enableExpiredLogCleanup": "false",
    "delta.checkpointInterval": "50",
}
MAX_ATTEMPTS = 100
READ_THREADS = 16


class Catalog:
    """The Delta table of a store; every method opens it anew, so it always sees the newest version."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def create(self) -> None:
        """Make the empty table, unless it is there."""
        DeltaTable.create(
            self.storage.address(CATALOG),
            schema=SCHEMA,
            mode="ignore",
            partition_by=["feature_set"],
            configuration=CONFIGURATION,
            storage_options=self.storage.delta_options,
        )

    def open(self, version: int | None = None) -> DeltaTable:
        """The table as it stood at that version; `NotStored` if there is none."""
        address = self.storage.address(CATALOG)
        try:
            return DeltaTable(address, version=version, storage_options=self.storage.delta_options)
        except TableNotFoundError:
            raise NotStored(f"{self.storage.root}: no feature store here; make one by `speechclip featurize`") from None
        except (DeltaError, OverflowError) as error:
            raise NotStored(f"{self.storage.root}: catalog version {version} can't be read ({error})") from None

    def commit(self, receipts: Sequence[Receipt], manifest: str) -> int:
        """Add the receipts in one atomic version, exactly once however often it is called; the version.

        Waits and takes the next version when another writer was first. `StoreError` after a hundred lost races.
        """
        digest = hashlib.sha256(b"".join(sorted(to_json(receipt) for receipt in receipts))).hexdigest()
        for attempt in range(MAX_ATTEMPTS):
            table = self.open()
            if table.transaction_version(digest) is not None:
                return table.version()
            version = table.version() + 1
            properties = CommitProperties(
                app_transactions=[Transaction(digest, 1)],
                # No blind retry by the client: each row must state the version that it really got.
                max_commit_retries=0,
                custom_metadata={"speechclip": msgspec.json.encode(_summary(receipts)).decode()},
            )
            try:
                write_deltalake(table, _rows(receipts, version, manifest), mode="append", commit_properties=properties)
            except CommitFailedError:
                logger.info("catalog version %d was taken by another writer, attempt %d", version, attempt + 1)
                time.sleep(random.uniform(0, 0.02 * 2 ** min(attempt, 6)))
            else:
                logger.info("committed %d receipts as catalog version %d", len(receipts), version)
                return version
        raise StoreError(f"{self.storage.root}: {MAX_ATTEMPTS} commits in a row lost to other writers; run again later")

    def speed(self, feature_set: str) -> float | None:
        """Assets per worker-second in the newest commit that encoded some of this feature set, if any did."""
        for entry in self.open().history(100):
            for part in msgspec.json.decode(entry.get("speechclip", "[]")):
                if part["feature_set"] == feature_set and part["encoded"] and part["seconds"] > 0:
                    return float(part["encoded"] / part["seconds"])
        return None


def entries(rows: pa.Table) -> pa.Table:
    """Of one feature set's rows each (asset, manifest, source) once: the one rule for a key committed twice."""
    scope = pc.fill_null(pc.binary_join_element_wise(rows["manifest"], rows["source"], " "), "")
    is_rejected = pc.not_equal(rows["status"], "stored")
    ranked = rows.append_column("scope", scope).append_column("is_rejected", is_rejected)
    ranked = ranked.sort_by([(name, "ascending") for name in ("asset", "scope", "is_rejected", "version", "task")])
    if len(ranked) < 2:
        return ranked.select(SCHEMA.names)
    is_new = [pc.not_equal(ranked[name][1:], ranked[name][:-1]).combine_chunks() for name in ("asset", "scope")]
    is_first = pa.concat_arrays([pa.array([True]), pc.or_(*is_new)])
    return ranked.filter(is_first).select(SCHEMA.names)


def read_rows(storage: Storage, table: DeltaTable, feature_set: str) -> pa.Table:
    """All rows of one partition, from the files that this version of the table names.

    Not by the client's own readers. Its PyArrow dataset reads through Python buffers in Arrow's threads, and one that
    still lets go of them when the interpreter ends aborts the process (seen: 4 of 60 short runs on a loaded machine);
    its query engine holds Python's lock while it waits for the network.
    """
    addresses = table.file_uris(file_pruning_predicate=[("feature_set", "=", feature_set)])
    folder = f"{CATALOG}/feature_set={feature_set}"
    with ThreadPoolExecutor(READ_THREADS) as pool:
        files = list(pool.map(lambda address: storage.read(f"{folder}/{address.rpartition('/')[2]}"), addresses))
    parts = [_with_partition(parse_parquet(data), feature_set) for data in files]
    return pa.concat_tables(parts) if parts else SCHEMA.empty_table()


def _with_partition(part: pa.Table, feature_set: str) -> pa.Table:
    """Delta keeps the partition's value in the folder's name, not in the file."""
    column = pa.array([feature_set] * len(part), pa.string())
    return part.add_column(0, SCHEMA.field("feature_set"), column).select(SCHEMA.names).cast(SCHEMA)


def feature_sets(table: DeltaTable) -> list[str]:
    """The fingerprints that this version names."""
    return sorted({partition["feature_set"] for partition in table.partitions()})


def _summary(receipts: Sequence[Receipt]) -> list[dict[str, Any]]:
    """What the commit's own log entry says of it, per feature set."""
    parts: dict[str, dict[str, Any]] = {}
    for receipt in receipts:
        empty = {
            "feature_set": receipt.feature_set,
            "stored": 0,
            "rejected": 0,
            "encoded": 0,
            "seconds": 0.0,
            "bytes": 0,
        }
        part = parts.setdefault(receipt.feature_set, empty)
        part["stored"] += len(receipt.stored)
        part["rejected"] += len(receipt.rejected)
        part["encoded"] += receipt.num_encoded
        part["seconds"] += receipt.seconds
        part["bytes"] += receipt.num_bytes
    return list(parts.values())


def _rows(receipts: Sequence[Receipt], version: int, manifest: str) -> pa.Table:
    rows = []
    for receipt in receipts:
        base = {"feature_set": receipt.feature_set, "task": receipt.task, "version": version}
        rows += [base | _stored_row(entry, receipt.shard) for entry in receipt.stored]
        rows += [base | _rejected_row(entry, manifest) for entry in receipt.rejected]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _stored_row(entry: StoredAsset, shard: str) -> dict[str, Any]:
    fields = msgspec.structs.asdict(entry)
    return {"asset": fields.pop("key"), "status": "stored", "shard": shard, **fields}


def _rejected_row(entry: RejectedAsset, manifest: str) -> dict[str, Any]:
    fields = msgspec.structs.asdict(entry)
    scope = manifest if entry.source is not None else None
    return {"asset": fields.pop("key"), "status": "rejected", "manifest": scope, **fields}
