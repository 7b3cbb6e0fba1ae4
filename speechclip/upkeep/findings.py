"""What `verify` reports: one finding for each file that is damaged or gone."""

from collections.abc import Collection, Iterable
from typing import Literal

import msgspec

from speechclip.errors import Damaged, StoreError
from speechclip.records import Record

Kind = Literal[
    "store",  # store.json
    "log",  # an entry of the catalog's log
    "checkpoint",  # a checkpoint of the log: the sum of all entries up to one version
    "journal",  # the copy of a log entry
    "catalog",  # a data file: rows of the catalog
    "copy",  # the copy of a data file
    "tag",  # a tag
    "collection",  # the record of a `gc`
    "manifest",  # a manifest that the store keeps
    "spec",  # the spec.json of a feature set
    "shard",  # a tar with frames
    "checksums",  # the file with checksums beside a shard
    "chunk",  # the vectors of one task
    "keys",  # the keys beside a chunk
    "metadata",  # the zarr.json files of a matrix
]
# The problem of a log entry that another tool, such as Delta's own `optimize`, has committed.
FOREIGN = "the entry was written by another tool and changes the catalog"
REPAIR = Damaged.standard_advice
# While such a file is damaged, the catalog can't be read, so nobody knows which other files should exist.
BLOCKING: tuple[Kind, ...] = ("store", "log", "checkpoint", "journal")


class Finding(Record, frozen=True):
    """One file that is damaged or gone.

    `problem` says what is wrong, without the path. `advice` says what to do. `keys` are the assets whose features are
    lost with the file, so that they must be encoded again.
    """

    kind: Kind
    path: str
    problem: str
    feature_set: str = ""
    keys: tuple[str, ...] = ()
    advice: str = REPAIR

    def without(self, keys: Collection[str]) -> "Finding":
        """The same finding with these keys left out."""
        return msgspec.structs.replace(self, keys=tuple(key for key in self.keys if key not in keys))


class Report(Record, frozen=True):
    """The result of a `verify`: the files and bytes that it read, and its findings.

    An orphan is no damage. It is a file that neither the newest nor a tagged version names: a job is about to commit
    it, an older version names it, or the next `gc` will delete it.
    """

    versions: tuple[int, ...]
    assets: int
    files: int
    bytes: int
    orphans: int
    orphan_bytes: int
    findings: tuple[Finding, ...]


def finding_of(error: StoreError, kind: Kind, path: str, feature_set: str = "") -> Finding:
    """The finding for an error that the file at `path` has caused.

    The text of such an error begins with the path, possibly with the store's address before it. A finding has a field
    for the path, so its problem is the text behind it.
    """
    whole, _, behind = error.problem.partition(f"{path}: ")
    return Finding(kind=kind, path=path, problem=behind or whole, feature_set=feature_set, advice=error.advice)


def keys_of(findings: Iterable[Finding]) -> dict[str, set[str]]:
    """The keys that must be encoded again, by feature set."""
    found: dict[str, set[str]] = {}
    for finding in findings:
        if finding.keys:
            found.setdefault(finding.feature_set, set()).update(finding.keys)
    return found
