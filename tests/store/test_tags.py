"""A tag of a deleted version, left by a `tag` that was killed: `verify` reports it, and it stops nobody."""

from datetime import UTC, datetime

import pytest
from support.feature_sets import content
from support.stores import IMAGE, SPEECH, fill

from speechclip.errors import Damaged, NotStored
from speechclip.records import to_json
from speechclip.store import FeatureStore
from speechclip.store.layout import TAGS, tag_path
from speechclip.store.tags import Tag
from speechclip.upkeep.gc import delete_unused
from speechclip.upkeep.repair import repair
from speechclip.upkeep.verify import verify


@pytest.fixture
def store(store_uri: str) -> FeatureStore:
    """A store whose first two versions were deleted. A `tag late 2` that had begun before was killed after that."""
    store = fill(store_uri)
    store.drop({SPEECH: None})
    store.compact(2)
    delete_unused(store, grace_seconds=0)
    late = Tag(name="late", version=2, time=datetime.now(UTC)).with_checksum()
    assert store.storage.create(tag_path("late"), to_json(late))
    return store


def test_a_tag_of_a_deleted_version_is_reported_with_what_to_do(store: FeatureStore) -> None:
    says = "the tag names catalog version 2, which `gc` had deleted"
    findings = verify(store).findings
    assert [(finding.kind, finding.path) for finding in findings] == [("tag", tag_path("late"))]
    assert says in findings[0].problem
    assert repair(store).problems == (f"{tag_path('late')}: {says}; delete the tag: `speechclip tag --delete late`",)
    with pytest.raises(NotStored, match="version 2 was deleted"):
        store.snapshot("late")
    store.tags.delete("late")
    assert verify(store).findings == ()


def test_such_a_tag_stops_neither_gc_nor_repair(store: FeatureStore) -> None:
    before = content(store.snapshot())
    store.drop({IMAGE: None})
    planned = delete_unused(store, grace_seconds=0, dry_run=True)
    freed = delete_unused(store, grace_seconds=0)
    assert freed.files == planned.files > 0
    damaged = next(path for path in store.storage.list("features") if path.endswith("/keys/c/0/0"))
    store.storage.replace(damaged, b"junk")
    assert [finding.path for finding in repair(store).repaired] == [damaged]
    assert content(store.snapshot()) == {key: data for key, data in before.items() if key[0] != IMAGE}


def test_a_tag_that_is_deleted_during_a_listing_is_left_out(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = store.storage.list
    gone = {TAGS: [tag_path("gone")]}
    monkeypatch.setattr(store.storage, "list", lambda prefix: [*listed(prefix), *gone.get(prefix, ())])
    assert [tag.name for tag in store.tags.list()] == ["late"]
    assert [path for path, _ in store.tags.damaged()] == [tag_path("late")]
    assert list(store.tags.readable()) == []


def test_a_tag_with_the_content_of_another_is_damaged(store: FeatureStore) -> None:
    store.tags.create("good", store.snapshot().version)
    store.storage.create(tag_path("other"), store.storage.read(tag_path("good")))
    found = {path: str(error) for path, error in store.tags.damaged()}
    assert (
        "the file holds tag good; delete the tag and tag the version again: `speechclip tag --delete other`"
        in found[tag_path("other")]
    )
    with pytest.raises(Damaged, match="holds tag good"):
        store.snapshot("other")
    assert [tag.name for tag in store.tags.readable()] == ["good"]


def test_nothing_is_written_for_a_version_that_was_deleted(store: FeatureStore) -> None:
    for name in ("later", "late"):
        with pytest.raises(NotStored, match="was deleted"):
            store.tags.create(name, 2)
    assert [tag.name for tag in store.tags.list()] == ["late"]
