"""Is this a backend on which no writer overwrites another? Asked once, before anything is stored."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from speechclip.errors import StorageRefused, UnsupportedStore
from speechclip.storage import Storage
from speechclip.store.layout import PROBE
from speechclip.store.new_table import make_table

SCHEMA = pa.schema([pa.field("number", pa.int64())])
NUM_WRITERS, MAX_ROUNDS = 4, 5
ADVICE = "use a backend that honours conditional writes"


def probe(storage: Storage) -> None:
    """Refuse, as `UnsupportedStore`, a backend on which two writers could overwrite each other; leaves nothing."""
    folder = f"{PROBE}{os.urandom(8).hex()}"
    # Refuses an address that Delta's client can't take, before anything is written.
    storage.delta_uri(folder)
    try:
        _probe_create(storage, folder)
        _probe_commit(storage, f"{folder}/table")
    finally:
        storage.delete({f"{folder}/plain", f"{folder}/file", *storage.list(folder)})


def _probe_create(storage: Storage, folder: str) -> None:
    """Through our own client: a file that is there is not overwritten."""
    storage.replace(f"{folder}/plain", b"")
    try:
        is_created = storage.create(f"{folder}/file", b"first")
        is_overwritten = storage.create(f"{folder}/file", b"second")
    except StorageRefused as error:
        raise UnsupportedStore(f"{error}; plain writes work, so {ADVICE} (If-None-Match)") from None
    if not is_created or is_overwritten:
        raise UnsupportedStore(
            f"{storage.root}: the backend ignores conditional writes (If-None-Match), so two runs could overwrite each "
            f"other; {ADVICE}"
        )


def _probe_commit(storage: Storage, path: str) -> None:
    """Through Delta's own client: of several writers that commit one version at the same moment, one succeeds.

    One after the other would prove nothing: the client looks for the version before it writes.
    """
    make_table(storage, path, SCHEMA)
    for _ in range(MAX_ROUNDS):
        believed = _race(storage, path)
        newest = _open(storage, path)
        won = {writer for writer in range(NUM_WRITERS) if _holds(storage, path, newest, writer)}
        # A server may turn all of them away, for them to come back (409).
        if believed or won:
            break
    # A winner whose answer was lost believes that it lost.
    if newest.version() != 1 or len(won) != 1 or not believed <= won:
        raise UnsupportedStore(
            f"{storage.root}: {len(believed)} of {NUM_WRITERS} simultaneous Delta commits believe to be version 1, so "
            f"two runs could overwrite each other; {ADVICE}"
        )


def _race(storage: Storage, path: str) -> set[int]:
    """Who of the writers, all at the same version, believes that its commit succeeded."""
    tables = [_open(storage, path) for _ in range(NUM_WRITERS)]
    start = threading.Barrier(NUM_WRITERS)

    def commit(writer: int) -> bool:
        start.wait()
        try:
            storage.delta("probing", path, lambda _uri, _options: _commit(tables[writer], writer))
        except CommitFailedError:
            return False
        return True

    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        return {writer for writer, is_won in enumerate(pool.map(commit, range(NUM_WRITERS))) if is_won}


def _open(storage: Storage, path: str) -> DeltaTable:
    return storage.delta("probing", path, lambda uri, options: DeltaTable(uri, storage_options=options))


def _holds(storage: Storage, path: str, table: DeltaTable, writer: int) -> bool:
    return storage.delta("probing", path, lambda *_: table.transaction_version(str(writer))) is not None


def _commit(table: DeltaTable, writer: int) -> None:
    table.create_write_transaction(
        [AddAction(f"{writer}.parquet", 1, {}, 0, True, "{}")],
        "append",
        SCHEMA,
        commit_properties=CommitProperties(max_commit_retries=0, app_transactions=[Transaction(str(writer), 1)]),
        post_commithook_properties=PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False),
    )
