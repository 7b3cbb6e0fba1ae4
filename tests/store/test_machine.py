"""The store against a dict: any order of commits, reads, tags, drops, `gc` runs, kills and races ends the same.

A failure prints the program that leads to it. CI uses the same seeds each time. The long run uses others, which are
part of its tests' names: put one in SEEDS to repeat it.
"""

import os
import random

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from support.counts import count
from support.modelled_store import DAY, FATES, MEANWHILE, ModelledStore
from support.store_model import KEYS, MANIFESTS, SPECS, TASKS, stored

from speechclip.errors import InvalidInput, NotStored
from speechclip.store import FeatureStore
from speechclip.store.grace import GRACE_SECONDS
from speechclip.upkeep.verify import verify

GRACE = GRACE_SECONDS / DAY
REASONS = ("silent", "source-missing")
# After ten examples Hypothesis mostly varies the one before. Ten examples from each of several seeds differ more.
NUM_EXAMPLES = 10
# The workers of one run must know the same tests.
CHANCE = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID"))
SEEDS = [*range(5)] if count(1, 0) else [CHANCE.randrange(2**32) for _ in range(30)]
SETS = [(name,) for name in sorted(SPECS)] + [tuple(sorted(SPECS)), ()]

tasks = st.sampled_from(sorted(TASKS))
groups = st.lists(tasks, min_size=1, max_size=2, unique=True)
rejections = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(REASONS), max_size=2)
two = st.sampled_from([0, 1])
manifests = st.sampled_from(MANIFESTS)
fates = st.sampled_from(FATES)
some_keys = st.sets(st.sampled_from(KEYS), max_size=3)
names = st.sampled_from(["first", "second", "meanwhile"])
# No sum of these is near the grace period or half of it.
waits = st.sampled_from([0.0, 1.2, 3.0, 4.1, 8.3])


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = ModelledStore()
        self.checked = -1

    def teardown(self) -> None:
        self.store.close()

    @initialize(first=groups, second=groups, days=waits)
    def begin(self, first: list[str], second: list[str], days: float) -> None:
        self.featurize(first, {}, 0, 0, MANIFESTS[0], 0.0)
        self.featurize(second, {}, 1, 1, MANIFESTS[1], days)

    @rule(group=groups, rejected=rejections, machine=two, writer=two, manifest=manifests, days=waits)
    def featurize(
        self, group: list[str], rejected: dict[str, str], machine: int, writer: int, manifest: str, days: float
    ) -> None:
        self.store.let_time_pass(days)
        works = [self.store.worker.write(task, rejected, machine, self.store.day) for task in group]
        assert self.store.commit(writer, "nothing", self.store.new_job(), works, manifest)

    @rule(task=tasks, rejected=rejections, machine=two, num_files=st.sampled_from([0, 1, 9]))
    def write(self, task: str, rejected: dict[str, str], machine: int, num_files: int) -> None:
        work = self.store.worker.write_until_killed(task, rejected, machine, self.store.day, num_files)
        self.store.pending += [work] if work else []

    @rule(task=tasks, rejected=rejections, machine=two, picks=st.sets(st.integers(0, 3)),
          run=st.sampled_from(["a", "b"]), writer=two, fate=fates, manifest=manifests)  # fmt: skip
    def commit(
        self, task: str, rejected: dict[str, str], machine: int, picks: set[int], run: str, writer: int, fate: str,
        manifest: str,
    ) -> None:  # fmt: skip
        pending = self.store.pending
        pending.append(self.store.worker.write(task, rejected, machine, self.store.day))
        chosen = [pending[-1 - pick % len(pending)] for pick in sorted(picks)]
        works = list({work.receipt.task: work for work in chosen}.values())
        if self.store.commit(writer, fate, run, works, manifest):
            self.store.pending = [work for work in pending if work not in works]

    @rule(group=groups, rejected=rejections, machine=two, damaged=some_keys, writer=two, fate=fates,
          manifest=manifests)  # fmt: skip
    def repair(
        self, group: list[str], rejected: dict[str, str], machine: int, damaged: set[str], writer: int, fate: str,
        manifest: str,
    ) -> None:  # fmt: skip
        works = [self.store.worker.write(task, rejected, machine, self.store.day) for task in group]
        self.store.replace(writer, fate, works, manifest, damaged)

    @rule(back=st.integers(0, 9), writer=two, manifest=manifests)
    def commit_again(self, back: int, writer: int, manifest: str) -> None:
        run, works = self.store.landed[-1 - back % len(self.store.landed)]
        self.store.commit(writer, "nothing", run, works, manifest)

    @rule(sets=st.sampled_from(SETS), keys=st.none() | some_keys, writer=two, fate=fates)
    def drop(self, sets: tuple[str, ...], keys: set[str] | None, writer: int, fate: str) -> None:
        self.store.drop(writer, fate, dict.fromkeys(sets, keys))

    @rule(sets=st.sampled_from(SETS), keys=some_keys, writer=two, is_killed=st.booleans())
    def erase(self, sets: tuple[str, ...], keys: set[str], writer: int, is_killed: bool) -> None:
        there = self.store.versions[-1].rows
        self.store.erase(writer, {name: keys for name in sets if name in there}, is_killed=is_killed)

    @rule(writer=two, fate=fates)
    def compact(self, writer: int, fate: str) -> None:
        self.store.compact(writer, fate)

    @rule(name=names, back=st.integers(0, 12), writer=two)
    def tag(self, name: str, back: int, writer: int) -> None:
        tags, version = self.store.handles[writer].tags, max(0, self.store.head - back)
        if self.store.tags.get(name, version) != version:
            with pytest.raises(InvalidInput, match="names version"):
                tags.create(name, version)
            tags.delete(name)
            del self.store.tags[name]
        elif version in self.store.freed:
            with pytest.raises(NotStored, match="was deleted"):
                tags.create(name, version)
        else:
            assert tags.create(name, version).version == version
            self.store.tags[name] = version
        assert {tag.name: tag.version for tag in tags.list()} == self.store.tags

    @rule(days=waits)
    def wait(self, days: float) -> None:
        self.store.let_time_pass(days)

    @rule(days=waits, is_at_once=st.booleans(), writer=two, meanwhile=st.sampled_from(MEANWHILE), task=tasks,
          pick=st.integers(0, 12))  # fmt: skip
    def gc(self, days: float, is_at_once: bool, writer: int, meanwhile: str, task: str, pick: int) -> None:
        if meanwhile == "a commit":
            self.write(task, {}, 0, 9)
        self.store.let_time_pass(60 / DAY if is_at_once else days)
        self.store.delete_unused(writer, 0.0 if is_at_once else GRACE, meanwhile, pick)
        if is_at_once:
            # By this option the caller says that no worker is at work.
            self.store.pending = []
        for version in {self.store.head, *self.store.tags.values()}:
            self.store.check(self.store.handles[0].snapshot(version))

    @rule(version=st.none() | st.integers(0, 30) | names, reader=two)
    def read(self, version: int | str | None, reader: int) -> None:
        store = self.store.handles[reader]
        if isinstance(version, int):
            version = max(0, self.store.head - version)
        if isinstance(version, str) and version not in self.store.tags:
            with pytest.raises(NotStored, match="no tag"):
                store.snapshot(version)
        elif version in self.store.freed:
            with pytest.raises(NotStored, match="was deleted"):
                store.snapshot(version)
        else:
            number = self.store.head if version is None else self.store.tags.get(str(version), version)
            snapshot = store.snapshot(version)
            assert snapshot.version == number
            self.store.check(snapshot)
            if version is None:
                self.check_verified(store)

    def check_verified(self, store: FeatureStore) -> None:
        report = verify(store)
        versions = sorted({self.store.head, *self.store.tags.values()})
        places = {
            (name, row.asset, row.files)
            for version in versions
            for name, rows in self.store.versions[version].rows.items()
            for row in stored(rows).values()
        }
        assert report.findings == ()
        assert report.versions == tuple(versions)
        assert report.assets == len(places)
        assert report.files == len({path for _, _, files in places for path in files})

    @invariant()
    def the_newest_version_is_the_models(self) -> None:
        log = sorted(name for name in os.listdir(self.store.root / "catalog/_delta_log") if name.endswith(".json"))
        assert log == [f"{version:020d}.json" for version in range(self.store.head + 1)]
        if self.checked != self.store.head:
            snapshot = self.store.handles[0].snapshot()
            assert snapshot.version == self.store.head
            self.store.check_rows(snapshot)
            self.checked = self.store.head


@pytest.mark.parametrize("number", SEEDS)
def test_a_store_and_a_dict_end_the_same_whatever_happens_to_both(number: int) -> None:
    run_state_machine_as_test(
        seed(number)(type("SeededMachine", (StoreMachine,), {})),
        settings=settings(
            max_examples=NUM_EXAMPLES,
            stateful_step_count=count(30, 100),
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
