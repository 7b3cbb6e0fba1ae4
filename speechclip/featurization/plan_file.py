"""The Parquet file of a plan: one row a task, and a checksum over all tasks in the file's metadata."""

import io
from collections.abc import Sequence

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from speechclip.errors import Damaged
from speechclip.records import Task
from speechclip.storage import parse_parquet

_CHECKSUM = b"speechclip.checksum"
_SCHEMA = pa.schema(
    [pa.field("task", pa.string()), pa.field("feature_set", pa.string()), pa.field("record", pa.binary())]
)


def to_parquet(tasks: Sequence[Task]) -> bytes:
    """The bytes of a plan's file. `record` is the task as JSON; the other two columns are for people who look."""
    records = [msgspec.json.encode(task) for task in tasks]
    columns = [[task.id for task in tasks], [task.feature_set for task in tasks], records]
    buffer = io.BytesIO()
    schema = _SCHEMA.with_metadata({_CHECKSUM: _checksum(records)})
    pq.write_table(pa.table(columns, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def from_parquet(data: bytes) -> list[Task]:
    """The tasks of a plan's file. Raises `Damaged` if the bytes are no such file or do not match their checksum."""
    try:
        table = parse_parquet(data)
        records = table["record"].to_pylist()
        if (table.schema.metadata or {}).get(_CHECKSUM) != _checksum(records):
            raise Damaged("the tasks do not match their checksum")
        return [msgspec.json.decode(record, type=Task) for record in records]
    except (pa.ArrowException, msgspec.MsgspecError, KeyError, TypeError) as error:
        raise Damaged(f"the file is not a plan ({error})") from None


def _checksum(records: Sequence[bytes]) -> bytes:
    """The xxh3-64, as hex digits, of the records with a line feed between each two."""
    checksum = xxhash.xxh3_64()
    for number, record in enumerate(records):
        checksum.update(b"\n"[:number] + record)
    return checksum.hexdigest().encode()
