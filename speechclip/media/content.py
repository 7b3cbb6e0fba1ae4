"""Content keys: the names of assets, and the check that a source still has the bytes of its key."""

import contextlib
import hashlib

from speechclip.errors import InvalidInput, SourceChanged, SourceProblem
from speechclip.media.source import read_source
from speechclip.records import Asset


def content_key(data: bytes) -> str:
    """The sha256 of a file's bytes in 64 hex digits: the key of a picture or of a whole recording."""
    return hashlib.sha256(data).hexdigest()


def segment_key(file_key: str, start_sample: int | None, end_sample: int | None) -> str:
    """The key of samples [start, end), at the file's own rate, of the recording `file_key`.

    Without bounds it is the key of the whole recording.
    """
    if start_sample is None and end_sample is None:
        return file_key
    if start_sample is None or end_sample is None or not 0 <= start_sample < end_sample:
        raise InvalidInput(f"segment [{start_sample}, {end_sample})", "give both bounds, start before end, or neither")
    return f"{file_key}-{start_sample}-{end_sample}"


def text_key(text: str) -> str:
    """The sha256 of the text in UTF-8, with all its white space: the key of a text."""
    return content_key(text.encode())


def fetch(asset: Asset) -> bytes:
    """The asset's bytes (for a segment, those of the whole file), checked against the asset's key.

    If the first address has a problem, the others are tried. If all have one, the `SourceProblem` of the first is
    raised. A failure that says nothing about the source is raised unchanged.
    """
    source = asset.uri or repr(asset.text)
    bounds = "" if asset.start_sample is None else f"-{asset.start_sample}-{asset.end_sample}"
    if asset.key != asset.key[:64] + bounds:
        raise SourceChanged(f"{source}: the key {asset.key[64:]!r} names another segment", "ingest the corpus again")
    if asset.uri is None:
        return _checked((asset.text or "").encode(), asset.key, source)
    try:
        return _checked(read_source(asset.uri), asset.key, asset.uri)
    except SourceProblem:
        for uri in asset.other_uris:
            with contextlib.suppress(SourceProblem):
                return _checked(read_source(uri), asset.key, uri)
        raise


def _checked(data: bytes, key: str, source: str) -> bytes:
    if content_key(data) != key[:64]:
        raise SourceChanged(
            f"{source}: its {len(data)} bytes have another sha256 than at ingest", "ingest the corpus again"
        )
    return data
