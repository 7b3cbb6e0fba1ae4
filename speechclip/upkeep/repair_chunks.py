"""Repair a chunk of vectors, or the keys beside it."""

from collections.abc import Sequence

from speechclip.spec import EncoderSpec
from speechclip.storage import Storage
from speechclip.store.checksums import digest_of
from speechclip.store.chunks import encode_rows, key_row, rows_in
from speechclip.store.codec import codec_of
from speechclip.store.matrices import chunk_at, chunk_path
from speechclip.store.vectors import Vectors
from speechclip.upkeep.catalog_rows import Row
from speechclip.upkeep.findings import Finding


def repair_chunk(
    storage: Storage, spec: EncoderSpec, finding: Finding, rows: Sequence[Row], encoded: Vectors | None
) -> set[str]:
    """Write a chunk again from its whole rows and from `encoded`; returns the keys of the rows that are whole now.

    A lost row that `encoded` does not replace is filled with NaN. Then Zarr can read the chunk's other rows again.

    A row may have a key although no readable catalog row names it: the data file that names it is lost, and may be
    brought back. Such a row keeps its vector. Nobody can check the vector until then, so its key is removed, and no
    job reuses the row.
    """
    matrix, start, end = chunk_at(finding.path)
    old = rows_in(storage.read_or_empty(finding.path), spec, "vectors", end - start)
    old_keys = storage.read_or_empty(chunk_path(matrix, "keys", start))
    has_key = rows_in(old_keys, spec, "keys", end - start).any(axis=1) | (not old_keys)
    vectors, keys, whole = old.copy(), rows_in(b"", spec, "keys", end - start), set()
    vectors[~has_key] = codec_of(spec).fill
    vectors[[row["offset"] - start for row in rows]] = codec_of(spec).fill
    for row in rows:
        key, place = row["asset"], row["offset"] - start
        keys[place] = key_row(key)
        for vector in (old[place], encoded[key] if encoded is not None and key in encoded else None):
            if vector is not None and digest_of(vector.data) == row["checksum"]:
                vectors[place] = vector
                whole.add(key)
    if whole:
        storage.replace(chunk_path(matrix, "keys", start), encode_rows(keys))
        storage.replace(finding.path, encode_rows(vectors))
    return whole


def repair_keys(storage: Storage, spec: EncoderSpec, finding: Finding, rows: Sequence[Row]) -> set[str]:
    """Write the keys of a chunk again from the catalog's rows; returns the keys of these rows.

    A key that no readable catalog row names stays if it has a vector. The vectors have checksums of their own.
    """
    matrix, start, end = chunk_at(finding.path)
    keys = rows_in(storage.read_or_empty(finding.path), spec, "keys", end - start)
    vectors = rows_in(storage.read_or_empty(chunk_path(matrix, "vectors", start)), spec, "vectors", end - start)
    keys[codec_of(spec).is_absent(vectors)] = 0
    for row in rows:
        keys[row["offset"] - start] = key_row(row["asset"])
    storage.replace(finding.path, encode_rows(keys))
    return {row["asset"] for row in rows}
