"""Make a Delta table exactly once, even if several processes try and answers are lost."""

import random
import time
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import DeltaError

from speechclip.errors import StoreError
from speechclip.storage import Storage
from speechclip.storage.faults import one_line

MAX_ATTEMPTS = 10
# If the client itself repeated a creation whose answer was lost, it would make a second version.
ONCE = CommitProperties(max_commit_retries=0)


def make_table(storage: Storage, path: str, schema: pa.Schema, **settings: Any) -> None:
    """Make the empty table at `path`, unless it is there. `settings` are those of `DeltaTable.create`."""
    for attempt in range(MAX_ATTEMPTS):
        try:
            storage.delta(
                "making the table",
                path,
                lambda uri, options: DeltaTable.create(
                    uri, schema, mode="ignore", storage_options=options, commit_properties=ONCE, **settings
                ),
            )
        except DeltaError as error:
            # If the log is there now, another process was first or our own answer was lost. If it is not, the server
            # may have asked for a retry (409).
            if storage.size(f"{path}/_delta_log/{0:020}.json") is None:
                cause = one_line(error)
                time.sleep(random.uniform(0, 0.02 * 2**attempt))
                continue
        return
    problem = f"{storage.address(path)}: no table could be made there ({cause})"
    raise StoreError(problem, "remove the cause and run the command again")
