"""What `verify` reports."""

from collections.abc import Collection, Iterable
from typing import Literal

import msgspec

from speechclip.records import Record

Kind = Literal[
    "store",  # store.json
    "log",  # an entry of the catalog's log
    "checkpoint",  # the log's sum up to a version
    "journal",  # the copy of an entry
    "catalog",  # a file of the catalog's rows
    "copy",  # the copy of such a file
    "tag",
    "collection",  # the record of a gc
    "manifest",  # the kept copy of a manifest
    "spec",  # a feature set's spec.json
    "shard",  # a tar of frames
    "checksums",  # the file beside it
    "chunk",  # a task's rows of vectors
    "keys",  # the chunk of keys beside it
    "metadata",  # a matrix's zarr.json
]
FOREIGN = "the entry was written by another tool and changes the catalog"
# While one of these is open, nobody can say what else should be there.
HIDING: tuple[Kind, ...] = ("store", "log", "checkpoint", "journal")


class Finding(Record, frozen=True):
    """One file that is not what it should be; `keys` are the assets that must be encoded anew because of it."""

    kind: Kind
    path: str
    problem: str
    feature_set: str = ""
    keys: tuple[str, ...] = ()

    def without(self, keys: Collection[str]) -> "Finding":
        """The same of all keys but these."""
        return msgspec.structs.replace(self, keys=tuple(key for key in self.keys if key not in keys))


def keys_of(findings: Iterable[Finding]) -> dict[str, set[str]]:
    """The keys that must be encoded anew, by feature set."""
    found: dict[str, set[str]] = {}
    for finding in findings:
        if finding.keys:
            found.setdefault(finding.feature_set, set()).update(finding.keys)
    return found


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
