"""The members of a tar, local or on S3, and where their bytes are. The data of large members is not read."""

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from speechclip.errors import InvalidInput
from speechclip.storage import Storage, split_uri

# One read of this size gives the headers and texts of several samples.
READ_BYTES = 1 << 20
MAX_TEXT_BYTES = 1 << 24
# The meta data of the WebDataset library, which its readers skip too.
_META = re.compile(r"__[^/]*__($|/)")


class Member(NamedTuple):
    """A file in a tar: where its bytes are, and the bytes themselves if they were asked for."""

    name: str
    offset: int
    size: int
    data: bytes | None


def read_members(uri: str, *, is_text: Callable[[str], bool]) -> Iterator[Member]:
    """The regular files of a tar, in order; `is_text(name)` chooses those whose bytes are read.

    `InvalidInput` if the tar is compressed, damaged, or cut. A cut tar has no end mark, so this shows only after the
    last member: use nothing of a tar before all of it has been read.
    """
    storage, name = split_uri(uri)
    size = storage.size(name)
    if size is None:
        raise InvalidInput(f"{uri}: no such tar", "correct the path; `*` works only where your shell expands it")
    stream = io.BufferedReader(_Stream(storage, name, size), READ_BYTES)
    if stream.peek(2)[:2] == b"\x1f\x8b":
        raise InvalidInput(f"{uri}: is compressed, so no range of it can be read", "uncompress it by gunzip")
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for info in tar:
                if info.isreg() and not _META.match(info.name):
                    yield Member(info.name, info.offset_data, info.size, _text(tar, info, uri, is_text))
            _check_end(stream, tar.offset, uri)
    except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise InvalidInput(f"{uri}: is not a whole tar ({error})", "download or write it again") from None


def _text(tar: tarfile.TarFile, info: tarfile.TarInfo, uri: str, is_text: Callable[[str], bool]) -> bytes | None:
    if info.issparse():
        raise InvalidInput(f"{uri}: {info.name} is a sparse file", "write the tar without --sparse")
    if not is_text(info.name):
        return None
    if info.size > MAX_TEXT_BYTES:
        raise InvalidInput(
            f"{uri}: {info.name} has {info.size} bytes, more than the {MAX_TEXT_BYTES} of a text", "take it out"
        )
    stream = tar.extractfile(info)
    assert stream is not None, "only a regular file is asked for"
    return stream.read()


def _check_end(stream: IO[bytes], position: int, uri: str) -> None:
    """`InvalidInput` unless a block of zeros ends the tar and nothing but zeros follows.

    Python's tarfile takes a damaged header, and the end of the file, for the end of the tar.
    """
    stream.seek(position)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise InvalidInput(f"{uri}: ends at byte {position + len(block)} without an end mark", "download it again")
    if block.strip(b"\0"):
        raise InvalidInput(f"{uri}: the header at byte {position} is damaged", "download or write it again")
    while block := stream.read(READ_BYTES):
        if block.strip(b"\0"):
            raise InvalidInput(
                f"{uri}: data follows the end mark at byte {position}, which readers of a tar leave out",
                "unpack the parts and write one tar",
            )


class _Stream(io.RawIOBase):
    """A stored file as a seekable stream. Each read is one request for a range."""

    def __init__(self, storage: Storage, name: str, size: int) -> None:
        super().__init__()
        self._storage, self._name, self._size, self._position = storage, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._size)
        data = self._storage.read(self._name, self._position, end) if end > self._position else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
