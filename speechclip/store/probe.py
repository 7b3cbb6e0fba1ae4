"""Find out whether the backend keeps writers apart, so that none overwrites another. Done once, for a new store."""

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


def probe(storage: Storage) -> None:
    """Raise `UnsupportedStore` if two writers could overwrite each other's files. Leaves no file behind."""
    folder = f"{PROBE}{os.urandom(8).hex()}"
    # This raises if Delta's client can't use the address. Do it before anything is written.
    storage.delta_uri(folder)
    try:
        _probe_create(storage, folder)
        _probe_commit(storage, f"{folder}/table")
    finally:
        storage.delete({f"{folder}/plain", f"{folder}/file", *storage.list(folder)})


def _probe_create(storage: Storage, folder: str) -> None:
    """Check our own client: `create` must not overwrite a file."""
    storage.replace(f"{folder}/plain", b"")
    try:
        is_created = storage.create(f"{folder}/file", b"first")
        is_overwritten = storage.create(f"{folder}/file", b"second")
    except StorageRefused as error:
        raise UnsupportedStore(f"{error.problem}, although plain writes work (If-None-Match)") from None
    if not is_created or is_overwritten:
        raise UnsupportedStore(
            f"{storage.root}: the backend ignores conditional writes (If-None-Match), so two runs could overwrite each "
            "other"
        )


def _probe_commit(storage: Storage, path: str) -> None:
    """Check Delta's client: if several writers commit the same version at the same moment, exactly one succeeds.

    Writers that commit one after the other would prove nothing, because the client looks for the version first.
    """
    make_table(storage, path, SCHEMA)
    for _ in range(MAX_ROUNDS):
        believed = _race(storage, path)
        newest = _open(storage, path)
        won = {writer for writer in range(NUM_WRITERS) if _holds(storage, path, newest, writer)}
        # A server may refuse all of them and ask for a retry (409).
        if believed or won:
            break
    # If the answer to the winner was lost, the winner thinks that it lost.
    if newest.version() != 1 or len(won) != 1 or not believed <= won:
        raise UnsupportedStore(
            f"{storage.root}: of {NUM_WRITERS} simultaneous Delta commits {len(believed)} seem to be version 1, so two "
            "runs could overwrite each other"
        )


def _race(storage: Storage, path: str) -> set[int]:
    """The writers that think that their commit succeeded. All of them commit the same version."""
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
