"""The paths of all files in a store of format 1.

The functions below make the paths:

    store.json                                              the format's number
    catalog/                                                a Delta Lake table: a row for each asset of a feature set
    catalog/feature_set=<fingerprint>/part-<xxh3>.parquet   a data file: some of its rows
    journal/<version>                                       a copy of a log entry, with a checksum
    journal/feature_set=<fingerprint>/part-<xxh3>.parquet   a copy of a data file
    tags/<name>.json                                        a tag: the name of a version
    collections/<time>-<id>.json                            the record of a `gc`: which versions it left readable
    announcements/<time>-<id>                               the announcement of a `gc` that is about to begin
    manifests/<digest>.parquet                              a manifest that was featurized
    plans/<id>-<ordinal>.parquet                            a plan
    jobs/<job>.json                                         the status of a job
    .probe-<id>/                                            files of a test of the backend, while a store is made
    features/<fingerprint>/spec.json
    features/<fingerprint>/frames/<xx>/<name>.tar           a WebDataset shard; <name>.xxh3 has its checksums
    features/<fingerprint>/vectors/<matrix>.zarr            a matrix: a Zarr v3 group of `vectors` and `keys`, with one
                                                            chunk a task; <matrix> is <plan>-<rows>x<rows a chunk>
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
    """The folder of a feature set's data files within the table, as Delta Lake names partitions."""
    return f"feature_set={fingerprint}"


def log_path(version: int) -> str:
    """The log entry of a version."""
    return f"{CATALOG}/_delta_log/{version:020d}.json"


def checkpoint_path(version: int) -> str:
    """Delta Lake's checkpoint of a version: the whole state of the catalog. Few versions have one."""
    return f"{CATALOG}/_delta_log/{version:020d}.checkpoint.parquet"


def journal_path(version: int) -> str:
    """The journal's copy of the log entry of a version."""
    return f"{JOURNAL}/{version:020d}"


def data_file_path(path: str) -> str:
    """A data file, from its path within the table."""
    return f"{CATALOG}/{path}"


def data_file_copy_path(path: str) -> str:
    """The journal's copy of a data file, from its path within the table."""
    return f"{JOURNAL}/{path}"


def tag_path(name: str) -> str:
    """A tag."""
    return f"{TAGS}/{name}.json"


def announcement_path(time: datetime) -> str:
    """A new announcement of a `gc`. Paths sort by time, and two announcements at the same time differ."""
    return f"{ANNOUNCEMENTS}/{time:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


def collection_path(announcement: str) -> str:
    """The record of the `gc` that was announced at that path."""
    return f"{COLLECTIONS}/{announcement.rpartition('/')[2]}.json"


def spec_path(fingerprint: str) -> str:
    """The spec of a feature set."""
    return f"{FEATURES}/{fingerprint}/spec.json"


def manifest_path(digest: str) -> str:
    """The stored copy of a manifest."""
    return f"{MANIFESTS}/{digest}.parquet"


def digest_in(path: str) -> str:
    """The digest of the manifest that is stored at that path."""
    return path.rpartition("/")[2].removesuffix(".parquet")


def plan_path(plan: str) -> str:
    """A plan."""
    return f"plans/{plan}.parquet"


def job_path(job: str) -> str:
    """The status of a job."""
    return f"{JOBS}/{job}.json"


def shard_path(fingerprint: str, task: str, keys: Iterable[str], generation: int) -> str:
    """A shard. Its name states the task, a hash of the keys that it really holds in their order, and the generation.

    The folder is named by the first two hex digits of that hash, which spreads the load over S3's prefixes.
    """
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    return f"{FEATURES}/{fingerprint}/frames/{digest[:2]}/{task}-{digest[:16]}-g{generation}.tar"


def sums_path(shard: str) -> str:
    """The checksum file beside a shard."""
    return f"{shard.removesuffix('.tar')}.xxh3"


def matrix_path(fingerprint: str, matrix: str) -> str:
    """A matrix."""
    return f"{FEATURES}/{fingerprint}/vectors/{matrix}.zarr"
