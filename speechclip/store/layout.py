"""Where everything lies in a store of format 1, and what its names say.

store.json                                              the format's number
catalog/                                                Delta Lake: one row per (feature set, asset)
catalog/feature_set=<fingerprint>/part-<xxh3>.parquet   its rows
journal/<version>                                       a checksummed copy of each entry of the catalog's log
journal/feature_set=<fingerprint>/part-<xxh3>.parquet   and of its rows
tags/<name>.json                                        names that people gave to versions
collections/<time>-<id>.json                            which versions each `gc` left readable
announcements/<time>-<id>                               a `gc` is about to make such a record
manifests/<digest>.parquet                              every manifest that was featurized
plans/<id>-<ordinal>.parquet                            stored plans
jobs/<job>.json                                         what each job says of itself
.probe-<id>/                                            a look at what the backend can do, while a new store is made
features/<fingerprint>/spec.json
features/<fingerprint>/frames/<xx>/<name>.tar           a WebDataset shard; <name>.xxh3 beside it holds its checksums
features/<fingerprint>/vectors/<matrix>.zarr           a Zarr v3 group of `vectors` and `keys`, one chunk a task; the
                                                        matrix is <plan>-<rows>x<rows a chunk>
"""

import hashlib
import secrets
from collections.abc import Iterable
from datetime import datetime

FORMAT = 1
STORE_FILE = "store.json"
CATALOG = "catalog"
JOURNAL = "journal"
TAGS = "tags"
COLLECTIONS = "collections"
ANNOUNCEMENTS = "announcements"
FEATURES = "features"
MANIFESTS = "manifests"
JOBS = "jobs"
PROBE = ".probe-"
LAST_CHECKPOINT = f"{CATALOG}/_delta_log/_last_checkpoint"


def partition(fingerprint: str) -> str:
    """Where the catalog's rows of a feature set lie, as Delta Lake names partitions."""
    return f"feature_set={fingerprint}"


def log_path(version: int) -> str:
    """That version's entry of the catalog's log."""
    return f"{CATALOG}/_delta_log/{version:020d}.json"


def checkpoint_path(version: int) -> str:
    """The catalog's whole state at that version, where Delta Lake keeps one."""
    return f"{CATALOG}/_delta_log/{version:020d}.checkpoint.parquet"


def journal_path(version: int) -> str:
    """The copy of that version's entry."""
    return f"{JOURNAL}/{version:020d}"


def data_file_path(path: str) -> str:
    """One file of the catalog's rows, by its path within the table."""
    return f"{CATALOG}/{path}"


def data_file_copy_path(path: str) -> str:
    """The copy of that file."""
    return f"{JOURNAL}/{path}"


def tag_path(name: str) -> str:
    """A tag."""
    return f"{TAGS}/{name}.json"


def announcement_path(time: datetime) -> str:
    """What a `gc` says before it makes its record, in the order of time; two at once don't share one."""
    return f"{ANNOUNCEMENTS}/{time:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


def collection_path(announcement: str) -> str:
    """The record that the announcement at that path led to."""
    return f"{COLLECTIONS}/{announcement.rpartition('/')[2]}.json"


def spec_path(fingerprint: str) -> str:
    """The spec of a feature set."""
    return f"{FEATURES}/{fingerprint}/spec.json"


def manifest_path(digest: str) -> str:
    """The kept copy of a manifest."""
    return f"{MANIFESTS}/{digest}.parquet"


def digest_in(path: str) -> str:
    """The digest of the manifest that is kept at that path."""
    return path.rpartition("/")[2].removesuffix(".parquet")


def plan_path(plan: str) -> str:
    """A stored plan."""
    return f"plans/{plan}.parquet"


def job_path(job: str) -> str:
    """What a run says of itself."""
    return f"{JOBS}/{job}.json"


def shard_path(fingerprint: str, task: str, keys: Iterable[str], generation: int) -> str:
    """A shard named by its task, the ordered keys it really holds and its generation.

    The two hex digits of `xx` spread the load over S3's prefixes.
    """
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    return f"{FEATURES}/{fingerprint}/frames/{digest[:2]}/{task}-{digest[:16]}-g{generation}.tar"


def sums_path(shard: str) -> str:
    """The checksums beside a shard."""
    return f"{shard.removesuffix('.tar')}.xxh3"


def matrix_path(fingerprint: str, matrix: str) -> str:
    """The Zarr group of one plan's vectors."""
    return f"{FEATURES}/{fingerprint}/vectors/{matrix}.zarr"
