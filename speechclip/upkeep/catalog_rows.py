"""The catalog's rows of the features in a damaged file, and the stored arrays that such rows describe."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from speechclip.errors import Damaged
from speechclip.spec import EncoderSpec
from speechclip.store.catalog import Catalog
from speechclip.store.checksums import digest_of
from speechclip.store.codec import Members
from speechclip.store.matrices import chunk_at, shape_of
from speechclip.store.rows import SCHEMA, is_among, is_stored
from speechclip.store.shard_layout import member_sums, members_at
from speechclip.upkeep.findings import Finding

# The columns that say where a feature lies and which bytes it has.
PLACE = ("asset", "offset", "num_frames", "sums_offset", "checksum")
# One row of the catalog by column names: one feature in a shard or matrix.
Row = dict[str, Any]
# The rows of each damaged file, by the file's path, in the order of their places in the file.
RowsByFile = Mapping[str, Sequence[Row]]


def rows_of_files(catalog: Catalog, findings: Iterable[Finding]) -> RowsByFile:
    """The rows that any version of the catalog has for the damaged files; all data files are read once."""
    places = {finding.path: place_of(finding.path) for finding in findings}
    shards = sorted({shard for shard, _ in places.values()})
    data_files = {path for entry in catalog.history(catalog.newest()) for path in entry.added}
    tables = [SCHEMA.empty_table()]
    for _, table in catalog.data_files.read_each(sorted(data_files)):
        if not isinstance(table, Damaged):
            tables.append(table.filter(pc.and_kleene(is_stored(table), is_among(table["shard"], shards))))
    unique = pa.concat_tables(tables).group_by(["shard", *PLACE]).aggregate([]).sort_by("offset")
    rows: dict[tuple[str, int], list[Row]] = {place: [] for place in places.values()}
    for row in unique.to_pylist():
        shard = row["shard"]
        start = 0 if shard.endswith(".tar") else row["offset"] - row["offset"] % shape_of(shard).chunk_rows
        rows.get((shard, start), []).append(row)
    return {path: rows[place] for path, place in places.items()}


def place_of(path: str) -> tuple[str, int]:
    """The shard or matrix to which a file belongs, and the first row that the file holds (0 for a shard)."""
    if path.endswith((".tar", ".xxh3")):
        return f"{path.rpartition('.')[0]}.tar", 0
    return chunk_at(path)[:2]


def members_of_row(tar: bytes, spec: EncoderSpec, row: Row) -> Members | None:
    """The stored arrays of a row's frames, whole or damaged; None if the tar ends before they do."""
    return members_at(tar, spec, row["offset"], row["num_frames"])


def is_intact(members: Members | None, row: Row) -> bool:
    """Whether the stored arrays match the checksum in their row."""
    return members is not None and digest_of(member_sums(members)) == row["checksum"]
