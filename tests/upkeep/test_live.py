"""Files that gc reads are damaged or lost: repair brings them back or says what to do, and gc can run again."""

import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.feature_sets import content
from support.injuries import Injury
from support.stores import IMAGE, SPEECH, fill

from speechclip.errors import Damaged, NotStored
from speechclip.records import to_json
from speechclip.store import FeatureStore
from speechclip.store.layout import data_file_copy_path, data_file_path, tag_path
from speechclip.store.tags import Tag
from speechclip.upkeep import gc, live
from speechclip.upkeep.gc import delete_unused
from speechclip.upkeep.repair import repair
from speechclip.upkeep.verify import verify


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose speech was dropped in its newest version."""
    store = fill(str(tmp_path_factory.mktemp("whole") / "store"))
    store.drop({SPEECH: None})
    return Path(store.storage.root)


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> FeatureStore:
    return FeatureStore(str(shutil.copytree(whole, tmp_path / "store")))


def dropped_part(store: FeatureStore) -> str:
    """A data file that the version before the newest names, and the newest does not."""
    newest = store.snapshot().version
    return min(set(store.catalog.paths(newest - 1)) - set(store.catalog.paths(newest)))


def lose(store: FeatureStore, part: str) -> None:
    """Damage a data file and its copy."""
    for path in (data_file_path(part), data_file_copy_path(part)):
        Injury("part", path, "flip", 99).inflict(store.storage.root)


@pytest.mark.parametrize("place", [data_file_path, data_file_copy_path])
@pytest.mark.parametrize("how", ["flip", "delete"])
def test_a_data_file_that_only_a_recent_version_names_is_repaired(
    store: FeatureStore, place: Callable[[str], str], how: str
) -> None:
    path = place(dropped_part(store))
    before = store.storage.read(path)
    Injury("part", path, how, 99).inflict(store.storage.root)
    assert [finding.path for finding in verify(store).findings] == [path]
    assert repair(store).problems == ()
    assert store.storage.read(path) == before
    assert verify(store).findings == ()
    assert delete_unused(store).files == 0


def test_a_lost_data_file_of_a_tagged_version_needs_the_tag_deleted(store: FeatureStore) -> None:
    part, newest = dropped_part(store), store.snapshot().version
    store.tags.create("paper", newest - 1)
    delete_unused(store, grace_seconds=0)
    before = content(store.snapshot())
    lose(store, part)
    for forget in (False, True):
        problems = repair(store, forget=forget).problems
        assert problems
        assert all("`speechclip tag --delete paper`" in problem for problem in problems)
        assert all("--forget" not in problem for problem in problems)
        with pytest.raises(Damaged, match="repair"):
            delete_unused(store, grace_seconds=0)
    store.tags.delete("paper")
    assert repair(store).problems == ()
    assert delete_unused(store, grace_seconds=0).files > 0
    assert verify(store).findings == ()
    assert content(store.snapshot()) == before


def test_a_lost_data_file_of_a_recent_version_stops_gc_for_its_feature_set_alone(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows which files it named, so gc deletes none of this set. The message says until when."""
    lose(store, dropped_part(store))
    orphans = [f"features/{name}/frames/00/old.tar" for name in (IMAGE, SPEECH)]
    for path in orphans:
        store.storage.create(path, b"nobody's")
    for path in store.storage.list("features"):
        os.utime(store.storage.address(path), (0, 0))
    problems = repair(store).problems
    assert len(problems) == 2
    assert all("until " in problem and "`speechclip gc --now`" in problem for problem in problems)
    assert repair(store, forget=True).problems == problems
    before = set(store.storage.list("features"))
    assert delete_unused(store).files == 1
    assert before - set(store.storage.list("features")) == {orphans[0]}
    later = SimpleNamespace(time=lambda: time.time() + 7.1 * 86_400)
    for module in (gc, live):
        monkeypatch.setattr(module, "time", later)
    assert repair(store).problems == ()
    assert verify(store).findings == ()
    assert delete_unused(store).files > 2
    assert not store.storage.exists(orphans[1])


def test_a_forgotten_data_file_is_reported_until_no_live_version_names_it(store: FeatureStore) -> None:
    part = min(store.catalog.paths(store.snapshot().version))
    lose(store, part)
    assert all("--forget" in problem for problem in repair(store).problems)
    problems = repair(store, forget=True).problems
    assert [problem.partition(":")[0] for problem in problems] == [data_file_path(part), data_file_copy_path(part)]
    assert all("until " in problem for problem in problems)
    delete_unused(store)
    delete_unused(store, grace_seconds=0)
    assert repair(store).problems == ()
    assert verify(store).findings == ()


def damage_the_record(store: FeatureStore) -> None:
    [path] = store.storage.list("collections")
    Injury("collection", path, "truncate", 20).inflict(store.storage.root)


def test_a_repaired_record_of_a_gc_keeps_no_deleted_version(store: FeatureStore) -> None:
    newest = store.snapshot().version
    store.tags.create("paper", 1)
    paper = content(store.snapshot("paper"))
    assert delete_unused(store, grace_seconds=0).files > 0
    # As a `tag` leaves it that was killed before it looked at the records.
    store.storage.create(
        tag_path("late"), to_json(Tag(name="late", version=newest - 1, time=datetime.now(UTC)).with_checksum())
    )
    damage_the_record(store)
    problems = repair(store).problems
    assert len(problems) == 1
    assert "`speechclip tag --delete late`" in problems[0]
    assert [tag.name for tag in store.tags.readable()] == ["paper"]
    with pytest.raises(NotStored, match="was deleted"):
        store.snapshot(newest - 1)
    assert delete_unused(store).files == 0
    assert content(store.snapshot("paper")) == paper
    store.tags.delete("late")
    assert verify(store).findings == ()


def test_a_repaired_record_of_a_gc_that_deleted_nothing_keeps_every_version(store: FeatureStore) -> None:
    newest = store.snapshot().version
    delete_unused(store)
    damage_the_record(store)
    assert repair(store).problems == ()
    assert len(content(store.snapshot(newest - 1))) > len(content(store.snapshot()))
    assert store.tags.since() == 0


def test_a_repaired_record_keeps_versions_whose_data_files_have_only_copies(store: FeatureStore) -> None:
    """Another tool has deleted the data files, as Delta's `vacuum` does. `repair` brings them back."""
    newest = store.snapshot().version
    store.tags.create("paper", 1)
    delete_unused(store)
    for version in (1, newest - 1):
        store.storage.delete(map(data_file_path, store.catalog.paths(version)))
    damage_the_record(store)
    assert repair(store).problems == ()
    assert store.tags.since() == 0
    assert len(content(store.snapshot(newest - 1))) > len(content(store.snapshot()))
    assert verify(store).findings == ()
