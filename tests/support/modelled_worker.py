"""A worker for the state machine: it writes shards and chunks, may be killed there, and knows what lies where."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from speechclip.records import Receipt, RejectedAsset, StoredAsset, Task
from speechclip.storage import Storage
from speechclip.store.grace import GRACE_SECONDS
from speechclip.store.layout import matrix_path, shard_path, sums_path
from speechclip.store.matrices import ARRAYS, chunk_path
from speechclip.store.shards import pack_shard, write_shard
from speechclip.store.vectors import write_chunk
from support import store_model
from support.store_model import SPECS, TASKS, Written

# Size and time of files by their paths in the store.
Listing = dict[str, tuple[int, float]]


class Killed(BaseException):
    """Stands for SIGKILL: none of our handlers may catch it."""


def listing(root: Path, prefix: str = "") -> Listing:
    """Every file, also what a killed writer left."""
    found, folders = {}, [prefix]
    while folders:
        folder = folders.pop()
        for entry in os.scandir(root / folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                folders.append(path)
            else:
                found[path] = (entry.stat().st_size, entry.stat().st_mtime)
    return found


class Worker:
    """Writes into the store at `root`, whose matrices the driver has made.

    `lying` are the features in each file, whatever became of their writer.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.storage = Storage(str(root))
        self.lying: dict[str, dict[str, bytes]] = {}

    def write(self, name: str, rejected: Mapping[str, str], machine: int, day: float) -> Written:
        """The features of the task of that name on storage; the receipt must say what lies there."""
        task, before = TASKS[name], listing(self.root, "features")
        spec = SPECS[task.feature_set]
        keys = [asset.key for asset in task.assets if asset.key not in rejected]
        arrays = {key: store_model.feature(spec, key, machine) for key in keys}
        shard, stored, files = self._put(task, arrays, before)
        features = self._common(files)
        assert [entry.key for entry in stored] == [asset.key for asset in task.assets if asset.key in features]
        assert features.keys() >= arrays.keys()
        self._check_adoption(task, keys, files, before)
        refused = [
            RejectedAsset(key=asset.key, reason=reason, detail="", source="a.wav" if "source" in reason else None)
            for asset in task.assets
            if (reason := rejected.get(asset.key))
        ]
        receipt = Receipt(
            task=task.id,
            feature_set=task.feature_set,
            shard=shard,
            stored=stored,
            rejected=tuple(refused),
            num_bytes=0,
            seconds=0.0,
            num_encoded=len(arrays),
        )
        return Written(receipt, features, files, day)

    def write_until_killed(
        self, name: str, rejected: Mapping[str, str], machine: int, day: float, num_files: int
    ) -> Written | None:
        """The same, but killed within the file that comes after `num_files` new ones; None if that came about."""
        create, num_created = self.storage.create, 0

        def create_or_die(path: str, data: bytes) -> bool:
            nonlocal num_created
            if num_created == num_files and not (self.root / path).exists():
                (self.root / path).parent.mkdir(parents=True, exist_ok=True)
                (self.root / path).with_name(f".incoming-{len(self.lying)}").write_bytes(data[:9])
                raise Killed
            is_new = create(path, data)
            num_created += is_new
            return is_new

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.storage, "create", create_or_die)
            try:
                return self.write(name, rejected, machine, day)
            except Killed:
                return None

    def _put(
        self, task: Task, arrays: dict[str, Any], before: Listing
    ) -> tuple[str, tuple[StoredAsset, ...], tuple[str, ...]]:
        """The shard's path, what the store says lies there, and the two files."""
        spec = SPECS[task.feature_set]
        try:
            if not arrays:
                return "", (), ()
            if spec.is_frames:
                tar = pack_shard(spec, arrays.items(), {})
                shard, stored = write_shard(self.storage, spec, task.id, tar, list(arrays))
                return shard, stored, (shard, sums_path(shard))
            shard, stored, _ = write_chunk(self.storage, spec, task, arrays)
            return shard, stored, _chunks(shard, task)
        finally:
            for path in listing(self.root, "features").keys() - before.keys():
                self.lying[path] = {key: array.tobytes() for key, array in arrays.items()}

    def _common(self, files: Sequence[str]) -> dict[str, bytes]:
        """What a shard and its checksums, or vectors and their keys, hold together; the first has the bytes."""
        if not files:
            return {}
        data, names = (self.lying[path] for path in files)
        return {key: value for key, value in data.items() if key in names}

    def _check_adoption(self, task: Task, keys: list[str], files: Sequence[str], before: Listing) -> None:
        """Nothing old was adopted, and what was young and whole was."""
        young = {path for path, (_, modified) in before.items() if time.time() - modified < GRACE_SECONDS / 2}
        assert young >= before.keys() & set(files)
        if task.matrix:
            first = _chunks(matrix_path(task.feature_set, task.matrix), task)
        else:
            shard = shard_path(task.feature_set, task.id, keys, 0)
            first = (shard, sums_path(shard))
        if keys and young.issuperset(first) and self.lying[first[0]] == self.lying[first[1]]:
            assert files == first or not self.lying[first[0]].keys() >= set(keys)


def _chunks(matrix: str, task: Task) -> tuple[str, ...]:
    return tuple(chunk_path(matrix, name, task.first_row) for name in ARRAYS)
