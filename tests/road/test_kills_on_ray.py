"""Driver, raylet and workers killed at random moments, and again; resumed on Ray with another number of CPUs.

One round alone: `pytest tests/road/test_kills_on_ray.py -k "[3]"`; the number is the seed.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.counts import count
from support.feature_sets import content
from support.quiet_runs import files, num_committed, num_encoded, num_stored, num_whole_assets
from support.ray_runs import finish, kill_tree, start, wait_until

from speechclip.corpora.synthetic import make_synthetic
from speechclip.corpora.table import read_table
from speechclip.store import FeatureStore
from speechclip.store.layout import log_path
from speechclip.upkeep.verify import verify

NUM_ASSETS, NUM_TASKS = 24 + 8 + 8, 12 + 4 + 4
SMALL = ("--set", "featurize.tasks.shard_items=2", "--set", "featurize.tasks.chunk_rows=2")
EACH_TASK_A_COMMIT = ("--set", "featurize.commit_seconds=0")
# The long run kills the resumed ones too: ten kills in all.
ROUNDS = [(seed, count(1, kills)) for seed, kills in enumerate([4, 3, 3][: count(2, 3)])]


@dataclass(frozen=True)
class Quiet:
    """The content of a store made from the same manifest without Ray."""

    manifest: Path
    content: dict[tuple[str, str], bytes]
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Quiet:
    folder = tmp_path_factory.mktemp("quiet")
    manifest, store = folder / "m.parquet", folder / "store"
    read_table(str(make_synthetic(folder / "corpus", num_concepts=8, num_voices=3))).write(str(manifest))
    assert finish(start(manifest, store, 2, "--inline", *SMALL))["encoded"] == NUM_ASSETS
    found = FeatureStore(str(store))
    return Quiet(manifest, content(found.snapshot()), files(found))


@pytest.fixture(autouse=True)
def short_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder for the sockets and logs of killed Rays. The path of a socket may have 107 characters at most."""
    with tempfile.TemporaryDirectory(prefix="k-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield


@pytest.mark.ray
@pytest.mark.parametrize(("seed", "num_kills"), ROUNDS)
def test_a_run_killed_with_all_of_ray_is_resumed_and_equals_one_without_ray(
    seed: int, num_kills: int, quiet: Quiet, tmp_path: Path
) -> None:
    chance, store = np.random.default_rng(seed), FeatureStore(str(tmp_path / "store"))
    cpus = [int(number) for number in chance.permutation([1, 2, 3, 2, 1])]
    for number in range(num_kills):
        first = start(quiet.manifest, tmp_path / "store", cpus[number], *SMALL, *EACH_TASK_A_COMMIT)
        # 0 commits: any moment of Ray's own start.
        num_commits = num_committed(store) + int(chance.integers(0, NUM_TASKS // (1 + num_kills)))
        last_entry = tmp_path / "store" / log_path(num_commits)
        wait_until(lambda entry=last_entry: store.exists() and entry.exists(), first)
        time.sleep(chance.uniform(0, 5) if num_commits == 0 else chance.uniform(0, 0.3))
        assert kill_tree(first, driver_first=bool(chance.integers(2))) == -9, "it was over before the kill"
        assert content(store.snapshot()).items() <= quiet.content.items()
    version, num_settled, num_whole = store.snapshot().version, num_stored(store), num_whole_assets(files(store), 2)
    left = finish(start(quiet.manifest, tmp_path / "store", cpus[num_kills], *SMALL))
    assert (left["planned"], left["stored_before"], left["rejected"], left["missing"]) == (
        NUM_ASSETS,
        num_settled,
        0,
        0,
    )
    assert content(store.snapshot()) == quiet.content
    assert files(store) == quiet.files
    assert verify(store).findings == ()
    assert num_encoded(store, since=version) == NUM_ASSETS - num_whole, "whole shards are adopted, not encoded again"
