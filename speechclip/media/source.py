"""Read the bytes of a source: a file, an object on S3, or a range of either, such as one member of a tar."""

import errno
import os
import re
import stat

from speechclip.errors import SourceChanged, SourceMissing, SourceUnreadable
from speechclip.storage import read_uri, split_uri

# A source is read whole to be hashed, and a sparse file of a terabyte costs nothing to make.
MAX_SOURCE_BYTES = 1 << 32
_RANGE = re.compile(r"(?P<path>.+)#offset=(?P<offset>[0-9]{1,18})&size=(?P<size>[0-9]{1,18})", re.DOTALL)
_ADVICE = "correct the path and ingest again"


def range_address(path: str, offset: int, size: int) -> str:
    """The address of `size` bytes from byte `offset` of a file or object.

    range_address("/data/clips-000.tar", 1536, 32044) == "/data/clips-000.tar#offset=1536&size=32044"
    """
    return f"{path}#offset={offset}&size={size}"


def read_source(uri: str) -> bytes:
    """The bytes at a path, an `s3://` address or a range address, in one read.

    Raises a `SourceProblem` if the bytes can't be had and another attempt would not help: no such file, not a file, no
    permission. Other failures, such as those of the network, are raised unchanged.
    """
    found = _RANGE.fullmatch(uri)
    path = found["path"] if found else uri
    try:
        if "://" not in path:
            _check_file(path, is_range=found is not None)
        return _read_range(uri, path, int(found["offset"]), int(found["size"])) if found else read_uri(uri)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceMissing(f"{uri}: no such file", _ADVICE) from None
    except (PermissionError, IsADirectoryError) as error:
        if "://" in uri:
            # s3fs raises the same for expired credentials, which say nothing about the source.
            raise
        raise SourceUnreadable(f"{uri}: can't be read ({error.strerror})", "fix it and ingest again") from None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG):
            raise
        raise SourceUnreadable(f"{uri}: can't be read ({error.strerror})", "fix it and ingest again") from None


def _read_range(uri: str, path: str, offset: int, size: int) -> bytes:
    _check_size(uri, size)
    storage, name = split_uri(path)
    data = storage.read(name, offset, offset + size)
    if len(data) != size:
        raise SourceChanged(f"{uri}: only {len(data)} of these bytes are there", "ingest the corpus again")
    return data


def _check_file(path: str, *, is_range: bool) -> None:
    if "\0" in path:
        raise SourceUnreadable(f"{path!r}: no file has a zero byte in its name", _ADVICE)
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise SourceUnreadable(f"{path}: is a directory or a device, not a file", _ADVICE)
    if not is_range:
        _check_size(path, found.st_size)


def _check_size(uri: str, num_bytes: int) -> None:
    if num_bytes > MAX_SOURCE_BYTES:
        raise SourceUnreadable(
            f"{uri}: {num_bytes} bytes, more than the {MAX_SOURCE_BYTES} that are read", "cut it and ingest again"
        )
