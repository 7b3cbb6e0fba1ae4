"""What `verify` reports."""

from typing import Literal

from speechclip.records import Record

Kind = Literal[
    "store",  # store.json
    "log",  # an entry of the catalog's log
    "checkpoint",  # the log's sum up to a version
    "journal",  # the copy of an entry
    "catalog",  # a file of the catalog's rows
    "copy",  # the copy of such a file
    "manifest",  # the kept copy of a manifest
    "spec",  # a feature set's spec.json
    "shard",  # a tar of frames
    "checksums",  # the file beside it
    "chunk",  # a task's rows of vectors
    "metadata",  # a segment's zarr.json
]
# While one of these is open, nobody can say what else should be there.
HIDING: tuple[Kind, ...] = ("store", "log", "checkpoint", "journal")


class Finding(Record, frozen=True):
    """One file that is not what it should be; `keys` are the assets that must be encoded anew because of it."""

    kind: Kind
    path: str
    problem: str
    feature_set: str = ""
    keys: tuple[str, ...] = ()


class Report(Record, frozen=True):
    """What `verify` read, in files and bytes, and found.

    Orphans are no damage: files that no verified version names, because a run is at work, an older version names them,
    or `gc` will free them.
    """

    versions: tuple[int, ...]
    assets: int
    files: int
    bytes: int
    orphans: int
    orphan_bytes: int
    findings: tuple[Finding, ...]
