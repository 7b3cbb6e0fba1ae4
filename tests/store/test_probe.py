from collections.abc import Callable

import pytest
from support import s3_servers
from support.fault_proxy import FaultProxy, Schedule

from speechclip.errors import StorageFailed, UnsupportedStore
from speechclip.storage import Storage
from speechclip.store import FeatureStore
from speechclip.store import probe as probes


def objects(endpoint: str, uri: str) -> list[str]:
    """The files in the bucket, read without the proxy."""
    found = s3_servers.client(endpoint).list_objects_v2(Bucket=uri.split("/")[2])
    return [entry["Key"] for entry in found.get("Contents", [])]


def test_a_backend_that_keeps_writers_apart_passes_and_nothing_stays(store_uri: str) -> None:
    storage = Storage(store_uri)
    probes.probe(storage)
    assert list(storage.stat("", with_incoming=True)) == []


@pytest.mark.parametrize(
    ("kind", "words"), [("ignore-condition", "ignores"), ("condition-501", "501"), ("condition-400", "400")]
)
def test_a_backend_without_conditional_writes_is_refused_and_nothing_stays(
    proxy: FaultProxy, proxied_uri: str, s3_endpoint: str, kind: str, words: str
) -> None:
    proxy.schedule(Schedule((kind,)))
    with pytest.raises(UnsupportedStore, match=rf"{words}.*honours conditional writes"):
        FeatureStore(proxied_uri).create()
    assert objects(s3_endpoint, proxied_uri) == []


def test_deltas_own_commits_are_probed_too(proxy: FaultProxy, proxied_uri: str, s3_endpoint: str) -> None:
    """Our own client gets right answers, Delta's client does not."""
    proxy.schedule(Schedule(("ignore-condition",), only="_delta_log/00000000000000000001.json"))
    with pytest.raises(UnsupportedStore, match=r"of 4 simultaneous Delta commits"):
        FeatureStore(proxied_uri).create()
    assert objects(s3_endpoint, proxied_uri) == []


def test_lost_answers_and_doubled_requests_are_no_reason_to_refuse(
    proxy: FaultProxy, proxied_uri: str, s3_endpoint: str
) -> None:
    for kind in ("drop-answer", "late-500", "duplicate", "condition-409"):
        proxy.schedule(Schedule((kind,), rate=0.5, budget=8, only="PUT"))
        probes.probe(Storage(proxied_uri))
        assert proxy.schedule(Schedule())
        assert objects(s3_endpoint, proxied_uri) == []


def test_a_backend_that_denies_is_not_called_unsupported(proxy: FaultProxy, proxied_uri: str) -> None:
    proxy.schedule(Schedule(("deny",)))
    with pytest.raises(StorageFailed, match="403 AccessDenied"):
        probes.probe(Storage(proxied_uri))


@pytest.mark.parametrize("name", ["AWS_S3_ALLOW_UNSAFE_RENAME", "aws_s3_allow_unsafe_rename", "Allow_Unsafe_Rename"])
def test_unsafe_renames_are_refused_in_any_spelling(s3_uri: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    store = FeatureStore(s3_uri)
    store.create()
    monkeypatch.setenv(name, "true")
    with pytest.raises(UnsupportedStore, match=f"{name} is set.*unset it"):
        store.snapshot()
    monkeypatch.setenv(name, "false")
    store.snapshot()


@pytest.mark.slow
def test_seaweedfs_passes(seaweedfs_endpoint: str, aws: Callable[..., None]) -> None:
    aws(**s3_servers.environment(seaweedfs_endpoint))
    uri = f"s3://{s3_servers.new_bucket(seaweedfs_endpoint)}/store"
    probes.probe(Storage(uri))
    assert objects(seaweedfs_endpoint, uri) == []
