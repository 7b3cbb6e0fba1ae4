"""The grace period: how long `gc` spares a file that no version names, and how long such a file may be reused.

A run that dies leaves whole shards without a commit. The next run reuses them if they are younger than half the grace
period, and then has the other half to commit them. `gc` deletes only files that are older than the whole period. So
the two never meet, without a lock, unless a worker sleeps for days between its shard and its commit.
"""

import time

from speechclip.storage import Storage

GRACE_SECONDS = 7 * 86_400.0


def is_reusable(storage: Storage, *paths: str) -> bool:
    """Whether there is a file at each of these paths, and each is younger than half the grace period."""
    times = [storage.modified(path) for path in paths]
    oldest = time.time() - GRACE_SECONDS / 2
    return all(modified is not None and modified > oldest for modified in times)
