"""verify and repair as a person types them, and what every command says of a store that is damaged."""

import json
import shutil
from pathlib import Path

import pytest
from support.feature_sets import content
from support.injuries import Injury, forge
from support.stores import IMAGE, SPEECH, fill, synthetic

from speechclip.cli import main
from speechclip.store import FeatureStore
from speechclip.store.layout import STORE_FILE, data_file_path, journal_path, log_path, spec_path

TOY = ("--speech", "toy", "--image", "toy", "--text", "toy", "--codec", "fp32")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(fill(str(tmp_path_factory.mktemp("whole") / "store")).storage.root)


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> FeatureStore:
    synthetic().write(str(tmp_path / "m.parquet"))
    return FeatureStore(str(shutil.copytree(whole, tmp_path / "store")))


def run(store: FeatureStore | Path, *arguments: object) -> int:
    """One command on this store; its exit code."""
    uri = store if isinstance(store, Path) else store.storage.root
    try:
        main([str(argument) for argument in (*arguments, "--store", uri)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def shard_of(store: FeatureStore, row: int = 0) -> dict[str, object]:
    found: dict[str, object] = store.snapshot().stored(SPEECH).to_pylist()[row]
    return found


def test_verify_of_a_whole_store_says_what_it_read(store: FeatureStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(store, "verify", "--json", "--recompute", 6) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["report"]["assets"], found["report"]["findings"]) == (30, [])
    assert sum(part["assets"] for part in found["recomputed"]) == 6
    assert all(part["largest_difference"] <= part["bound"] for part in found["recomputed"])
    assert run(store, "verify", "--recompute", 2) == 0
    shown = capsys.readouterr()
    assert "0 damaged or gone" in shown.err
    assert "encoded again, largest difference" in shown.err


def test_verify_and_repair_tell_the_file_and_the_number(
    store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    before, row = content(store.snapshot()), shard_of(store)
    Injury("shard", str(row["shard"]), "flip", 8 * int(str(row["offset"]))).inflict(store.storage.root)
    Injury("store", STORE_FILE, "delete").inflict(store.storage.root)
    assert run(store, "verify") == 1
    shown = capsys.readouterr()
    assert STORE_FILE in shown.out
    assert "damaged or gone: 1 file, the rest unchecked; run `speechclip repair`" in shown.err
    assert run(store, "repair", "--inline") == 0
    shown = capsys.readouterr()
    assert f"repaired {STORE_FILE}: the file is gone" in shown.err
    assert "1 file repaired, 1 asset encoded again" in shown.err
    assert run(store, "verify", "--json") == 0
    assert content(store.snapshot()) == before
    Injury("shard", str(row["shard"]), "flip", 8 * int(str(row["offset"]))).inflict(store.storage.root)
    assert run(store, "verify", "--json") == 1
    shown = capsys.readouterr()
    assert [finding["path"] for finding in json.loads(shown.out.splitlines()[-1])["report"]["findings"]] == [
        row["shard"]
    ]
    assert "damaged or gone: 1 file, to be encoded again: 1 asset; run `speechclip repair`" in shown.err
    assert run(store, "repair", "--inline", "--json") == 0
    assert json.loads(capsys.readouterr().out)["encoded"] == 1


def test_a_repair_without_sources_ends_with_3_and_names_what_is_left(
    store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    store.storage.delete(list(store.storage.list("manifests")))
    row = shard_of(store)
    Injury("shard", str(row["shard"]), "flip", 8 * int(str(row["offset"]))).inflict(store.storage.root)
    assert run(store, "repair", "--inline", "--json") == 3
    shown = capsys.readouterr()
    assert json.loads(shown.out)["left"] == {SPEECH: [row["asset"]]}
    assert "put the sources back" in shown.err
    manifest = Path(store.storage.root).parent / "m.parquet"
    assert run(store, "repair", "--inline", "--manifest", manifest) == 0
    assert run(store, "verify") == 0


def test_a_repair_takes_the_words_of_a_lost_spec(store: FeatureStore, capsys: pytest.CaptureFixture[str]) -> None:
    Injury("spec", spec_path(IMAGE), "truncate", 9).inflict(store.storage.root)
    assert run(store, "repair", "--inline") == 3
    assert spec_path(IMAGE) in capsys.readouterr().err
    assert run(store, "repair", "--inline", "--image", "toy", "--codec", "fp32") == 0
    assert run(store, "verify") == 0


def test_features_that_were_changed_with_their_checksums_are_caught_by_recompute(
    store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    forge(store, SPEECH, str(shard_of(store)["asset"]), 1 + 1e-4)
    assert run(store, "verify") == 0
    capsys.readouterr()
    assert run(store, "verify", "--recompute", 100) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{SPEECH}: features encoded again differ beyond the bound" in error


@pytest.mark.parametrize("command", ["verify", "repair", "history", "gc"])
def test_a_place_without_a_store_is_named(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "nothing", command) == 1
    assert "no feature store here; run `speechclip featurize`" in one_error(capsys)
    assert not (tmp_path / "nothing").exists()


DAMAGED = ["store", "spec", "part", "log", "table", "journal"]


@pytest.mark.parametrize("how", ["empty", "junk", "flip", "gone"])
@pytest.mark.parametrize("what", DAMAGED)
def test_every_command_says_one_sentence_of_a_damaged_store(
    store: FeatureStore, what: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, newest = content(store.snapshot()), store.snapshot().version
    paths = {
        "store": STORE_FILE,
        "spec": spec_path(IMAGE),
        "part": data_file_path(store.catalog.paths(newest)[0]),
        "log": log_path(newest),
        "table": log_path(0),
        "journal": journal_path(newest),
    }
    damage(Path(store.storage.root) / paths[what], how)
    manifest = Path(store.storage.root).parent / "m.parquet"
    for command in (
        ("plan", "--manifest", manifest, *TOY),
        ("rejected", "--manifest", manifest),
        ("history",),
        ("export", "webdataset", "--manifest", manifest, "--out", manifest.parent / "out"),
        ("verify",),
        ("drop", SPEECH, "--dry-run"),
        ("gc", "--dry-run"),
        ("featurize", "--inline", "--manifest", manifest, *TOY),
    ):
        code = run(store, *command)
        assert code in (0, 1), command
        if code:
            one_error(capsys)
        capsys.readouterr()
    assert run(store, "repair", "--inline", *TOY) == 0, one_error(capsys)
    assert run(store, "verify") == 0, one_error(capsys)
    assert content(store.snapshot()) == before


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.unlink()
    if how != "gone":
        path.write_bytes({"empty": b"", "junk": b"\xff\x00 junk", "flip": bytes(data)}[how])


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on stderr."""
    shown = capsys.readouterr().err
    *others, last = shown.splitlines()
    assert last.startswith("error: "), shown
    assert not [line for line in others if "error" in line.lower() or "Traceback" in line]
    return last


@pytest.mark.parametrize("how", ["empty", "junk", "flip", "gone"])
def test_a_damaged_plan_does_not_stop_the_run(
    store: FeatureStore, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(store.snapshot())
    store.drop({SPEECH: sorted(store.snapshot().stored_keys(SPEECH))[:5]})
    damage(Path(store.storage.root) / next(store.storage.list("plans")), how)
    manifest = Path(store.storage.root).parent / "m.parquet"
    assert run(store, "featurize", "--inline", "--manifest", manifest, *TOY, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["encoded"] == 5
    assert content(store.snapshot()) == before
