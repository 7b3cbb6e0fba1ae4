"""Reads a PyTorch Lightning checkpoint without running code from it.

A checkpoint is a zip file. It has one pickle and an entry without compression for each tensor storage:

    name/data.pkl        the values, with a reference to a storage for each tensor
    name/data/0          the bytes of storage 0
    name/byteorder       `little`, in newer files

`pickles` reads the pickle as data. Nothing is unpacked to disk. A name in the pickle is looked up in the zip only. The
bytes of a tensor are read when the tensor is asked for.
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
# Official files have a pickle of about 0.5 MB. Each byte of a pickle can make an object of 64 bytes in memory.
MAX_PICKLE_BYTES = 8 << 20
MAX_AXES = 8
_NAME_A_CHECKPOINT = "name a checkpoint of SpeechCLIP (.ckpt)"
_DOWNLOAD_AGAIN = "download the file again"
# What zipfile raises for a damaged file.
_UNREADABLE = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, struct.error, ValueError, OverflowError)


class _Storage(Record, frozen=True):
    """`count` numbers in one entry of the zip. `dtype` is a key of `_DTYPES`."""

    entry: str
    dtype: str
    count: int


class StoredTensor(Record, frozen=True):
    """Which numbers of a storage a tensor has. `offset` and `stride` count numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class LightningFile:
    """An open checkpoint.

        with LightningFile("base.ckpt") as file:
            cls = file.read("parallel_branch.cls")

    `tensors` has a description of each tensor of the state dict, by name. `config` has the hyper-parameters, and is
    empty if the file has none. `epoch` and `step` say where the training was.

    Opening a file reads its pickle only. It raises `InvalidInput` if the file is no Lightning checkpoint, if it is
    damaged, or if loading it the usual way would run code.
    """

    def __init__(self, path: str) -> None:
        self.path = str(Path(path).expanduser())
        if not Path(self.path).is_file():
            raise InvalidInput(f"{path}: no such file", _NAME_A_CHECKPOINT)
        try:
            self._zip = zipfile.ZipFile(self.path)
        except _UNREADABLE as error:
            problem, advice = self._explain()
            raise InvalidInput(f"{path}: {problem} ({error})", advice) from None
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
        """The sha256 of the whole file, in hex digits."""
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor. Raises `InvalidInput` if the file does not have it."""
        if name not in self.tensors:
            raise InvalidInput(
                f"{self.path}: lacks {name}, which an official checkpoint of this kind has", _NAME_A_CHECKPOINT
            )
        return self.tensors[name].shape

    def read(self, name: str) -> Tensor:
        """A tensor. Raises `InvalidInput` if its bytes do not match the checksum in the zip."""
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
        """The folder in the zip that holds everything, with a slash at its end."""
        names = self._zip.namelist()
        folders = [
            name.removesuffix("data.pkl") for name in names if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if len(folders) != 1 or len(set(names)) != len(names):
            raise InvalidInput(f"{self.path}: a zip, but no PyTorch checkpoint", _NAME_A_CHECKPOINT)
        return folders[0]

    def _read_values(self) -> None:
        if f"{self._folder}byteorder" in self._zip.namelist() and self._bytes("byteorder") != b"little":
            raise InvalidInput(
                f"{self.path}: was written on a big-endian machine", "load and save it on a little-endian machine"
            )
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
            raise InvalidInput(f"{self.path}: holds no state_dict", "name a checkpoint that PyTorch Lightning wrote")
        self.tensors = {str(name): value for name, value in state.items() if isinstance(value, StoredTensor)}
        self.config = settings(settings(content.get("hyper_parameters")).get("config"))
        self.epoch, self.step = (_count(content.get(name)) for name in ("epoch", "global_step"))

    def _storage(self, found: object) -> _Storage:
        """The storage that a persistent id of the pickle stands for."""
        match found:
            case ("storage", Name(module="torch", qualname=kind), str(key), str(), int(count)) if kind in _DTYPES:
                return _Storage(entry=f"data/{key}", dtype=kind, count=count)
        raise InvalidInput(
            f"{self.path}: its pickle names a storage of a kind that no official checkpoint has", _NAME_A_CHECKPOINT
        )

    def _tensor(self, arguments: tuple[Any, ...]) -> StoredTensor:
        """The tensor that a call of torch's `_rebuild_tensor` would make."""
        match arguments:
            case (_Storage() as storage, int(offset), tuple(shape), tuple(stride), *_) if (
                len(shape) == len(stride) <= MAX_AXES
            ):
                sizes = (offset, *shape, *stride)
                if all(type(size) is int and 0 <= size < 1 << 48 for size in sizes):
                    reach = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1
                    # Without this check a few bytes with a stride of 0 could become a tensor of any size.
                    if math.prod(shape) <= storage.count and (reach <= storage.count or 0 in shape):
                        return StoredTensor(storage=storage, offset=offset, shape=shape, stride=stride)
        raise InvalidInput(f"{self.path}: describes a tensor that does not fit its storage", _DOWNLOAD_AGAIN)

    def _bytes(self, entry: str, size: int | None = None) -> bytearray:
        """The bytes of an entry. A tensor's entry must have `size` bytes; any other has a limit instead."""
        name = f"{self._folder}{entry}"
        try:
            info = self._zip.getinfo(name)
        except KeyError:
            raise InvalidInput(f"{self.path}: lacks its part {name}", _DOWNLOAD_AGAIN) from None
        is_plain = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        limit = MAX_PICKLE_BYTES if size is None else size
        if not is_plain or info.file_size > min(limit, Path(self.path).stat().st_size):
            raise InvalidInput(f"{self.path}: its part {name} is compressed or of a wrong size", _DOWNLOAD_AGAIN)
        data = bytearray(info.file_size)
        try:
            with self._zip.open(info) as stream:
                done = 0
                while piece := stream.read(1 << 20):
                    data[done : done + len(piece)] = piece
                    done += len(piece)
        except _UNREADABLE as error:
            raise InvalidInput(f"{self.path}: its part {name} is damaged ({error})", _DOWNLOAD_AGAIN) from None
        if done != len(data) or (size is not None and done != size):
            raise InvalidInput(f"{self.path}: its part {name} has {done} bytes, not {size}", _DOWNLOAD_AGAIN)
        return data

    def _explain(self) -> tuple[str, str]:
        """What is wrong with a file that is no readable zip, and what to do."""
        with open(self.path, "rb") as file:
            start = file.read(16)
        if start[:2] == b"PK":
            return "the zip is damaged or cut short", _DOWNLOAD_AGAIN
        if start[:1] == b"\x80":
            return (
                "was written by torch before 1.6",
                "if you trust the file, load it with that torch and save it with `torch.save` of a newer one",
            )
        if start[8:9] == b"{":
            return "is a safetensors file, not a checkpoint", "name the .ckpt that PyTorch Lightning wrote"
        return "is no PyTorch checkpoint", _NAME_A_CHECKPOINT


def settings(found: object) -> Mapping[Any, Any]:
    """The items of a dict, or of a record of a dict-like object such as OrderedNamespace. Empty for anything else."""
    if isinstance(found, Inert):
        found = found.state if isinstance(found.state, dict) else found.items
    if not isinstance(found, dict):
        return {}
    inner = found.get("_odict")
    return inner if isinstance(inner, dict) else found


def _parameter(arguments: tuple[Any, ...]) -> Any:
    """The tensor that a call of torch's `_rebuild_parameter` would wrap."""
    return arguments[0]


def _ordered(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """An empty dict for a call of `OrderedDict()`. A pickle fills it afterwards."""
    if arguments:
        raise ValueError("an OrderedDict with arguments")
    return {}


def _count(found: object) -> int:
    return found if type(found) is int and found >= 0 else 0
