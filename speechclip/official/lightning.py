"""A PyTorch Lightning checkpoint: its values at once, each tensor's bytes only when they are asked for.

The file is a zip of one pickle and one stored (uncompressed) entry a tensor storage. Nothing of it is run (`pickles`)
or unpacked to disk; the names in it are looked up in the zip alone.
"""

import hashlib
import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from speechclip.errors import InvalidInput
from speechclip.official.pickles import Inert, Name, read_pickle
from speechclip.records import Record

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Official files have some 0.5 MB of pickle; a byte of it can make an object of 64.
MAX_PICKLE_BYTES = 8 << 20
MAX_AXES = 8
_UNREADABLE = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, struct.error, ValueError, OverflowError)


class _Storage(Record, frozen=True):
    entry: str
    dtype: str
    count: int


class StoredTensor(Record, frozen=True):
    """Where a tensor lies: an entry of the zip, and its part of it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class LightningFile:
    """An open checkpoint. `tensors` is its state dict, by name; `config` what was kept as hyper-parameters.

    `config` is empty where the file holds none. Opening reads the pickle alone; `InvalidInput` where the file is no
    such checkpoint, is damaged, or would run code.
    """

    def __init__(self, path: str) -> None:
        self.path = str(Path(path).expanduser())
        if not Path(self.path).is_file():
            raise InvalidInput(f"{path}: no such file; name a checkpoint of SpeechCLIP (.ckpt)")
        try:
            self._zip = zipfile.ZipFile(self.path)
        except _UNREADABLE as error:
            raise InvalidInput(f"{path}: {self._what_else()} ({error})") from None
        try:
            self._folder = self._find_folder()
            self._read_values()
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> "LightningFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def sha256(self) -> str:
        """The digest of the whole file."""
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; `InvalidInput` where the file lacks it."""
        if name not in self.tensors:
            raise InvalidInput(f"{self.path}: lacks {name}, which an official checkpoint of this kind has")
        return self.tensors[name].shape

    def read(self, name: str) -> Tensor:
        """A tensor, its bytes checked against the zip's CRC."""
        self.shape(name)
        stored = self.tensors[name]
        dtype = _DTYPES[stored.storage.dtype]
        if not stored.storage.count:
            return torch.empty(stored.shape, dtype=dtype)
        data = self._bytes(stored.storage.entry, stored.storage.count * dtype.itemsize)
        whole = torch.frombuffer(data, dtype=dtype)
        part = whole.as_strided(stored.shape, stored.stride, stored.offset)
        return part.contiguous() if part.numel() == whole.numel() else part.clone(memory_format=torch.contiguous_format)

    def _find_folder(self) -> str:
        names = self._zip.namelist()
        folders = [
            name.removesuffix("data.pkl") for name in names if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if len(folders) != 1 or len(set(names)) != len(names):
            raise InvalidInput(
                f"{self.path}: a zip, but no PyTorch checkpoint; name a checkpoint of SpeechCLIP (.ckpt)"
            )
        return folders[0]

    def _read_values(self) -> None:
        if f"{self._folder}byteorder" in self._zip.namelist() and self._bytes("byteorder") != b"little":
            raise InvalidInput(f"{self.path}: was written on a big-endian machine; save it anew on another")
        data = bytes(self._bytes("data.pkl"))
        build = {
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "collections.OrderedDict": _ordered,
        }
        content = read_pickle(data, self.path, build=build, persistent=self._storage)
        state = content.get("state_dict") if isinstance(content, dict) else None
        if not isinstance(content, dict) or not isinstance(state, dict):
            raise InvalidInput(f"{self.path}: holds no state_dict; name a checkpoint as PyTorch Lightning wrote it")
        self.tensors = {str(name): value for name, value in state.items() if isinstance(value, StoredTensor)}
        self.config = settings(settings(content.get("hyper_parameters")).get("config"))
        self.epoch, self.step = (_count(content.get(name)) for name in ("epoch", "global_step"))

    def _storage(self, found: object) -> _Storage:
        match found:
            case ("storage", Name(module="torch", qualname=kind), str(key), str(), int(count)) if kind in _DTYPES:
                return _Storage(entry=f"data/{key}", dtype=kind, count=count)
        raise InvalidInput(f"{self.path}: its pickle names a storage of a kind that no official checkpoint has")

    def _tensor(self, arguments: tuple[Any, ...]) -> StoredTensor:
        match arguments:
            case (_Storage() as storage, int(offset), tuple(shape), tuple(stride), *_) if (
                len(shape) == len(stride) <= MAX_AXES
            ):
                sizes = (offset, *shape, *stride)
                if all(type(size) is int and 0 <= size < 1 << 48 for size in sizes):
                    reach = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1
                    # A tensor larger than its storage would be spread from few bytes to any size.
                    if math.prod(shape) <= storage.count and (reach <= storage.count or 0 in shape):
                        return StoredTensor(storage=storage, offset=offset, shape=shape, stride=stride)
        raise InvalidInput(f"{self.path}: describes a tensor that does not fit its storage; fetch the file again")

    def _bytes(self, entry: str, size: int | None = None) -> bytearray:
        """The whole entry, of `size` bytes; without `size` it is one that is no tensor."""
        name = f"{self._folder}{entry}"
        try:
            info = self._zip.getinfo(name)
        except KeyError:
            raise InvalidInput(f"{self.path}: lacks its part {name}; fetch the file again") from None
        is_plain = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        limit = MAX_PICKLE_BYTES if size is None else size
        if not is_plain or info.file_size > min(limit, Path(self.path).stat().st_size):
            raise InvalidInput(f"{self.path}: its part {name} is packed or of a wrong size; fetch the file again")
        data = bytearray(info.file_size)
        try:
            with self._zip.open(info) as stream:
                done = 0
                while piece := stream.read(1 << 20):
                    data[done : done + len(piece)] = piece
                    done += len(piece)
        except _UNREADABLE as error:
            raise InvalidInput(f"{self.path}: its part {name} is damaged ({error}); fetch the file again") from None
        if done != len(data) or (size is not None and done != size):
            raise InvalidInput(f"{self.path}: its part {name} has {done} bytes, not {size}; fetch the file again")
        return data

    def _what_else(self) -> str:
        """What a file is that can't be opened as a zip."""
        with open(self.path, "rb") as file:
            start = file.read(16)
        if start[:2] == b"PK":
            return "the zip is damaged or cut short; fetch the file again"
        if start[:1] == b"\x80":
            return (
                "was written by torch before 1.6; where you trust it, load it there and save it anew by torch.save of "
                "a newer version"
            )
        if start[8:9] == b"{":
            return "is a safetensors file, not a checkpoint; name the .ckpt that PyTorch Lightning wrote"
        return "is no PyTorch checkpoint; name a checkpoint of SpeechCLIP (.ckpt)"


def settings(found: object) -> Mapping[Any, Any]:
    """The keys of a mapping or of an inert record of one, as OrderedNamespace is; empty for anything else."""
    if isinstance(found, Inert):
        found = found.state if isinstance(found.state, dict) else found.items
    if not isinstance(found, dict):
        return {}
    inner = found.get("_odict")
    return inner if isinstance(inner, dict) else found


def _parameter(arguments: tuple[Any, ...]) -> Any:
    """The tensor of a parameter."""
    return arguments[0]


def _ordered(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """An OrderedDict as it is made: empty, and filled afterwards."""
    if arguments:
        raise ValueError("an OrderedDict with arguments")
    return {}


def _count(found: object) -> int:
    return found if type(found) is int and found >= 0 else 0
