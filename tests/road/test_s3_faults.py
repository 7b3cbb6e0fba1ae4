"""Seeded faults between a store and its S3 server: nothing is lost, stored twice or silently left out."""

import functools
import hashlib
import random
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec
import numpy as np
import pytest
from support import s3_servers
from support.counts import count
from support.fault_proxy import FAULTS, FaultProxy, Schedule
from support.paired_corpus import IMAGE, SPEECH

from speechclip.errors import StorageFailed
from speechclip.records import Asset, Receipt, RejectedAsset, Task
from speechclip.spec import EncoderSpec
from speechclip.storage import aws as resolution
from speechclip.storage import retry
from speechclip.store import FeatureStore, Snapshot, feature_store
from speechclip.store.matrices import Shape, create_matrix, matrix_name
from speechclip.store.probe import probe
from speechclip.store.shards import pack_shard, write_shard
from speechclip.store.vectors import write_chunk

T = TypeVar("T")
# Schedules are judged in groups, so that a report has a line for each and a failure names its seed.
GROUPS = 20
BUDGET = 12
PROBE_EVERY = count(4, 10)


@pytest.fixture(scope="module")
def endpoint(request: pytest.FixtureRequest) -> str:
    """The server: moto in CI, and SeaweedFS in the long run, which is faster and another implementation."""
    found: str = request.getfixturevalue(("s3_endpoint", "seaweedfs_endpoint")[count(0, 1)])
    return found


@pytest.fixture
def proxy(endpoint: str, aws: Callable[..., None]) -> Iterator[FaultProxy]:
    """A proxy before the server; the AWS environment names the proxy."""
    with FaultProxy(endpoint) as proxy:
        aws(**s3_servers.environment(proxy.url))
        yield proxy


@pytest.fixture(autouse=True)
def _short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses, and so few attempts that some operations fail. Then the caller repeats them, as a new job does."""
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.005)
    monkeypatch.setattr(retry, "MAX_ATTEMPTS", 2)
    monkeypatch.setitem(resolution.DELTA, "backoff_config.init_backoff", "0.005s")
    monkeypatch.setitem(resolution.DELTA, "max_retries", "1")


def key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


class Run:
    """A writer that repeats each operation until it succeeds; `failures` are the errors on the way."""

    def __init__(self, uri: str, seed: int) -> None:
        self.uri, self.store, self.failures = uri, FeatureStore(uri), list[str]()
        generator = np.random.default_rng(seed)
        self.frames = {key(f"u{n}"): generator.standard_normal((3, 4 + n, 16)).astype("<f2") for n in range(3)}
        self.vectors = {key(f"i{n}"): generator.standard_normal(12).astype("<f4") for n in range(4)}

    def insist(self, operation: Callable[[], T]) -> T:
        """Repeat an operation that ends in `StorageFailed`. Any other error, such as `Damaged`, fails the test."""
        for _ in range(4 * BUDGET):
            try:
                return operation()
            except StorageFailed as error:
                self.failures.append(str(error))
        raise AssertionError("the faults have ended and the operation still fails")

    def write(self) -> None:
        """Make the store, write frames and vectors, commit each. The frames twice, as after a lost answer."""
        self.insist(self.store.create)
        self.insist(lambda: self.store.add_spec(SPEECH, "toy"))
        self.insist(lambda: self.store.add_spec(IMAGE, "toy"))
        for step, num_commits in ((self._write_frames, 2), (self._write_vectors, 1)):
            receipt = self.insist(step)
            for _ in range(num_commits):
                self.insist(functools.partial(self.store.commit, [receipt], "m"))

    def _write_frames(self) -> Receipt:
        tar = pack_shard(SPEECH, self.frames.items(), {})
        path, stored = write_shard(self.store.storage, SPEECH, "speech", tar, list(self.frames))
        return self._receipt("speech", SPEECH.fingerprint, path, stored)

    def _write_vectors(self) -> Receipt:
        segment = matrix_name("p", Shape(len(self.vectors), len(self.vectors)))
        create_matrix(self.store.storage, IMAGE, segment)
        assets = tuple(Asset(key=name, modality="image") for name in self.vectors)
        task = Task(id="image", feature_set=IMAGE.fingerprint, assets=assets, matrix=segment)
        path, stored, _ = write_chunk(self.store.storage, IMAGE, task, self.vectors)
        return self._receipt("image", IMAGE.fingerprint, path, stored)

    def _receipt(self, task: str, feature_set: str, path: str, stored: tuple) -> Receipt:  # type: ignore[type-arg]
        return Receipt(
            task=task, feature_set=feature_set, shard=path, stored=stored, rejected=(), num_bytes=0, seconds=1.0,
            num_encoded=len(stored),
        )  # fmt: skip

    def snapshot(self) -> Snapshot:
        """The newest version, opened as by another process."""
        return self.insist(FeatureStore(self.uri).snapshot)

    def read(self, snapshot: Snapshot, spec: EncoderSpec) -> None:
        """Check that the feature set has exactly the features that were written."""
        features = self.insist(functools.partial(snapshot.feature_set, spec.fingerprint))
        for name, array in self.written(spec).items():
            np.testing.assert_array_equal(self.insist(functools.partial(features.__getitem__, name)), array)

    def written(self, spec: EncoderSpec) -> dict[str, np.ndarray]:
        return self.frames if spec is SPEECH else self.vectors

    def check_rows(self, snapshot: Snapshot) -> None:
        """Check that there is one row a key, also in the data files, and one version a commit."""
        for spec in (SPEECH, IMAGE):
            assert sorted(snapshot._rows(spec.fingerprint)["asset"].to_pylist()) == sorted(self.written(spec))
        assert snapshot.version == 2
        # A probe may leave files only if an error says that it could not delete them.
        left = {path.split("/")[0] for path in self.store.storage.list("") if "probe" in path}
        assert len(left) <= sum("deleting" in text or "listing" in text for text in self.failures)


def play(seed: int, uri: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[str]]:
    """Run one schedule. Returns how many requests went wrong, and the errors that retries did not prevent."""
    chance = random.Random(seed)
    kinds = tuple(chance.sample(FAULTS, chance.randint(1, len(FAULTS))))
    run = Run(uri, seed)
    # The probe takes half of the requests, and has tests of its own: it is not asked in every schedule.
    monkeypatch.setattr(feature_store, "probe", probe if seed // GROUPS % PROBE_EVERY == 0 else lambda _storage: None)
    proxy.schedule(Schedule(kinds, seed=seed, rate=chance.choice((0.05, 0.2, 0.5)), budget=BUDGET))
    try:
        run.write()
        read_in_it = chance.choice((SPEECH, IMAGE))
        run.read(run.snapshot(), read_in_it)
        done = proxy.schedule(Schedule())
        after = run.snapshot()
        run.check_rows(after)
        run.read(after, IMAGE if read_in_it is SPEECH else SPEECH)
    except BaseException as error:
        error.add_note(f"seed {seed}, {kinds}")
        raise
    for text in run.failures:
        assert text.startswith("s3://")
        assert "\n" not in text
        assert s3_servers.KEY_ID not in text
    return len(done), run.failures


@pytest.mark.parametrize("group", range(GROUPS))
def test_faults_lose_nothing_and_store_nothing_twice(
    proxy: FaultProxy, endpoint: str, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = range(group, count(100, 1000), GROUPS)
    # A bucket of its own: to list one folder moto looks at every key of its bucket.
    bucket = s3_servers.new_bucket(endpoint)
    played = [play(seed, f"s3://{bucket}/{seed}", proxy, monkeypatch) for seed in seeds]
    assert sum(num_faults for num_faults, _ in played) > 3 * len(seeds)


def test_a_failing_request_of_a_commit_is_an_error_in_one_sentence(proxy: FaultProxy, endpoint: str) -> None:
    """Delta's client gets 500 so often that it stops, each time at another request of a commit."""
    run = Run(f"s3://{s3_servers.new_bucket(endpoint)}/commits", 0)
    run.insist(run.store.create)
    for seed in range(8):
        no = RejectedAsset(key=key(f"{seed}"), reason="undecodable", detail="no decoder takes it")
        receipt = msgspec.structs.replace(run._receipt("t", SPEECH.fingerprint, "", ()), rejected=(no,))
        proxy.schedule(Schedule(("500",), seed=seed, rate=0.4, budget=20, only="_delta_log"))
        run.insist(functools.partial(run.store.commit, [receipt], "m"))
        proxy.schedule(Schedule())
    assert run.failures
    assert run.store.catalog.open().number == 8


@pytest.mark.slow
def test_faults_before_another_server_lose_nothing(
    seaweedfs_endpoint: str, aws: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(seaweedfs_endpoint) as proxy:
        aws(**s3_servers.environment(proxy.url))
        bucket = s3_servers.new_bucket(seaweedfs_endpoint)
        played = [play(seed, f"s3://{bucket}/{seed}", proxy, monkeypatch) for seed in range(40)]
    assert sum(num_faults for num_faults, _ in played) > 3 * len(played)
