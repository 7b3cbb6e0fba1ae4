"""The keys by which assets are known, and the bytes behind them."""

import contextlib
import errno
import hashlib
import os
import stat

from speechclip.errors import InvalidInput, SourceChanged, SourceMissing, SourceProblem, SourceUnreadable
from speechclip.records import Asset
from speechclip.storage import read_uri

# A file is read whole to be hashed, and a sparse one of a terabyte costs nothing to make.
MAX_SOURCE_BYTES = 1 << 32


def content_key(data: bytes) -> str:
    """The sha256 of a file's bytes, 64 hex digits: the key of an image or of a whole recording."""
    return hashlib.sha256(data).hexdigest()


def segment_key(file_key: str, start_sample: int | None, end_sample: int | None) -> str:
    """The key of a part of the recording `file_key`: samples [start, end) at its own rate; no bounds, the whole."""
    if start_sample is None and end_sample is None:
        return file_key
    if start_sample is None or end_sample is None or not 0 <= start_sample < end_sample:
        raise InvalidInput(f"segment [{start_sample}, {end_sample}): give both bounds, start before end, or neither")
    return f"{file_key}-{start_sample}-{end_sample}"


def text_key(text: str) -> str:
    """The sha256 of the UTF-8 text as it stands, white space and all."""
    return content_key(text.encode())


def fetch(asset: Asset) -> bytes:
    """The asset's bytes (of the whole file, for a segment), proven to be those that were ingested.

    Where the first address has a problem its others are tried; the `SourceProblem` of the first says why there are no
    such bytes to be had. Any other failure to read is weather, raised as it comes.
    """
    source = asset.uri or repr(asset.text)
    bounds = "" if asset.start_sample is None else f"-{asset.start_sample}-{asset.end_sample}"
    if asset.key != asset.key[:64] + bounds:
        raise SourceChanged(f"{source}: the key {asset.key[64:]!r} names another segment; ingest the corpus again")
    if asset.uri is None:
        return _proven((asset.text or "").encode(), asset.key, source)
    try:
        return _proven(read_source(asset.uri), asset.key, asset.uri)
    except SourceProblem:
        for uri in asset.other_uris:
            with contextlib.suppress(SourceProblem):
                return _proven(read_source(uri), asset.key, uri)
        raise


def _proven(data: bytes, key: str, source: str) -> bytes:
    if content_key(data) != key[:64]:
        raise SourceChanged(f"{source}: {len(data)} bytes with another sha256 than at ingest; ingest the corpus again")
    return data


def read_source(uri: str) -> bytes:
    """The bytes at an address; a `SourceProblem` where there are none to be had, now and at the next try."""
    try:
        if "://" not in uri:
            _check_file(uri)
        return read_uri(uri)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceMissing(f"{uri}: no such file; mend the path and ingest again") from None
    except (PermissionError, IsADirectoryError) as error:
        if "://" in uri:
            # s3fs says so of expired credentials too: weather, not a property of the source.
            raise
        raise SourceUnreadable(f"{uri}: can't be read ({error.strerror}); mend it and ingest again") from None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG):
            raise
        raise SourceUnreadable(f"{uri}: can't be read ({error.strerror}); mend it and ingest again") from None


def _check_file(path: str) -> None:
    if "\0" in path:
        raise SourceUnreadable(f"{path!r}: no file has a zero byte in its name; mend the path and ingest again")
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise SourceUnreadable(f"{path}: is a directory or a device, not a file; mend the path and ingest again")
    if found.st_size > MAX_SOURCE_BYTES:
        raise SourceUnreadable(
            f"{path}: {found.st_size} bytes, more than the {MAX_SOURCE_BYTES} that are read; cut it and ingest again"
        )
