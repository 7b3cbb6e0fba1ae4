"""Hostile inputs through the whole program: ingest a table, change its files, featurize, check the ledger."""

import contextlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.hostile_inputs import CASES, KEPT, STORED, Case, ended_pipes, without_privileges

from speechclip.cli import main
from speechclip.errors import REASONS, Rejected, SourceProblem
from speechclip.featurization.driver import survey
from speechclip.manifest import Manifest
from speechclip.store import FeatureStore

COLUMNS = {"audio": "speech", "image": "image", "text": "text"}
TOY = ("--speech", "toy", "--image", "toy", "--text", "toy")
BY_SOURCE = {kind.reason for kind in SourceProblem.__subclasses__()}


@dataclass
class Road:
    """The results of one ingest and one featurize job over all cases."""

    folder: Path
    manifest: Manifest
    store: FeatureStore
    summary: dict[str, Any]
    rejected: list[dict[str, Any]]
    said: str

    @property
    def options(self) -> list[str]:
        return ["--manifest", str(self.folder / "m.parquet"), "--store", self.store.storage.root]


def run(*arguments: str) -> tuple[bytes, str]:
    """The output of a command on stdout and on stderr."""
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        main(list(arguments))
    out.flush()
    return out.buffer.getvalue(), err.getvalue()


def row_of(case: Case) -> dict[str, Any]:
    cell = case.text if case.column == "text" else case.file or f"{case.name.replace('/', '-')}.bin"
    bounds = {name: value for name, value in (("start", case.start), ("end", case.end)) if value is not None}
    return {"id": case.name, "split": "train", case.column: cell} | bounds


def path_of(folder: Path, case: Case) -> Path:
    return folder / str(row_of(case)[case.column])


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    folder = tmp_path_factory.mktemp("hostile")
    files = [case for case in CASES if case.column != "text"]
    for case in files:
        case.make(path_of(folder, case))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row_of(case)) + "\n" for case in CASES))
    with pytest.MonkeyPatch.context() as patch, without_privileges():
        patch.setenv("PATH", "")  # no ffmpeg, even if the machine has one
        options = ["--manifest", str(folder / "m.parquet"), "--store", str(folder / "store")]
        with ended_pipes(folder):
            _, said = run("ingest", "table", str(folder / "rows.jsonl"), "--out", str(folder / "m.parquet"))
        for case in files:
            if case.later:
                case.later(path_of(folder, case))
        with ended_pipes(folder):
            summary, _ = run("featurize", "--inline", *options, *TOY, "--json", "--max-rejected", "1")
        rejected, _ = run("rejected", *options, "--json")
    yield Road(
        folder,
        Manifest.read(str(folder / "m.parquet")),
        FeatureStore(str(folder / "store")),
        json.loads(summary),
        json.loads(rejected),
        said,
    )
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def rows(road: Road) -> dict[str, dict[str, Any]]:
    return {row["utterance"]: row for row in road.manifest.rows()}


@pytest.fixture(scope="module")
def stored(road: Road) -> set[tuple[str, str]]:
    snapshot = road.store.snapshot()
    return {
        (info.spec.modality, key) for info in snapshot.feature_sets() for key in snapshot.stored_keys(info.fingerprint)
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_hostile_input_has_its_named_outcome(
    case: Case, road: Road, rows: dict[str, dict[str, Any]], stored: set[tuple[str, str]]
) -> None:
    row = rows[case.name]
    problem = row[f"{case.column}_error"] if case.column != "text" else None
    assert (problem.partition(": ")[0] if problem else KEPT) == case.at_ingest
    entries = [entry for entry in road.rejected if case.name in entry["utterances"]]
    is_stored = (COLUMNS[case.column], row[f"{COLUMNS[case.column]}_key"]) in stored
    assert [entry["reason"] for entry in entries] == ([] if is_stored else [case.outcome])
    assert is_stored == (case.outcome == STORED)


def test_there_are_sixty_cases_and_more_each_with_an_asset_of_its_own(rows: dict[str, dict[str, Any]]) -> None:
    assert len(CASES) == len({case.name for case in CASES}) == len(rows) > 60
    assert {case.outcome for case in CASES} == {STORED, *REASONS}
    for column, modality in COLUMNS.items():
        keys = [rows[case.name][f"{modality}_key"] for case in CASES if case.column == column]
        assert max(Counter(key for key in keys if key).values()) == 1


def test_the_job_went_on_beside_every_one_of_them(road: Road) -> None:
    """There is one shard and one chunk of each kind of vector, so one task held the good assets and the bad ones."""
    outcomes = Counter(case.outcome == STORED for case in CASES)
    ledger = tuple(road.summary[name] for name in ("planned", "stored_before", "encoded", "rejected", "missing"))
    assert ledger == (len(CASES), 0, outcomes[True], outcomes[False], 0)
    for info in road.store.snapshot().feature_sets():
        assert len(road.store.snapshot().committed_tasks(info.fingerprint)) == 1


def test_a_rejection_names_utterance_source_decoder_and_what_to_do(road: Road) -> None:
    for entry in road.rejected:
        (case,) = [case for case in CASES if case.name in entry["utterances"]]
        is_at_ingest = case.at_ingest != KEPT
        assert entry["feature_set"].startswith("" if is_at_ingest else f"toy-untrained-{COLUMNS[case.column]}-")
        assert entry["source"] == (case.text if case.column == "text" else str(path_of(road.folder, case)))
        judge = {"audio": "(libsndfile ", "image": "(Pillow ", "text": "is only white space"}[case.column]
        assert (judge in entry["detail"]) == (case.outcome not in BY_SOURCE), entry
        assert "Error" not in entry["reason"]
        assert "Traceback" not in entry["detail"]


def test_ingest_names_row_and_utterance_of_each_source_that_it_could_not_read(road: Road) -> None:
    lines = road.said.splitlines()
    bad = [number for number, case in enumerate(CASES, start=1) if case.at_ingest != KEPT]
    shown = [line for line in lines if line.startswith("row ")]
    assert [int(line.split()[1]) for line in shown] == bad[:10]
    assert shown[0].startswith(f"row {bad[0]} ({CASES[bad[0] - 1].name}): {CASES[bad[0] - 1].at_ingest}: ")
    assert f"... and {len(bad) - 10} more sources" in road.said


def test_a_recording_of_three_hours_is_rejected_without_decoding_it(road: Road) -> None:
    import tracemalloc

    from speechclip.media.decode import decode_audio

    data = path_of(road.folder, next(case for case in CASES if case.name == "three hours")).read_bytes()
    tracemalloc.start()
    with pytest.raises(Rejected, match="10800000 samples at 1000 Hz, more than the 120 s"):
        decode_audio(data, name="x", max_seconds=120)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(data) + (4 << 20), "three hours as float32 take 43 MB, at 16 kHz 691 MB"


def test_a_second_job_encodes_nothing_and_reports_the_same(road: Road) -> None:
    out, _ = run("featurize", "--inline", *road.options, *TOY, "--json", "--max-rejected", "1")
    again = json.loads(out)
    assert (again["encoded"], again["rejected"], again["missing"]) == (0, road.summary["rejected"], 0)
    assert again["stored_before"] == road.summary["encoded"]
    listed, _ = run("rejected", *road.options, "--json")
    assert json.loads(listed) == road.rejected


def test_a_rejection_by_bytes_is_for_every_manifest_and_one_by_source_for_its_own(road: Road, tmp_path: Path) -> None:
    """A moved corpus of the same bytes: rejections by the bytes stay, rejections by the source are tried again."""
    moved = Manifest.from_rows([row | {"speaker": "moved"} for row in road.manifest.rows()])
    assert moved.digest != road.manifest.digest
    snapshot = road.store.snapshot()
    specs = [info.spec for info in snapshot.feature_sets()]
    for part in survey(road.store, moved, specs):
        outcomes = Counter()
        for case in CASES:
            if COLUMNS[case.column] == part.spec.modality:
                is_open = case.outcome in BY_SOURCE and case.at_ingest == KEPT
                outcomes["missing" if is_open else "stored" if case.outcome == STORED else "rejected"] += 1
        assert (part.num_stored, part.num_rejected, len(part.missing)) == (
            outcomes["stored"], outcomes["rejected"], outcomes["missing"],
        )  # fmt: skip


@pytest.mark.parametrize("reason", sorted({case.outcome for case in CASES if case.at_ingest == KEPT} - {STORED}))
def test_each_reason_can_be_retried_alone(road: Road, reason: str) -> None:
    from speechclip.featurization.plan import cover

    snapshot = road.store.snapshot()
    missing = {
        asset.key
        for info in snapshot.feature_sets()
        for asset in cover(road.manifest, info.spec, snapshot, [reason]).missing
    }
    rows = {row["utterance"]: row for row in road.manifest.rows()}
    wanted = [case for case in CASES if case.outcome == reason and case.at_ingest == KEPT]
    assert missing == {rows[case.name][f"{COLUMNS[case.column]}_key"] for case in wanted}


def test_a_lone_surrogate_ends_the_ingest_with_its_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "\\ud800"}\n')
    with pytest.raises(SystemExit) as end:
        main(["ingest", "table", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "m.parquet")])
    assert end.value.code == 1
    assert "row 2: text is not valid Unicode" in capsys.readouterr().err
    assert not (tmp_path / "m.parquet").exists()
