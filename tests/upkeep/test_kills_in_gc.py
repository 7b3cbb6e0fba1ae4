"""SIGKILL inside `drop` and `gc`: what lives stays whole, what was dropped is gone or there, never between.

One round alone: `pytest tests/upkeep/test_kills_in_gc.py -k "after-a-deletion-3"`; the number is the seed. Some rounds
are on S3.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.counts import count
from support.crash_points import GC_POINTS, POINTS, read_log
from support.feature_sets import content
from support.kill_driver import Job, Nursery

from speechclip.corpora.synthetic import make_synthetic
from speechclip.corpora.table import read_table
from speechclip.errors import NotStored
from speechclip.storage import Storage
from speechclip.store import FeatureStore
from speechclip.upkeep.verify import verify

# Where a drop, which writes a part for each of three feature sets, is not yet done or done.
NOT_DONE = {"inside a data file": 3, "between data file and copy": 3, "between data file and log": 1}
DONE = {"between log and answer": 1, "before the journal": 1}
DROP_ROUNDS = [(name, seed) for name in NOT_DONE | DONE for seed in range(count(1, 6))]
GC_ROUNDS = [(name, seed) for name in ("any moment", *GC_POINTS) for seed in range(count(2, 12))]
TAG, TAGGED = "kept", 2

Content = dict[tuple[str, str], bytes]


@dataclass(frozen=True)
class Dropped:
    """A store with half of its keys dropped and a tag on an early version, and its files after a gc without kills."""

    manifest: Path
    doomed: Path
    whole_store: str
    store: str
    whole: Content
    half: Content
    tagged: Content
    collected_files: dict[str, bytes]
    num_passed: Counter[str]
    seconds: float


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Dropped:
    folder = tmp_path_factory.mktemp("dropped")
    manifest, doomed, log = folder / "manifest.parquet", folder / "doomed.json", folder / "log"
    read_table(str(make_synthetic(folder / "corpus", num_concepts=4, num_voices=3))).write(str(manifest))
    uris = [str(folder / name) for name in ("whole", "half", "collected")]
    run(nursery, "featurize", [str(manifest), uris[0]], log)
    store = FeatureStore(uris[0])
    store.tags.create(TAG, TAGGED)
    whole = content(store.snapshot())
    keys: dict[str, list[str]] = {}
    for name, key in sorted(whole)[::2]:
        keys.setdefault(name, []).append(key)
    doomed.write_text(json.dumps(keys))
    copy(uris[0], uris[1])
    run(nursery, "drop", [uris[1], str(doomed)], log)
    copy(uris[1], uris[2])
    seconds = run(nursery, "delete_unused", [uris[2]], log)
    return Dropped(
        manifest=manifest,
        doomed=doomed,
        whole_store=uris[0],
        store=uris[1],
        whole=whole,
        half=content(FeatureStore(uris[1]).snapshot()),
        tagged=content(store.snapshot(TAG)),
        collected_files=files(uris[2]),
        num_passed=Counter(entry["passed"] for entry in read_log(log) if "passed" in entry),
        seconds=seconds,
    )


@pytest.mark.parametrize(("point", "seed"), DROP_ROUNDS, ids=lambda part: str(part).replace(" ", "-"))
def test_a_drop_killed_at_a_named_point_is_done_or_not_begun(
    point: str, seed: int, dropped: Dropped, nursery: Nursery, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = place(dropped.whole_store, POINTS[point].when != "inside" and seed % 6 == 5, tmp_path, request)
    nth = 1 + seed % (NOT_DONE | DONE)[point]
    job = Job(action="drop", arguments=[uri, str(dropped.doomed)], log=str(tmp_path / "log"), point=point, nth=nth)
    ended = nursery.run(job)[0]
    assert ended.code == -9, f"call {nth} at {point!r} ended with {ended.code}: {ended.errors}"
    assert content(FeatureStore(uri).snapshot()) == (dropped.half if point in DONE else dropped.whole)
    assert verify(FeatureStore(uri)).findings == ()
    run(nursery, "drop", [uri, str(dropped.doomed)], tmp_path / "log")
    assert content(FeatureStore(uri).snapshot()) == dropped.half
    assert FeatureStore(uri).snapshot().version == FeatureStore(dropped.store).snapshot().version


@pytest.mark.parametrize(("point", "seed"), GC_ROUNDS, ids=lambda part: str(part).replace(" ", "-"))
def test_a_gc_killed_anywhere_deletes_no_live_file_and_the_next_deletes_the_rest(
    point: str, seed: int, dropped: Dropped, nursery: Nursery, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = place(dropped.store, seed % 12 == 5, tmp_path, request)
    job = Job(action="delete_unused", arguments=[uri], log=str(tmp_path / "log"))
    if point == "any moment":
        job.kill_after = np.random.default_rng(seed).uniform(0, dropped.seconds)
    else:
        # The first call, the last, and those between.
        last = dropped.num_passed[point]
        job.point, job.nth = point, [1, last, int(np.random.default_rng(seed).integers(1, last + 1))][min(seed, 2)]
    ended = nursery.run(job)[0]
    assert ended.code == -9, f"call {job.nth} at {point!r} ended with {ended.code}: {ended.errors}"
    check_living(uri, dropped)
    if seed % 2:
        # A run that comes before the next gc finds half of a shard or chunk, and must not take it for whole.
        run(nursery, "featurize", [str(dropped.manifest), uri], tmp_path / "log")
        assert content(FeatureStore(uri).snapshot()) == dropped.whole
        run(nursery, "drop", [uri, str(dropped.doomed)], tmp_path / "log")
        run(nursery, "delete_unused", [uri], tmp_path / "log")
        assert set(frames_and_vectors(files(uri))) == set(frames_and_vectors(dropped.collected_files))
    else:
        run(nursery, "delete_unused", [uri], tmp_path / "log")
        assert files(uri) == dropped.collected_files
    check_living(uri, dropped)
    run(nursery, "featurize", [str(dropped.manifest), uri], tmp_path / "log")
    assert content(FeatureStore(uri).snapshot()) == dropped.whole
    assert verify(FeatureStore(uri)).findings == ()


def check_living(uri: str, dropped: Dropped) -> None:
    store = FeatureStore(uri)
    assert verify(store).findings == ()
    assert content(store.snapshot()) == dropped.half
    assert content(store.snapshot(TAG)) == dropped.tagged
    for version in range(store.snapshot().version):
        if store.tags.deleted_by(version):
            # It says so; none is half there.
            with pytest.raises(NotStored, match="gc"):
                store.snapshot(version)
        else:
            assert content(store.snapshot(version)).items() <= dropped.whole.items()


def run(nursery: Nursery, action: str, arguments: list[str], log: Path) -> float:
    ended = nursery.run(Job(action=action, arguments=arguments, log=str(log)))[0]
    assert ended.code == 0, ended.errors
    return ended.seconds


def place(source: str, is_remote: bool, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A copy of that store, in a folder or on S3."""
    uri = request.getfixturevalue("s3_uri") if is_remote else str(tmp_path / "store")
    copy(source, uri)
    return uri


def copy(source: str, target: str) -> None:
    there, here = Storage(source), Storage(target)
    for path in there.list(""):
        here.create(path, there.read(path))


def files(uri: str) -> dict[str, bytes]:
    """Every file, without the records of gc, which hold the time."""
    storage = Storage(uri)
    found = (file.path for file in storage.stat("", with_incoming=True))
    return {path: storage.read(path) for path in found if not path.startswith(("collections/", "announcements/"))}


def frames_and_vectors(found: dict[str, bytes]) -> list[str]:
    """The files without the metadata of matrices, which gc never deletes."""
    return [path for path in found if path.startswith("features/") and not path.endswith("zarr.json")]
