"""A version of the catalog, opened: which data files it names."""

import functools
from collections.abc import Iterable
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable

from speechclip.store.journal import checksum
from speechclip.store.layout import partition


class Version:
    """One opened version of the catalog. `number` counts from 0, and `table` is Delta Lake's view of it."""

    def __init__(self, table: DeltaTable) -> None:
        self.table = table
        self.number = int(table.version())

    @functools.cached_property
    def all_paths(self) -> list[str]:
        """The data files of all feature sets, sorted, as paths within the table."""
        return sorted("/".join(uri.rsplit("/", 2)[-2:]) for uri in self.table.file_uris())

    def paths(self, feature_set: str) -> list[str]:
        """The data files of one feature set, sorted, as paths within the table."""
        # The root covers the names of the files. It does not cover the partition that the log states for a file.
        return [path for path in self.all_paths if path.startswith(f"{partition(feature_set)}/")]

    def feature_sets(self) -> list[str]:
        """The fingerprints of all feature sets, sorted."""
        return sorted({path.partition("/")[0].partition("=")[2] for path in self.all_paths})

    def num_rows(self) -> dict[str, int]:
        """How many rows each data file has, according to the log."""
        files = pa.table(self.table.get_add_actions()).select(["path", "num_records"]).to_pylist()
        return {unquote(file["path"]): file["num_records"] or 0 for file in files}


def root_of(paths: Iterable[str]) -> str:
    """The checksum over the names of a version's data files. The names are checksums of the files."""
    return checksum("\n".join(sorted(paths)).encode())
