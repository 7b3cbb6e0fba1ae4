"""Where everything lies in a store of format 1, and what its names say.

store.json                                              the format's number
catalog/                                                Delta Lake: one row per (feature set, asset)
manifests/<digest>.parquet                              every manifest that was featurized
plans/<id>-<ordinal>.parquet                            stored plans
features/<fingerprint>/spec.json
features/<fingerprint>/frames/<xx>/<name>.tar           a WebDataset shard; <name>.xxh3 beside it holds its checksums
features/<fingerprint>/vectors/<segment>.zarr           a Zarr v3 group of `vectors` and `keys`, one chunk a task
"""

import hashlib
from collections.abc import Iterable

FORMAT = 1
STORE_FILE = "store.json"
CATALOG = "catalog"


def spec_path(fingerprint: str) -> str:
    """The spec of a feature set."""
    return f"features/{fingerprint}/spec.json"


def manifest_path(digest: str) -> str:
    """The kept copy of a manifest."""
    return f"manifests/{digest}.parquet"


def plan_path(plan: str) -> str:
    """A stored plan."""
    return f"plans/{plan}.parquet"


def shard_path(fingerprint: str, task: str, keys: Iterable[str], generation: int) -> str:
    """A shard named by its task, the ordered keys it really holds and its generation.

    The two hex digits of `xx` spread the load over S3's prefixes.
    """
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    return f"features/{fingerprint}/frames/{digest[:2]}/{task}-{digest[:16]}-g{generation}.tar"


def sums_path(shard: str) -> str:
    """The checksums beside a shard."""
    return f"{shard.removesuffix('.tar')}.xxh3"


def segment_path(fingerprint: str, segment: str) -> str:
    """The Zarr group of one plan's vectors."""
    return f"features/{fingerprint}/vectors/{segment}.zarr"
