import threading

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from support.fault_proxy import FaultProxy, Schedule

from speechclip.storage import Storage
from speechclip.store.new_table import make_table

SCHEMA = pa.schema([pa.field("number", pa.int64())])


def version_of(storage: Storage) -> int:
    table = storage.delta("opening", "table", lambda uri, options: DeltaTable(uri, storage_options=options))
    return int(table.version())


def test_a_table_that_is_there_stays_as_it_is(store_uri: str) -> None:
    storage = Storage(store_uri)
    for _ in range(2):
        make_table(storage, "table", SCHEMA)
    assert version_of(storage) == 0


def test_many_processes_make_one_table_at_once(store_uri: str) -> None:
    start = threading.Barrier(4)

    def make() -> None:
        start.wait()
        make_table(Storage(store_uri), "table", SCHEMA)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert version_of(Storage(store_uri)) == 0


@pytest.mark.parametrize("kind", ["drop-answer", "late-500", "duplicate", "truncate", "503", "condition-409"])
def test_faults_of_the_network_make_no_second_version(proxy: FaultProxy, proxied_uri: str, kind: str) -> None:
    storage = Storage(proxied_uri)
    proxy.schedule(Schedule((kind,), budget=2, only="PUT"))
    make_table(storage, "table", SCHEMA)
    assert proxy.schedule(Schedule())
    assert version_of(storage) == 0
