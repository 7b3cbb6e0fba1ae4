"""The metrics that a real Ray node exports, and that docs/metrics.md names just these."""

import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from support.paired_corpus import SPEECH

from speechclip.featurization.driver import Work
from speechclip.featurization.plan import Plan
from speechclip.jobs import cluster
from speechclip.jobs.metrics import FeaturizeMetrics, TrainMetrics
from speechclip.manifest import Manifest
from speechclip.records import Asset, Receipt, RejectedAsset, StoredAsset, Task
from speechclip.store import FeatureStore
from speechclip.training.progress import TrainingProgress

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")]
DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, float]]:
    """The samples of a node after two receipts and one progress report, as soon as the last one has arrived."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Without a token of its own, this cluster could not be followed by another one in the same process.
    cluster._protect()
    ray.init(
        "local", num_cpus=1, include_dashboard=False, log_to_driver=False, _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 500},
    )  # fmt: skip
    try:
        metrics = FeaturizeMetrics(work(str(tmp_path_factory.mktemp("metrics"))))
        stored = [StoredAsset(key=f"{n:064x}", offset=0, num_frames=1, sums_offset=0, checksum=0) for n in range(3)]
        metrics.count(receipt("a", stored[:2], (), num_bytes=700))
        metrics.count(
            receipt("b", stored[2:], (RejectedAsset(key="f" * 64, reason="silent", detail=""),), num_bytes=50)
        )
        progress = TrainingProgress(
            step=7, max_steps=9, loss=0.5, steps_per_second=1, eta_seconds=2, wait_share=0.25, recall=0.75
        )
        training = TrainMetrics()
        training.show(progress)
        yield scrape(port, "ray_speechclip_train_dev_recall")
    finally:
        ray.shutdown()


def work(folder: str) -> Work:
    assets = [Asset(key=f"{n:064x}", modality="speech", uri="a.wav", seconds=1.5) for n in range(4)]
    tasks = [Task(id=name, feature_set=SPEECH.fingerprint, assets=tuple(some)) for name, some in
             (("a", assets[:2]), ("b", assets[2:]), ("c", assets[:1]))]  # fmt: skip
    specs = {SPEECH.fingerprint: SPEECH}
    return Work(FeatureStore(folder), Manifest.from_rows([]), {}, specs, (), Plan.of("p", tasks, specs))


def receipt(task: str, stored: list[StoredAsset], rejected: tuple[RejectedAsset, ...], *, num_bytes: int) -> Receipt:
    return Receipt(
        task=task, feature_set=SPEECH.fingerprint, shard="x", stored=tuple(stored), rejected=rejected,
        num_bytes=num_bytes, seconds=2.0, num_encoded=len(stored), speech_seconds=1.5 * len(stored),
    )  # fmt: skip


def scrape(port: int, last: str) -> dict[str, float]:
    """The value of each sample by its name and our labels, as soon as `last` is among them."""
    end = time.monotonic() + 90
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            text = ""
        found = {}
        for name, labels, value in re.findall(r"^(ray_speechclip_\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE):
            ours = re.findall(r'(modality|reason)="(\w+)"', labels)
            found[" ".join([name, *(value for _, value in sorted(ours))])] = float(value)
        if last in found:
            return found
        time.sleep(0.5)
    raise AssertionError(f"no {last} among {len(text)} characters of the node's metrics after 90 s")


def test_a_node_exports_the_figures_of_receipts_and_progress_reports(exported: dict[str, float]) -> None:
    assert exported["ray_speechclip_assets_stored_total speech"] == 3
    assert exported["ray_speechclip_assets_rejected_total speech silent"] == 1
    assert exported["ray_speechclip_speech_seconds_total"] == 4.5
    assert exported["ray_speechclip_stored_bytes_total speech"] == 750
    assert exported["ray_speechclip_tasks_left speech"] == 1
    assert exported["ray_speechclip_task_seconds_count speech"] == 2
    assert exported["ray_speechclip_task_seconds_sum speech"] == 4
    assert exported["ray_speechclip_train_step"] == 7
    assert exported["ray_speechclip_train_loss"] == 0.5
    assert exported["ray_speechclip_train_wait_share"] == 0.25
    assert exported["ray_speechclip_train_dev_recall"] == 0.75


def test_the_document_names_just_these_metrics(exported: dict[str, float]) -> None:
    named = set(re.findall(r"`(ray_speechclip_\w+)`", DOCUMENT.read_text()))
    plain = {re.sub(r"_(bucket|count|sum)$", "", name.partition(" ")[0]) for name in exported}
    assert named == plain
