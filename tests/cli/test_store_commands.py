"""history, tag, drop and gc as a person types them, and a version pinned by its tag."""

import functools
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.feature_sets import content
from support.stores import IMAGE, SPEECH, TEXT, featurize, fill, synthetic

from speechclip.cli import main
from speechclip.errors import Damaged
from speechclip.featurization.driver import survey
from speechclip.featurization.rejections import list_rejected
from speechclip.store import FeatureStore
from speechclip.store.layout import STORE_FILE, journal_path, log_path, tag_path


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return fill(str(tmp_path / "store"))


def run(store: FeatureStore, *arguments: object) -> int:
    """One command on this store; its exit code."""
    try:
        main([str(argument) for argument in (arguments[0], "--store", store.storage.root, *arguments[1:])])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_history_says_when_which_run_and_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began, uri = datetime.now(UTC), str(tmp_path / "store")
    summary, store = featurize(uri), FeatureStore(uri)
    run(store, "tag", "first", 1)
    run(store, "drop", TEXT)
    capsys.readouterr()
    assert run(store, "history", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["version"] for row in rows] == list(range(len(rows) - 1, -1, -1))
    assert rows[0]["note"]["operation"] == "drop"
    assert rows[0]["note"]["parts"][0]["removed"] == 6
    assert sum(part["stored"] for row in rows if row["note"] for part in row["note"]["parts"]) == 30
    assert rows[-2]["tags"] == ["first"]
    times = [datetime.fromisoformat(row["time"]) for row in reversed(rows)]
    # Delta counts milliseconds.
    assert began - timedelta(milliseconds=1) <= times[0]
    assert times == sorted(times)
    assert times[-1] <= datetime.now(UTC)
    runs = [row["note"]["run"] for row in rows if row["note"]]
    assert set(runs[1:]) == {summary.job}
    assert runs[0] not in ("", summary.job)
    assert run(store, "history", "-n", 2) == 0
    shown = capsys.readouterr().out
    assert TEXT in shown
    for words in (summary.job, f"{times[-1]:%Y-%m-%d %H:%M:%S}"):
        assert words in shown
    assert len(shown.splitlines()) >= 3


def test_a_table_without_rows_says_what_that_means(store: FeatureStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(store, "tag") == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (
        "",
        "there is no tag yet; `speechclip tag NAME` makes one for the newest version\n",
    )
    manifest = Path(store.storage.root).parent / "m.parquet"
    synthetic().write(str(manifest))
    assert run(store, "rejected", "--manifest", manifest) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "nothing of this manifest is rejected\n")


def test_one_is_counted_as_one(store: FeatureStore, capsys: pytest.CaptureFixture[str]) -> None:
    Path(store.storage.address(f"features/{SPEECH}/.incoming-1")).write_bytes(b"?")
    assert run(store, "gc", "--now", "--dry-run") == 0
    assert "would delete 1 file with 1 byte (" in capsys.readouterr().err
    assert run(store, "gc", "--now") == 0
    assert "deleted 1 file with 1 byte (" in capsys.readouterr().err
    assert run(store, "gc", "--now") == 0
    assert "deleted 0 files with 0 bytes (" in capsys.readouterr().err


def test_a_tag_pins_what_export_reads(store: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "m.parquet"
    synthetic().write(str(manifest))
    run(store, "tag", "paper")
    run(store, "drop", IMAGE)
    run(store, "gc", "--now")
    out = tmp_path / "out"
    main(["export", "webdataset", "--store", store.storage.root, "--manifest", str(manifest), "--version", "paper",
          "--out", str(out)])  # fmt: skip
    assert "18 utterances" in capsys.readouterr().err
    assert run(store, "tag") == 0
    assert "paper" in capsys.readouterr().out
    assert run(store, "tag", "--delete", "paper") == 0
    assert run(store, "tag", "--delete", "paper") == 1
    assert "no tag 'paper'" in capsys.readouterr().err


def test_drop_then_gc_frees_what_dry_run_said(store: FeatureStore, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(store.snapshot())
    assert run(store, "drop", "--dry-run", SPEECH) == 0
    assert content(store.snapshot()) == before
    assert run(store, "drop", SPEECH, "--json") == 0
    capsys.readouterr()
    assert run(store, "gc", "--json") == 0
    assert json.loads(capsys.readouterr().out)["files"] == 0
    assert run(store, "gc", "--now", "--dry-run", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert run(store, "gc", "--now", "--json") == 0
    assert json.loads(capsys.readouterr().out) == said
    assert said["files"] > 0
    assert content(store.snapshot()) == {key: value for key, value in before.items() if key[0] != SPEECH}


def test_a_drop_tells_what_stays_and_what_comes_back(
    store: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic().write(str(tmp_path / "m.parquet"))
    version = store.tags.create("paper", store.snapshot().version).version
    assert run(store, "drop", TEXT) == 0
    shown = capsys.readouterr().err
    assert f"tag paper keeps version {version} with them; `speechclip tag --delete paper` ends this" in shown
    assert "--erase" not in shown
    assert "again" not in shown
    assert run(store, "drop", "--manifest", tmp_path / "m.parquet", SPEECH) == 0
    assert "`speechclip featurize` with this manifest would encode them again" in capsys.readouterr().err


def test_a_speaker_is_erased(store: FeatureStore, tmp_path: Path) -> None:
    manifest = tmp_path / "m.parquet"
    synthetic().write(str(manifest))
    speaker = synthetic().rows()[0]["speaker"]
    said = {row["speech_key"] for row in synthetic().rows() if row["speaker"] == speaker}
    assert run(store, "drop", "--manifest", manifest, "--speaker", speaker, "--erase") == 0
    assert store.snapshot().stored_keys(SPEECH) == {a.key for a in synthetic().assets("speech")} - said
    assert len(store.snapshot().stored_keys(IMAGE)) == 6
    run(store, "gc", "--now")
    assert not [p for p in store.storage.list("features") for key in said if key.encode() in store.storage.read(p)]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("drop",), 2, "name a FEATURE_SET or a --manifest"),
        (("drop", "--speaker", "x", SPEECH), 2, "--speaker needs a --manifest"),
        (("drop", "no-such-set"), 1, "no feature set fits 'no-such-set'"),
        (("tag", "paper", "99"), 1, "no catalog version 99"),
        (("tag", "7up"), 1, "take a letter"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(
    store: FeatureStore, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, says: str
) -> None:
    assert run(store, *arguments) == code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("command", ["history", "tag", "gc", "verify"])
def test_a_place_without_a_store_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert run(FeatureStore(str(tmp_path / "nothing")), command) == 1
    assert "no feature store here" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()


def test_a_damaged_tag_hides_no_other(store: FeatureStore, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("good", "torn"):
        run(store, "tag", name)
    torn = Path(store.storage.address(tag_path("torn")))
    torn.write_bytes(torn.read_bytes()[:9])
    capsys.readouterr()
    assert run(store, "tag") == 1
    shown = capsys.readouterr()
    assert ("good" in shown.out, "torn" in shown.out, tag_path("torn") in shown.err) == (True, False, True)
    assert run(store, "history", "-n", 9) == 0
    assert "good" in capsys.readouterr().out
    assert run(store, "tag", "other", "goood") == 1
    assert "no tag 'goood'; name one of these: good" in capsys.readouterr().err
    assert run(store, "tag", "--delete", "torn") == 0
    assert run(store, "tag") == 0


@pytest.mark.parametrize("command", ["history", "tag", "gc", "drop"])
def test_a_store_that_lost_its_own_file_is_damaged_not_absent(
    store: FeatureStore, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    Path(store.storage.address(STORE_FILE)).unlink()
    assert run(store, command, *([TEXT] if command == "drop" else [])) == 1
    assert f"{STORE_FILE}: the file is gone" in capsys.readouterr().err
    for look in (lambda: survey(store, synthetic(), []), lambda: list_rejected(store, synthetic())):
        with pytest.raises(Damaged, match="run `speechclip repair`"):
            look()
    assert run(store, "repair", "--inline") == 0
    assert run(store, "history") == 0


def test_rows_lost_with_their_copy_are_given_up_only_when_told(
    store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    before, version = content(store.snapshot()), store.snapshot().version
    for path in list(store.storage.list("")):
        if f"feature_set={SPEECH}/" in path:
            Path(store.storage.address(path)).unlink()
    assert run(store, "repair", "--inline") == 3
    assert "repair --forget" in capsys.readouterr().err
    assert store.snapshot().version == version
    assert run(store, "repair", "--inline", "--forget") == 3
    # What versions of the last seven days need is told until those are over.
    told = capsys.readouterr().err
    assert "`speechclip gc` deletes nothing of its feature set" in told
    assert f"forgot catalog/feature_set={SPEECH}/" in told
    assert {info.fingerprint for info in store.snapshot().feature_sets()} == {IMAGE, TEXT}
    assert fill(store.storage.root).snapshot().version > version
    assert content(store.snapshot()) == before
    assert run(store, "gc", "--now") == 0
    assert run(store, "verify") == 0


def test_a_log_shorter_than_its_tags_is_not_built_upon(
    store: FeatureStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = store.snapshot().version
    run(store, "tag", "paper")
    for path in (log_path(newest), journal_path(newest)):
        Path(store.storage.address(path)).unlink()
    # A compaction comes before all else.
    monkeypatch.setattr(FeatureStore, "compact", functools.partialmethod(FeatureStore.compact, 2))
    with pytest.raises(Damaged, match=rf"tag paper names catalog version {newest}.*entries of the log are lost"):
        fill(store.storage.root)
    capsys.readouterr()
    for command in (("drop", TEXT), ("drop", TEXT, "--erase"), ("gc",), ("gc", "--now"), ("verify",)):
        assert run(store, *command) == 1, command
    assert run(store, "repair", "--inline", "--forget") == 3
    assert "delete the tag by `speechclip tag --delete paper`" in capsys.readouterr().err
    assert run(store, "tag", "other", newest) == 1
    assert store.snapshot().version == newest - 1
    assert run(store, "tag", "--delete", "paper") == 0
    fill(store.storage.root)
    assert run(store, "verify") == 0


def test_a_speaker_who_was_dropped_can_still_be_erased(
    tmp_path: Path, store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic().write(str(tmp_path / "m.parquet"))
    speaker, before = synthetic().rows()[0]["speaker"], content(store.snapshot())
    said = {row["speech_key"] for row in synthetic().rows() if row["speaker"] == speaker}
    who = ("drop", "--manifest", tmp_path / "m.parquet", "--speaker", speaker)
    assert run(store, *who) == 0
    assert "--erase" in capsys.readouterr().err
    assert run(store, *who, "--erase") == 0
    assert "shared shards rewritten" in capsys.readouterr().err
    assert run(store, "gc", "--now") == 0
    left = b"".join(store.storage.read(path) for path in store.storage.list("features"))
    assert not any(key.encode() in left for key in said)
    assert content(store.snapshot()) == {place: data for place, data in before.items() if place[1] not in said}
