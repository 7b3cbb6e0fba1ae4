"""Injuries of one file at a time: verify names it, no reader takes it for whole, repair brings it back.

One injury alone: `pytest tests/upkeep/test_injuries.py -k "shard-flip-42"`; the number is the seed.
"""

import contextlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.counts import count
from support.feature_sets import content
from support.injuries import HOWS, KINDS, TAG, Injury, Patient, make_patient
from support.stores import TEXT, TOY

from speechclip.errors import StoreError, UnsupportedStore
from speechclip.featurization.driver import Work, encode_inline
from speechclip.records import Receipt
from speechclip.store import FeatureStore, catalog
from speechclip.store.layout import digest_in, journal_path, log_path
from speechclip.upkeep.findings import keys_of
from speechclip.upkeep.repair import Repaired, repair
from speechclip.upkeep.verify import verify

INJURIES = [(KINDS[n % len(KINDS)], HOWS[n // len(KINDS) % len(HOWS)], n) for n in range(count(100, 1000))]
# Repaired to what serves as well: they hold times, or the checksums of what does.
REMADE = {"checkpoint", "last checkpoint", "journal", "tag", "collection"}


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "CHECKPOINT_EVERY", 3)
        yield make_patient(tmp_path_factory.mktemp("patient"))


@pytest.mark.parametrize(("kind", "how", "seed"), INJURIES, ids=lambda part: str(part).replace(" ", "-"))
def test_an_injury_is_detected_and_repaired(kind: str, how: str, seed: int, patient: Patient, tmp_path: Path) -> None:
    injury = patient.injury(kind, how, random.Random(seed))
    store = FeatureStore(patient.copy(tmp_path / "store"))
    injury.inflict(store.storage.root)
    if is_newer_format(store):
        # One flipped bit makes another digit of the 1.
        with pytest.raises(UnsupportedStore, match="upgrade"):
            verify(store)
        return
    lost = check_found(injury, patient, store)
    readable = check_reading(injury, patient, store)
    if lost and TEXT not in lost:
        # The source of a text is the manifest itself.
        check_unrepaired(lost, readable, patient, store)
    num_encoded: list[int] = []
    done = cure(injury, patient, store, num_encoded)
    num_lost = sum(map(len, lost.values()))
    assert (done.encoded, done.left, done.problems) == (num_lost, {}, ())
    # The plan of the vain attempt is gone on with, and a chunk of vectors is encoded whole.
    assert sum(num_encoded) == num_lost or (kind == "vectors" and sum(num_encoded) > num_lost)
    assert verify(store).findings == ()
    assert content(store.snapshot()) == patient.head
    assert content(store.snapshot(TAG)) == patient.tagged
    is_noted = kind != "shard" or injury.how != "truncate" or bool(lost)  # cut before its first notes, it gets none
    if done.repaired and is_noted and kind not in REMADE and not injury.touches(patient.unnamed):
        assert store.storage.read(injury.path) == (Path(patient.uri) / injury.path).read_bytes()


# A file and its copy, or what proves it: seldom hit by chance.
PAIRS = [
    ("part", "copy"), ("log", "journal"), ("shard", "checksums"), ("vectors", "keys"), ("checkpoint", "journal"),
    ("last checkpoint", "journal"), ("last checkpoint", "checkpoint"), ("store", "log"), ("spec", "shard"),
    ("tag", "shard"), ("journal", "part"),
]  # fmt: skip
DOUBLES = [(PAIRS[n % len(PAIRS)], n) for n in range(count(22, 66))]


@pytest.mark.parametrize(
    ("kinds", "seed"), DOUBLES, ids=lambda part: "-".join(map(str, part)) if isinstance(part, tuple) else str(part)
)
def test_two_injuries_are_found_and_repair_makes_them_no_worse(
    kinds: tuple[str, str], seed: int, patient: Patient, tmp_path: Path
) -> None:
    chance, store = random.Random(seed), FeatureStore(patient.copy(tmp_path / "store"))
    injuries = patient.twins(kinds, chance)
    for injury in injuries:
        injury.inflict(store.storage.root)
    if is_newer_format(store):
        return
    if is_unheard_of(injuries, patient):
        assert store.snapshot().version == patient.newest - 1
        return
    assert verify(store).findings or not any(map(patient.is_visible, injuries))
    readable = read(store, patient)
    done = repair(store)
    after = read(store, patient)
    assert after >= readable
    assert all("\n" not in problem for problem in done.problems)
    assert bool(verify(store).findings) <= bool(done.problems)
    if not done.problems:
        assert len(after) == len(patient.head) + len(patient.tagged)
    again = repair(store)
    assert (again.repaired, again.encoded, again.problems) == ((), 0, done.problems)
    repair(store, forget=True)
    assert read(store, patient, may_miss=bool(done.problems)) >= after


def is_unheard_of(injuries: Sequence[Injury], patient: Patient) -> bool:
    """The newest entry and its copy are gone. Nothing shows that the version ever existed."""
    paths = {injury.path for injury in injuries if injury.how == "delete"}
    return paths == {log_path(patient.newest), journal_path(patient.newest)}


def is_newer_format(store: FeatureStore) -> bool:
    try:
        store.exists()
    except UnsupportedStore:
        return True
    except StoreError:
        return False
    return False


def check_found(injury: Injury, patient: Patient, store: FeatureStore) -> dict[str, set[str]]:
    """Check that the findings are this injury and nothing else. Returns the keys that must be encoded again."""
    findings = verify(store).findings
    if injury.kind == "manifest" and not findings and injury.how != "delete":
        # The flipped bit lies in what Parquet says of the rows, not in the rows.
        digest = digest_in(injury.path)
        assert store.read_manifest(digest).table == FeatureStore(patient.uri).read_manifest(digest).table
        return {}
    place = injury.path.partition(".zarr/")[0] + ".zarr" if injury.kind == "metadata" else injury.path
    assert [finding.path for finding in findings] == [place] * patient.is_visible(injury)
    lost = keys_of(findings)
    assert not lost or injury.kind in ("shard", "vectors")
    if injury.kind == "shard" and injury.how == "flip":
        assert sum(map(len, lost.values())) == injury.touches(patient.named)
    if injury.kind == "vectors" and injury.how == "flip":
        assert sum(map(len, lost.values())) <= 1
    return lost


def check_reading(injury: Injury, patient: Patient, store: FeatureStore) -> set[tuple[str, str, str]]:
    """Check that each feature is read as it was or refused. Returns those that can be read, of both versions."""
    readable = read(store, patient)
    num_features = len(patient.head) + len(patient.tagged)
    assert len(readable) < num_features if patient.is_vital(injury) else len(readable) <= num_features
    return readable


def read(store: FeatureStore, patient: Patient, *, may_miss: bool = False) -> set[tuple[str, str, str]]:
    """The (version, feature set, key) of all that comes out as it was made; no error but ours is suffered.

    Unless it `may_miss` some, a snapshot that can be read names all that it should.
    """
    found = set()
    for version, original in (("newest", patient.head), (TAG, patient.tagged)):
        for name in {name for name, _ in original}:
            with contextlib.suppress(StoreError):
                features = store.snapshot(None if version == "newest" else version).feature_set(name)
                named, expected = set(features), {key for other, key in original if other == name}
                assert named == expected or (may_miss and named < expected)
                for key in features:
                    with contextlib.suppress(StoreError):
                        assert features[key].tobytes() == original[name, key]
                        found.add((version, name, key))
    return found


def check_unrepaired(
    lost: dict[str, set[str]], readable: set[tuple[str, str, str]], patient: Patient, store: FeatureStore
) -> None:
    """Check that a repair without sources reports what is lost and makes nothing worse."""
    with sources_gone(patient):
        done = repair(store)
    assert (done.encoded, {name: set(keys) for name, keys in done.left.items()}) == (0, lost)
    assert ["put the sources back" in problem for problem in done.problems] == [True]
    utterances = {row["utterance"] for manifest in store.manifests() for row in manifest.rows()}
    assert any(f"first utterance {name} (" in done.problems[0] for name in utterances)
    assert keys_of(verify(store).findings) == lost
    assert read(store, patient) >= readable


@contextlib.contextmanager
def sources_gone(patient: Patient) -> Iterator[None]:
    here, elsewhere = patient.corpus.parent, patient.corpus.parent.with_name("elsewhere")
    here.rename(elsewhere)
    try:
        yield
    finally:
        elsewhere.rename(here)


def cure(injury: Injury, patient: Patient, store: FeatureStore, num_encoded: list[int]) -> Repaired:
    """Repair, with a manifest or encoder from the user where needed. Counts the assets that each task encodes."""

    def encode(work: Work) -> Iterator[Receipt]:
        for receipt in encode_inline(work):
            num_encoded.append(receipt.num_encoded)
            yield receipt

    if injury.kind == "tag":
        store.tags.delete(TAG)
        store.tags.create(TAG, patient.tagged_version)
    whole = FeatureStore(patient.uri)
    manifests = list(whole.manifests()) if injury.kind == "manifest" else []
    encoders = [(request, request.build().spec) for request in TOY] if injury.kind == "spec" else []
    return repair(store, encode, manifests=manifests, encoders=encoders)
