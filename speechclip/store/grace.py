"""The grace period: how long what no commit names is safe from `gc`, and how long it may still be adopted.

A run that dies leaves whole shards without a commit. The next run adopts them while they are younger than half the
grace period and then commits them within the other half; `gc` frees only what is older than all of it. So the two
never meet, without a lock, as long as no worker sleeps for days between its shard and its commit.
"""

import time

from speechclip.storage import Storage

GRACE_SECONDS = 7 * 86_400.0


def is_reusable(storage: Storage, *paths: str) -> bool:
    """Whether files lie at all these paths, each younger than half the grace period."""
    times = [storage.modified(path) for path in paths]
    oldest = time.time() - GRACE_SECONDS / 2
    return all(modified is not None and modified > oldest for modified in times)
