"""The named points at which a process can be made to die: real calls, wrapped in the process that shall die."""

import itertools
import json
import os
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import xxhash

CHECKPOINT_EVERY = 3


class Point(NamedTuple):
    """A call at which to die: `before` it, `after` it, or `inside` it with its work half done."""

    call: str
    when: Literal["before", "inside", "after"]
    path: str = ""


POINTS = {
    "inside the probe": Point("Storage.create", "after", r"^\.probe-"),
    "before store.json": Point("Storage.create", "before", r"^store\.json$"),
    "after store.json": Point("Storage.create", "after", r"^store\.json$"),
    "before the plan": Point("Storage.create", "before", "^plans/"),
    "after the plan": Point("Storage.create", "after", "^plans/"),
    "after encoding": Point("ToyEncoder.encode", "after"),
    "inside a shard": Point("os.fsync", "inside", "/frames/../."),
    "between shard and checksums": Point("Storage.create", "before", r"\.xxh3$"),
    "inside a chunk": Point("os.fsync", "inside", "/vectors/c/[0-9]+/."),
    "between vectors and keys": Point("Storage.create", "before", r"/keys/c/"),
    "before the commit": Point("FeatureStore.commit", "before"),
    "inside a data file": Point("os.fsync", "inside", "/catalog/feature_set=[^/]*/."),
    "between data file and copy": Point("Storage.create", "before", "^journal/feature_set="),
    "between data file and log": Point("DeltaTable.create_write_transaction", "before", "/catalog/?$"),
    "between log and answer": Point("DeltaTable.create_write_transaction", "after", "/catalog/?$"),
    "inside a checkpoint": Point("DeltaTable.create_checkpoint", "inside"),
    "between checkpoint and journal": Point("DeltaTable.create_checkpoint", "after"),
    "before the journal": Point("Storage.create", "before", "^journal/[0-9]"),
    "between two commits": Point("FeatureStore.commit", "after"),
    "before the summary": Point("GroupCommitter.summary", "before"),
}
GC_POINTS = {
    "between announcement and record": Point("Storage.create", "before", "^collections/"),
    "between record and deletions": Point("Storage.create", "after", "^collections/"),
    "before a deletion": Point("Storage.delete", "before", "^(features|catalog|journal)/"),
    "after a deletion": Point("Storage.delete", "after", "^(features|catalog|journal)/"),
}


def read_log(path: Path) -> list[dict[str, Any]]:
    """What the processes that shared this log did before they ended: a line each, whole however they ended."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def arm(log: str, fatal: str, nth: int) -> None:
    """Log each passing of a point, each encoding and each acknowledged commit; die at the n-th passing of `fatal`."""
    from deltalake import DeltaTable

    from speechclip.encoders.toy import ToyEncoder
    from speechclip.featurization.driver import GroupCommitter
    from speechclip.storage import Storage
    from speechclip.store import FeatureStore, catalog

    # So that a run of seven commits makes some.
    catalog.CHECKPOINT_EVERY = CHECKPOINT_EVERY
    owners: dict[str, Any] = {
        owner.__name__: owner for owner in (Storage, FeatureStore, DeltaTable, GroupCommitter, ToyEncoder, os)
    }
    encode, commit, delete_all = ToyEncoder.encode, FeatureStore.commit, Storage.delete

    def told_encode(encoder: ToyEncoder, inputs: Sequence[Any], dtype: Any) -> Any:
        _tell(log, {"encoding": [xxhash.xxh3_64_hexdigest(array.tobytes()) for array in inputs]})
        return encode(encoder, inputs, dtype)

    def told_commit(*arguments: Any, **options: Any) -> int:
        version = commit(*arguments, **options)
        _tell(log, {"committed": version})
        return version

    # The innermost: what was acknowledged is logged before a point behind it kills.
    owners["ToyEncoder"].encode, owners["FeatureStore"].commit = told_encode, told_commit
    owners["Storage"].delete = lambda storage, path, **options: delete_all(storage, [path], **options)
    for name, point in (POINTS | GC_POINTS).items():
        owner, _, call = point.call.partition(".")
        setattr(
            owners[owner], call, _lethal(log, name, point, nth if name == fatal else 0, getattr(owners[owner], call))
        )
    delete = Storage.delete
    # One by one: on S3 a request for many is not atomic either.
    owners["Storage"].delete = lambda storage, paths, **options: [delete(storage, path, **options) for path in paths]


def _lethal(log: str, name: str, point: Point, nth: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """The call, that logs each time it passes the point, and dies there at the n-th."""
    numbers = itertools.count(1)

    def call(*arguments: Any, **options: Any) -> Any:
        if not re.search(point.path, _path_of(arguments)):
            return original(*arguments, **options)
        _tell(log, {"passed": name})
        is_last = next(numbers) == nth
        if is_last and point.when == "inside":
            _do_half(original, arguments[0])
        if is_last and point.when != "after":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **options)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


def _do_half(original: Callable[..., Any], subject: Any) -> None:
    """Half the bytes of a file that is being written; or a checkpoint of the catalog, without the pointer to it."""
    if isinstance(subject, int):
        os.ftruncate(subject, os.fstat(subject).st_size // 2)
        return
    pointer = Path(subject.table_uri.removeprefix("file://")) / "_delta_log" / "_last_checkpoint"
    before = pointer.read_bytes() if pointer.exists() else None
    original(subject)
    if before is None:
        pointer.unlink()
    else:
        pointer.write_bytes(before)


def _path_of(arguments: Sequence[Any]) -> str:
    """The path that a call is about: named in words, open as a descriptor, or that of a Delta table."""
    if isinstance(arguments[0], int):
        return os.readlink(f"/proc/self/fd/{arguments[0]}")
    if hasattr(arguments[0], "table_uri"):
        return str(arguments[0].table_uri)
    return next((word for word in arguments if isinstance(word, str)), "")


def _tell(log: str, entry: dict[str, Any]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(descriptor, json.dumps(entry).encode() + b"\n")
    os.close(descriptor)
