"""A real store beside its model: each call does one thing to both and compares what came of it."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from speechclip.errors import NotStored
from speechclip.records import to_json
from speechclip.store import FeatureStore, Snapshot, changes
from speechclip.store.grace import GRACE_SECONDS
from speechclip.store.journal import LogEntry, parse_entry
from speechclip.store.layout import sums_path
from speechclip.store.matrices import ARRAYS, chunk_path, create_matrix, shape_of
from speechclip.store.tags import GcRecord
from speechclip.upkeep import erase, gc
from support import store_model
from support.feature_sets import content
from support.modelled_worker import Killed, Listing, Worker, listing
from support.store_model import FRAMES, KEYS, MANIFESTS, SPECS, TASKS, VECTORS, Row, Rows, Version, Written

DAY = 86_400.0
# What can befall a writer between its reading of the catalog and its answer.
FATES = (
    "nothing",
    "killed before the log",
    "killed before the journal",
    "answer lost",
    "beaten by a commit",
    "beaten by a drop",
    "beaten by a compaction",
)
# What can happen while `gc` is at work.
MEANWHILE = ("nothing", "a commit", "an early tag", "a tag that stops it", "a late tag", "an early kill", "a kill")


class ModelledStore:
    """A store in a folder of its own, two handles on it, and all that the model knows.

    Time passes by `let_time_pass` alone: it ages the files, and what the log says of its entries.
    """

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("speechclip.store.catalog.parse_entry", self._aged)
        self.patch.setattr("speechclip.store.catalog.CHECKPOINT_EVERY", 5)
        # No power fails here, and waiting for the disk would take most of the time.
        self.patch.setattr("speechclip.storage.folder.os.fsync", lambda descriptor: None)
        self.day, self.days_of_commits = 0.0, [0.0]
        self.versions = [Version({}, frozenset())]
        self.tags: dict[str, int] = {}
        self.freed: set[int] = set()
        self.kept_since = 0
        self.worker = Worker(self.root)
        self.pending: list[Written] = []
        self.landed: list[tuple[str, list[Written]]] = []
        self.num_runs = 0
        self.handles = [FeatureStore(self.folder.name) for _ in range(2)]
        self.handles[0].create()
        for spec in SPECS.values():
            self.handles[0].add_spec(spec, "toy")
        for matrix in {task.matrix for task in TASKS.values() if task.matrix}:
            create_matrix(self.handles[0].storage, VECTORS, matrix)

    def close(self) -> None:
        self.patch.undo()
        self.folder.cleanup()

    @property
    def head(self) -> int:
        return len(self.versions) - 1

    def new_job(self) -> str:
        self.num_runs += 1
        return f"run {self.num_runs}"

    def let_time_pass(self, days: float) -> None:
        self.day += days
        for path, (_, modified) in listing(self.root).items():
            os.utime(self.root / path, (modified - days * DAY, modified - days * DAY))
        # No worker waits longer than that between its shard and its commit.
        self.pending = [work for work in self.pending if self.day - work.day < GRACE_SECONDS / DAY / 2]

    def commit(self, writer: int, fate: str, run: str, works: Sequence[Written], manifest: str) -> bool:
        """Commit the works' receipts; whether the writer was told."""
        told = [work for work in works if work.features or work.receipt.rejected]
        is_known = any((run, _digest(told)) == (other, _digest(there)) for other, there in self.landed)
        receipts = [work.receipt for work in works]

        def effect() -> Rows | None:
            rows = self.versions[-1].rows
            return None if is_known else store_model.with_receipts(rows, told, self.head + 1, manifest)

        is_told = self.perform(writer, fate, lambda store: store.commit(receipts, manifest, job=run), effect)
        if told and not is_known and fate != "killed before the log":
            self.landed.append((run, told))
        return is_told

    def replace(
        self, writer: int, fate: str, works: Sequence[Written], manifest: str, damaged: Collection[str]
    ) -> None:
        """Commit what a repair encoded anew; it may have got only some of the damaged keys."""
        receipts, run, marked = [work.receipt for work in works], self.new_job(), dict.fromkeys(SPECS, damaged)
        self.perform(
            writer,
            fate,
            lambda store: store.commit(receipts, manifest, job=run, damaged=marked),
            lambda: store_model.with_receipts(self.versions[-1].rows, works, self.head + 1, manifest, damaged),
        )

    def drop(self, writer: int, fate: str, doomed: Mapping[str, Any]) -> None:
        self.perform(
            writer,
            fate,
            lambda store: store.drop(doomed) or self.head,
            lambda: store_model.without(self.versions[-1].rows, doomed),
        )

    def erase(self, writer: int, doomed: Mapping[str, Collection[str]], *, is_killed: bool) -> None:
        """What `drop --erase` does: what shares a file with the doomed is moved, then they are dropped."""
        store, rows, before = self.handles[writer], self.versions[-1].rows, listing(self.root, "features")
        found, moved = {name: set[str]() for name in doomed}, list[dict[str, Any]]()
        with pytest.MonkeyPatch.context() as patch:
            look, move = erase._places, changes.move

            def note_places(store: FeatureStore, name: str, keys: Collection[str]) -> list[str]:
                found[name] = set(look(store, name, keys))
                return sorted(found[name])

            def note_moved(catalog: Any, old: Any, new: Any, left: Any) -> Any:
                moved.extend(new.to_pylist())
                return move(catalog, old, new, left)

            patch.setattr(erase, "_places", note_places)
            patch.setattr(changes, "move", note_moved)
            erase.rewrite_shared_shards(store, doomed, job=self.new_job())
        after = dict(rows)
        for name, keys in doomed.items():
            self._check_places(name, keys, found[name])
            left = {row for row in rows[name] if row.place in found[name] and row.asset not in keys}
            picked = {key: row for key, row in store_model.stored(rows[name]).items() if row in left}
            new = [row for row in moved if row["feature_set"] == name]
            assert sorted(row["asset"] for row in new) == sorted(picked)
            after[name] = (*(row for row in rows[name] if row not in left), *self._moved(new, picked, keys, before))
        if after != rows:
            self._append(after)
        if not is_killed:
            self.drop(writer, "nothing", doomed)

    def _check_places(self, name: str, doomed: Collection[str], found: set[str]) -> None:
        """All shards that a readable version says hold doomed keys are found, and of those in use no other."""
        rows = self.versions[-1].rows[name]
        in_use = {row.place: row.files for row in rows if row.place and row.asset not in doomed}
        for version in set(range(len(self.versions))) - self.freed:
            there = store_model.places_of(self.versions[version].rows.get(name, ()), doomed)
            assert there & in_use.keys() <= found
        for place in in_use.keys() & found:
            assert any(self.worker.lying[path].keys() & set(doomed) for path in in_use[place])

    def _moved(
        self, new: Sequence[Mapping[str, Any]], old: Mapping[str, Row], doomed: Collection[str], before: Listing
    ) -> list[Row]:
        """The rows of what was moved: as old as they were, and in files that hold nothing else."""
        rows = [replace(old[row["asset"]], shard=row["shard"], files=_files(row)) for row in new]
        for files in {row.files for row in rows}:
            features = {row.asset: row.feature or b"" for row in rows if row.files == files}
            for path in files:
                if path in before:
                    assert self.worker.lying[path] == features
                self.worker.lying[path] = features
                data = (self.root / path).read_bytes()
                names = [f"{key}.hidden.npy" if path.endswith(".tar") else key.ljust(9, "\0") for key in doomed]
                assert not any(name.encode() in data for name in names)
        return rows

    def compact(self, writer: int, fate: str) -> None:
        begun, number = self.versions[-1], self.head
        self.perform(
            writer,
            fate,
            lambda store: store.compact(2) or self.head,
            lambda: store_model.compacted(self.versions[-1], begun, number),
        )

    def perform(
        self, writer: int, fate: str, call: Callable[[FeatureStore], int], effect: Callable[[], Rows | None]
    ) -> bool:
        """Do one thing to the store, as fate wills, and `effect` to the model; whether the writer was told."""
        will_write, answer = effect() is not None, None
        with pytest.MonkeyPatch.context() as patch:
            self._arrange(patch, fate, writer)
            try:
                answer = call(self.handles[writer])
            except Killed:
                assert will_write
        assert (answer is None) == (will_write and fate.startswith("killed"))
        if answer is None and fate == "killed before the log":
            return False
        rows = effect()
        if rows is not None:
            self._append(rows)
        assert answer in (None, self.head)
        if rows is not None and fate != "killed before the journal":
            copies = {path.rpartition("/")[2] for path in listing(self.root, "journal")}
            assert copies >= {f"{version:020d}" for version in range(self.head + 1)}
        return answer is not None

    def _arrange(self, patch: pytest.MonkeyPatch, fate: str, writer: int) -> None:
        create, write = DeltaTable.create_write_transaction, self.handles[writer].catalog._write

        def die(*_: Any, **__: Any) -> None:
            raise Killed

        def lose_the_answer(*args: Any, **settings: Any) -> None:
            create(*args, **settings)
            # What Delta's client says when it asks again for what it has done.
            raise CommitFailedError("a version of that number is there")

        def come_second(*args: Any) -> bool:
            patch.undo()
            self._interfere(1 - writer, fate)
            return write(*args)

        if fate == "killed before the log":
            patch.setattr(DeltaTable, "create_write_transaction", die)
        elif fate == "killed before the journal":
            patch.setattr(self.handles[writer].catalog, "_after_commit", die)
        elif fate == "answer lost":
            patch.setattr(DeltaTable, "create_write_transaction", lose_the_answer)
        elif fate != "nothing":
            patch.setattr(self.handles[writer].catalog, "_write", come_second)

    def _interfere(self, rival: int, fate: str) -> None:
        if fate == "beaten by a commit":
            self.commit(rival, "nothing", self.new_job(), self._one_of_each_task(), MANIFESTS[1])
        elif fate == "beaten by a drop":
            self.drop(rival, "nothing", {FRAMES.fingerprint: {KEYS[0], KEYS[2]}})
        else:
            self.compact(rival, "nothing")

    def _one_of_each_task(self) -> list[Written]:
        return list({work.receipt.task: work for work in self.pending}.values())

    def _append(self, rows: Rows) -> None:
        """The model's next version; its files are what the log says, and none of them is an old orphan."""
        text = (self.root / f"catalog/_delta_log/{self.head + 1:020d}.json").read_text()
        actions = [json.loads(line) for line in text.splitlines()]
        added = {action["add"]["path"] for action in actions if "add" in action}
        removed = {action["remove"]["path"] for action in actions if "remove" in action}
        for path in (self.root / place / part for part in added for place in ("catalog", "journal")):
            assert time.time() - path.stat().st_mtime < GRACE_SECONDS / 2
        self.versions.append(Version(rows, (self.versions[-1].parts - removed) | added))
        self.days_of_commits.append(self.day)

    def _aged(self, version: int, text: bytes) -> LogEntry:
        entry = parse_entry(version, text)
        days = self.day - self.days_of_commits[version] if version <= self.head else 0.0
        return msgspec.structs.replace(entry, time=entry.time - timedelta(days=days))

    # Freeing.

    def since(self, grace: float) -> int:
        """The oldest version that `gc` must keep, tags aside: it was the newest when the grace period began."""
        return max(self.kept_since, *(v for v, day in enumerate(self.days_of_commits) if self.day - day > grace), 0)

    def garbage(self, before: Listing, grace: float) -> list[str]:
        """What `gc` shall free of these files: all that is old enough and that no live version names."""
        live = {*range(self.since(grace), self.head + 1), *self.tags.values()}
        named = set().union(*(self.versions[version].files() for version in live))
        return sorted(
            path
            for path, (_, modified) in before.items()
            if time.time() - modified > grace * DAY and _is_data(path) and path not in named
        )

    def delete_unused(self, writer: int, grace: float, meanwhile: str, pick: int) -> None:
        """Free for once dryly, then really; the dry run changes nothing and knows the bytes."""
        store, before = self.handles[writer], listing(self.root)
        doomed = self.garbage(before, grace)
        planned = gc.delete_unused(store, grace_seconds=grace * DAY, dry_run=True)
        assert listing(self.root) == before
        assert (planned.files, planned.bytes) == (len(doomed), sum(before[path][0] for path in doomed))
        deleted: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            self._arrange_meanwhile(patch, meanwhile, writer, grace, pick, deleted)
            try:
                freed = gc.delete_unused(store, grace_seconds=grace * DAY)
            except Killed:
                if meanwhile == "an early kill":
                    (left,) = listing(self.root).keys() - before.keys()
                    assert left.startswith("announcements/")
                    return
                assert set(deleted) <= set(doomed)
            else:
                deleted = self.garbage(before, grace)
                assert (freed.files, freed.bytes) == (len(deleted), sum(before[path][0] for path in deleted))
        gone = before.keys() - listing(self.root).keys()
        # What a killed gc announced is taken away by the next tag.
        assert sorted(path for path in gone if not path.startswith("announcements/")) == sorted(deleted)
        # What was freed under a shorter grace period stays so.
        self.kept_since = self.since(grace)
        self.freed |= set(range(self.kept_since)) - set(self.tags.values())

    def _arrange_meanwhile(
        self, patch: pytest.MonkeyPatch, meanwhile: str, writer: int, grace: float, pick: int, deleted: list[str]
    ) -> None:
        store, other = self.handles[writer], self.handles[1 - writer]
        list_files, delete = gc._listed, store.storage.delete
        announce, begin = store.tags.announce, store.tags.begin
        doomed = sorted(set(range(self.since(grace))) - self.freed - set(self.tags.values()))
        name, version = "meanwhile", doomed[pick % len(doomed)] if doomed else None

        def list_then_commit(*args: Any) -> list[Any]:
            files = list(list_files(*args))
            self.commit(1 - writer, "nothing", self.new_job(), self._one_of_each_task(), MANIFESTS[0])
            return files

        def create_tag() -> None:
            if name not in self.tags:
                self.tags[name] = other.tags.create(name, version).version

        def announce_then_tag() -> str:
            path = announce()
            create_tag()
            return path

        def tag_then_begin(path: str, kept: GcRecord) -> bool:
            is_stopped = name not in self.tags
            create_tag()
            is_begun = begin(path, kept)
            assert is_begun is not is_stopped
            return is_begun

        def begin_then_tag(path: str, kept: GcRecord) -> bool:
            is_begun = begin(path, kept)
            with pytest.raises(NotStored, match="was deleted"):
                other.tags.create(name, version)
            return is_begun

        def die(*_: object) -> bool:
            raise Killed

        def delete_some(paths: list[str], older_than: float | None = None) -> None:
            if older_than is None:
                delete(paths)
                return
            # Where it can, between the two files of a shard or chunk.
            ends = [n for n, path in enumerate(paths, 1) if path.endswith(".tar") or "/keys/c/" in path]
            deleted.extend(paths[: ends[pick % len(ends)] if ends else len(paths) // 2])
            delete(deleted, older_than=older_than)
            raise Killed

        if meanwhile == "a commit":
            patch.setattr(gc, "_listed", list_then_commit)
        elif meanwhile == "an early kill":
            patch.setattr(store.tags, "begin", die)
        elif meanwhile == "a kill":
            patch.setattr(store.storage, "delete", delete_some)
        elif version is not None and name not in self.tags:
            if meanwhile == "an early tag":
                patch.setattr(store.tags, "announce", announce_then_tag)
            elif meanwhile == "a tag that stops it":
                patch.setattr(store.tags, "begin", tag_then_begin)
            elif meanwhile == "a late tag":
                patch.setattr(store.tags, "begin", begin_then_tag)

    # Reading.

    def check_rows(self, snapshot: Snapshot) -> None:
        """The snapshot knows the model's keys, each once, and which row counts."""
        rows = self.versions[snapshot.version].rows
        found = {info.fingerprint: (info.num_stored, info.num_rejected) for info in snapshot.feature_sets()}
        assert found == {
            name: (len(store_model.stored(rows[name])), len(store_model.rejections(rows[name], ""))) for name in rows
        }
        for name in rows:
            table = snapshot.stored(name).select(["asset", "version", "task", "shard"]).to_pylist()
            picked = store_model.stored(rows[name]).values()
            assert sorted(tuple(row.values()) for row in table) == sorted(
                (row.asset, row.version, row.task, row.shard) for row in picked
            )
            assert snapshot.keys(name) == {row.asset for row in rows[name]}
            assert snapshot.committed_tasks(name) == {row.task for row in rows[name]}

    def check(self, snapshot: Snapshot) -> None:
        """The snapshot is the model's in every byte and every rejection."""
        rows = self.versions[snapshot.version].rows
        self.check_rows(snapshot)
        assert content(snapshot) == store_model.content(rows)
        for name in rows:
            for manifest in MANIFESTS:
                table = snapshot.rejections(name, manifest).select(["asset", "reason", "source", "version"])
                found = [tuple(row.values()) for row in table.to_pylist()]
                assert len(found) == len(set(found))
                assert set(found) == store_model.rejections(rows[name], manifest)


def _digest(works: Iterable[Written]) -> list[bytes]:
    return sorted(to_json(work.receipt) for work in works)


def _files(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The files that a row of the catalog leads to."""
    if row["shard"].endswith(".tar"):
        return row["shard"], sums_path(row["shard"])
    count = shape_of(row["shard"]).chunk_rows
    return tuple(chunk_path(row["shard"], name, row["offset"] // count * count) for name in ARRAYS)


def _is_data(path: str) -> bool:
    is_part = path.startswith(("catalog/feature_set=", "journal/feature_set="))
    is_feature = path.startswith("features/") and not path.endswith(".json")
    return is_part or is_feature or "/.incoming-" in path
