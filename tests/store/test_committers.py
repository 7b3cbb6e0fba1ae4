"""Many processes commit into one store as fast as they can. Every receipt counts once, every version is one commit."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.counts import count
from support.crash_points import read_log
from support.feature_sets import VECTORS_SPEC
from support.kill_driver import Job, Nursery

from speechclip.store import FeatureStore
from speechclip.upkeep.verify_log import verify_log

NUM_WRITERS = {"local": 12, "s3": 4}
NUM_ROUNDS = {"local": count(20, 200), "s3": count(2, 10)}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.mark.parametrize("place", NUM_ROUNDS)
def test_many_committing_processes_all_succeed(
    place: str, nursery: Nursery, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = request.getfixturevalue("s3_uri") if place == "s3" else str(tmp_path / "store")
    store, num_writers, num_rounds = FeatureStore(uri), NUM_WRITERS[place], NUM_ROUNDS[place]
    store.create()
    store.add_spec(VECTORS_SPEC, "toy")
    jobs = [
        Job(action="commit", arguments=[uri, str(writer), str(num_rounds)], log=str(tmp_path / str(writer)))
        for writer in range(num_writers)
    ]
    # A writer that lost a hundred races in a row would end with an error.
    assert Counter(end.code for end in nursery.run(*jobs)) == {0: num_writers}
    acknowledged = {
        f"{writer}-{number}": version
        for writer in range(num_writers)
        for number, version in enumerate(
            entry["committed"] for entry in read_log(tmp_path / str(writer)) if "committed" in entry
        )
    }
    num_commits = num_writers * num_rounds
    assert sorted(acknowledged.values()) == list(range(1, num_commits + 1))
    added = {row["asset"]: version for version in range(1, num_commits + 1) for row in rows_added(store, version)}
    assert added == acknowledged
    assert list(verify_log(store.catalog)) == []
    head = store.snapshot()
    assert head.version == num_commits
    assert {row["asset"]: row["version"] for row in head.stored(VECTORS_SPEC.fingerprint).to_pylist()} == acknowledged


def rows_added(store: FeatureStore, version: int) -> list[dict[str, Any]]:
    """The rows of the data files that this version's log entry adds, read without our own code."""
    lines = store.storage.read(f"catalog/_delta_log/{version:020d}.json").splitlines()
    paths = [action["add"]["path"] for action in map(json.loads, lines) if "add" in action]
    assert len(paths) == 1
    data = store.storage.read(f"catalog/{paths[0]}")
    return pq.ParquetFile(io.BytesIO(data)).read(use_threads=False).to_pylist()
