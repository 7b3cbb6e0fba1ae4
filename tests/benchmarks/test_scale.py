"""docs/scale.md has the figures of the model. Model and benchmark count tasks and requests as the code does."""

import json
from collections import Counter
from pathlib import Path

import pytest
from scale import make_manifest, open_work, to_lines
from scale_model import BASE, LARGE, Assumptions, Encoders, Size, assumptions, rows
from scale_watch import TimedStore
from support.fault_proxy import FaultProxy, Schedule
from support.stores import synthetic

from speechclip.featurization.driver import GroupCommitter, commit_receipts, encode_inline, prepare_work
from speechclip.featurization.plan import Coverage, TaskSizes, cut
from speechclip.featurization.tasks import EncoderRequest
from speechclip.jobs.featurize import SPEECH_ENCODERS_A_GPU
from speechclip.records import Asset, Modality
from speechclip.store import FeatureStore

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "docs" / "scale.md"
MEASURED = json.loads((PROJECT / "benchmarks" / "scale_measured.json").read_text())
ON_A_GPU = json.loads((PROJECT / "benchmarks" / "gpu_measured.json").read_text())


def test_the_page_holds_every_row_and_every_assumption() -> None:
    lines = PAGE.read_text().splitlines()
    for row in rows():
        assert f"| {' | '.join(row)} |" in lines
    assert f" {', '.join(assumptions())}. " in " ".join(lines)


def test_the_page_shows_what_was_measured_and_the_model_goes_by_it() -> None:
    lines = PAGE.read_text().splitlines()
    for row in to_lines(MEASURED):
        assert f"| {' | '.join(row)} |" in lines
    given = Assumptions()
    grown = {(row["tasks"], row["assets"]): row["peak_bytes"]["summary"] - row["start_bytes"] for row in MEASURED}
    # An asset needs the same memory whether its task has one asset or twenty.
    for many in ((100_000, 100_000), (5_000, 100_000)):
        an_asset = (grown[many] - grown[1_000, 1_000]) / 99_000
        assert given.driver_bytes_an_asset == pytest.approx(an_asset, rel=0.1)
    most = max(MEASURED, key=lambda row: row["tasks"])
    assert given.driver_seconds_a_task == pytest.approx(most["cpu_seconds"]["driver"] / most["tasks"], rel=0.1)


def test_a_gpu_encodes_as_fast_as_was_measured_with_as_many_encoders_as_share_it() -> None:
    for name, rate in (("base", Assumptions().base_rate), ("large", Assumptions().large_rate)):
        seen = {row["encoders"]: row["rate"] for row in ON_A_GPU[f"hubert:untrained-{name}"]["side_by_side"]}
        assert rate == pytest.approx(seen[SPEECH_ENCODERS_A_GPU], rel=0.01)


@pytest.mark.parametrize("encoders", [BASE, LARGE])
def test_tasks_and_bytes_are_those_of_a_real_plan(encoders: Encoders) -> None:
    size, spec = Size(2, encoders), encoders.speech
    seconds = Assumptions().utterance_seconds
    assets = [Asset(key=f"{n:064x}", modality="speech", uri="a", seconds=seconds) for n in range(size.utterances)]
    assert len(cut(spec, assets, TaskSizes())) == size.speech_tasks
    assert Coverage(spec, len(assets), 0, 0, tuple(assets)).remaining_bytes(TaskSizes()) == size.frame_bytes


def test_the_benchmark_cuts_one_task_for_each_group_of_assets(tmp_path: Path) -> None:
    store = TimedStore(str(tmp_path / "store"))
    work = open_work(store, make_manifest(tmp_path, 12), 4)
    committer = GroupCommitter(work)
    commit_receipts(encode_inline(work), committer)
    assert [len(task.assets) for task in work.plan] == [4, 4, 4]
    assert (committer.summary().encoded, len(store.commit_seconds)) == (12, 1)


def test_receipts_that_come_fast_share_a_commit_of_256(tmp_path: Path) -> None:
    store = TimedStore(str(tmp_path / "store"))
    work = open_work(store, make_manifest(tmp_path, 300), 1)
    commit_receipts(encode_inline(work), GroupCommitter(work, group_seconds=3600))
    assert len(store.commit_seconds) == 2


@pytest.mark.parametrize(
    ("modality", "reads"),
    [("speech", Assumptions().reads_a_speech_task), ("text", Assumptions().reads_a_vector_task)],
)
def test_requests_of_a_task_and_a_commit_are_as_counted(
    modality: Modality, reads: int, proxy: FaultProxy, proxied_uri: str
) -> None:
    request = EncoderRequest(encoder_name="toy", modality=modality)
    encoders = [(request, request.build().spec)]
    work = prepare_work(FeatureStore(proxied_uri), synthetic(), encoders, TaskSizes(shard_items=3, chunk_rows=3))
    counted = Schedule(kinds=("counted",))
    proxy.schedule(counted)
    receipts = list(encode_inline(work))
    of_tasks = by_method(proxy.schedule(counted))
    commit_receipts(receipts, GroupCommitter(work))
    of_commit = by_method(proxy.schedule(Schedule()))
    given, num_tasks = Assumptions(), work.plan.num_tasks
    assert of_tasks["PUT"] == given.puts_a_task * num_tasks
    assert of_tasks["HEAD"] + of_tasks["GET"] == num_tasks * reads
    # The first commit also copies the log's first entry to the journal.
    assert of_commit["PUT"] == given.puts_a_commit + 1
    assert of_commit["LIST"] == given.lists_a_commit


def by_method(log: list[str]) -> Counter[str]:
    return Counter("LIST" if "list-type=2" in line else line.split()[1] for line in log)
