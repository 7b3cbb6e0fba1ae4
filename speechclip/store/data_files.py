"""Data files: the Parquet files that hold the catalog's rows. Each is named by the checksum of its bytes.

They are read and written without the Delta client. Its PyArrow dataset reads through Python buffers in Arrow's threads.
If such a thread still releases a buffer when the interpreter ends, the process aborts (seen in 4 of 60 short runs on a
loaded machine). Its query engine holds Python's lock while it waits for the network.
"""

import io
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from speechclip.errors import Damaged
from speechclip.storage import THREADS, Storage, parse_parquet
from speechclip.store.grace import is_reusable
from speechclip.store.layout import data_file_copy_path, data_file_path, partition
from speechclip.store.rows import SCHEMA

# Delta keeps the partition's value in the folder's name, not in the file.
_FILE_SCHEMA = SCHEMA.remove(SCHEMA.get_field_index("feature_set"))


class DataFiles:
    """The data files of one store, named by their paths within the catalog's table."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def read(self, paths: Sequence[str]) -> dict[str, "pa.Table | Damaged"]:
        """The rows of each file, or the error that says what is wrong with the file."""
        return dict(zip(paths, self.storage.in_parallel(self._read, paths), strict=True))

    def read_each(self, paths: Sequence[str]) -> Iterator["tuple[str, pa.Table | Damaged]"]:
        """Yield the same file by file, with few of them in memory at a time."""
        for start in range(0, len(paths), THREADS):
            yield from self.read(paths[start : start + THREADS]).items()

    def rows(self, paths: Sequence[str]) -> dict[str, pa.Table]:
        """The rows of each file. Raises `Damaged` if one of the files is damaged or gone."""
        found = {}
        for path, rows in self.read(paths).items():
            if isinstance(rows, Damaged):
                raise rows
            found[path] = rows
        return found

    def write(self, feature_set: str, rows: pa.Table) -> tuple[str, int]:
        """Put the rows and their copy in the journal on storage. Returns the file's path and its size in bytes.

        If the file is there already but damaged, or if `gc` may delete it soon, it stays as it is. The rows then get
        a file of the next generation.
        """
        for generation in range(100):
            name, data = encode_data_file(rows, generation)
            path = f"{partition(feature_set)}/{name}"
            if all(self._put(place, data) for place in (data_file_path(path), data_file_copy_path(path))):
                return path, len(data)
        raise Damaged(f"{data_file_path(partition(feature_set))}: a hundred damaged files of one content")

    def _put(self, path: str, data: bytes) -> bool:
        if self.storage.create(path, data):
            return True
        return is_reusable(self.storage, path) and self.storage.read(path) == data

    def _read(self, path: str) -> "pa.Table | Damaged":
        try:
            return decode_data_file(path, self.storage.read(data_file_path(path)))
        except FileNotFoundError:
            return Damaged(f"{data_file_path(path)}: the catalog's file is gone")
        except Damaged as error:
            return error


def encode_data_file(rows: pa.Table, generation: int = 0) -> tuple[str, bytes]:
    """The name and the bytes of a data file with these rows, all of one feature set.

    Another generation gives the same rows another name.
    """
    buffer = io.BytesIO()
    numbered = rows.select(_FILE_SCHEMA.names).replace_schema_metadata({"generation": str(generation)})
    pq.write_table(numbered, buffer, compression="zstd")
    return _name_of(buffer.getvalue()), buffer.getvalue()


def decode_data_file(path: str, data: bytes) -> pa.Table:
    """The rows of the file at `path`, which ends in `feature_set=<fingerprint>/<name>`.

    Raises `Damaged` if the name is not the checksum of the bytes.
    """
    check_data_file(path, data)
    columns, feature_set = parse_parquet(data), path.rpartition("/")[0].rpartition("feature_set=")[2]
    names = pa.repeat(pa.scalar(feature_set, pa.string()), len(columns))
    return pa.Table.from_arrays([names, *(columns[name] for name in _FILE_SCHEMA.names)], schema=SCHEMA)


def check_data_file(path: str, data: bytes) -> None:
    """Raise `Damaged` if the name of the file at `path` is not the checksum of these bytes."""
    if _name_of(data) != path.rpartition("/")[2]:
        raise Damaged(f"{path}: the catalog's file does not match its checksum")


def _name_of(data: bytes) -> str:
    return f"part-{xxhash.xxh3_128_hexdigest(data)}.parquet"
