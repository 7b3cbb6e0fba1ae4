"""Measures what driver and catalog cost for each task: `make scale`, or python benchmarks/scale.py --help.

The tasks do almost nothing: each encodes one or a few segments of 400 samples with the toy encoder. But they take all
real steps: manifest, stored plan, Ray Data, shards on storage, Delta commits and the ledger. So these steps are what
takes time and memory. Each number of tasks runs in its own process, on its own Ray.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table
from scale_watch import Seen, TimedStore, Watch, cpu_seconds, folder_size, own_bytes

from speechclip.config import Settings
from speechclip.featurization.driver import GroupCommitter, Work, commit_receipts, prepare_work
from speechclip.featurization.plan import TaskSizes
from speechclip.featurization.tasks import EncoderRequest
from speechclip.jobs.cluster import connect
from speechclip.jobs.featurize import encode_on_ray
from speechclip.manifest import SCHEMA, Manifest
from speechclip.media.content import content_key, segment_key
from speechclip.records import Receipt
from speechclip.store import FeatureStore

SAMPLES = 400  # one frame
# How many of the first and of the last commits are measured. One alone could include the writing of a checkpoint.
EDGE_COMMITS = 50


def measure(folder: Path, num_tasks: int, task_assets: int, num_cpus: int) -> dict[str, Any]:
    """Run `num_tasks` tasks in `folder`, which is emptied first. Returns all figures."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    watch, store = Watch(), TimedStore(str(folder / "store"))
    start_bytes = own_bytes()
    started = time.perf_counter()
    make_manifest(folder, num_tasks * task_assets).write(str(folder / "manifest.parquet"))
    watch.step("ingest", started)
    manifest = Manifest.read(str(folder / "manifest.parquet"))
    started = time.perf_counter()
    work = open_work(store, manifest, task_assets)
    watch.step("plan", started)
    assert work.plan.num_tasks == num_tasks, work.plan.num_tasks
    started = time.perf_counter()
    connect(num_cpus)
    watch.step("ray", started)
    spent, seen = cpu_seconds(), Seen(num_tasks)
    started = time.perf_counter()
    committer = GroupCommitter(work)
    commit_receipts(seen.watched(receipts_of(work), started), committer)
    watch.step("run", started)
    spent = {name: round(seconds - spent.get(name, 0.0), 2) for name, seconds in cpu_seconds().items()}
    started = time.perf_counter()
    summary = committer.summary()
    watch.step("summary", started)
    assert (summary.encoded, summary.missing) == (num_tasks * task_assets, 0), summary
    sizes = {name: folder_size(folder / "store" / name) for name in ("catalog", "journal", "plans", "manifests")}
    sizes["log"] = folder_size(folder / "store" / "catalog" / "_delta_log")
    read_again(store, manifest, task_assets, watch)
    commits = store.commit_seconds
    return {
        "tasks": num_tasks,
        "assets": num_tasks * task_assets,
        "seconds": watch.seconds,
        "tasks_per_second": round(num_tasks / watch.seconds["run"], 1),
        "first_receipt_seconds": round(seen.first_seconds, 2),
        "tasks_per_second_by_tenth": seen.rates(),
        "start_bytes": start_bytes,
        "peak_bytes": watch.peak_bytes,
        "object_store": seen.object_store,
        "cpu_seconds": spent,
        "commits": len(commits),
        "commit_ms_first": round(1000 * float(np.median(commits[:EDGE_COMMITS])), 1),
        "commit_ms_last": round(1000 * float(np.median(commits[-EDGE_COMMITS:])), 1),
        "commit_ms_mean": round(1000 * float(np.mean(commits)), 1),
        "store_bytes": sizes,
    }


def make_manifest(folder: Path, num_assets: int) -> Manifest:
    """A manifest with `num_assets` segments of one recording, each an asset of its own."""
    path = folder / "noise.wav"
    noise = 0.1 * np.random.default_rng(0).standard_normal(num_assets + SAMPLES)
    soundfile.write(path, noise, 16_000, subtype="PCM_16")
    key = content_key(path.read_bytes())
    empty = dict.fromkeys(SCHEMA.names)
    return Manifest.from_rows(
        empty
        | {
            "utterance": f"utterance-{start:09d}",
            "split": "train",
            "group": f"group-{start:09d}",
            "speech_key": segment_key(key, start, start + SAMPLES),
            "audio_uri": str(path),
            "start_sample": start,
            "end_sample": start + SAMPLES,
            "num_samples": SAMPLES,
            "sample_rate": 16_000,
        }
        for start in range(num_assets)
    )


def open_work(store: FeatureStore, manifest: Manifest, task_assets: int) -> Work:
    """Plan the work, as `speechclip featurize` does before it starts Ray."""
    request = EncoderRequest(encoder_name="toy", modality="speech")
    return prepare_work(store, manifest, [(request, request.build().spec)], TaskSizes(shard_items=task_assets))


def receipts_of(work: Work) -> Iterator[Receipt]:
    """The receipts of the tasks, which run on Ray with default settings."""
    settings = Settings()
    options = settings.featurize
    waits = {"node_wait_seconds": settings.node_wait_seconds, "no_progress_seconds": options.no_progress_seconds}
    return encode_on_ray(work, options.batches, **waits)


def read_again(store: FeatureStore, manifest: Manifest, task_assets: int, watch: Watch) -> None:
    """Measure what follows a run, twice: opening a snapshot, and another run, which has nothing to do."""
    fingerprint = EncoderRequest(encoder_name="toy", modality="speech").build().spec.fingerprint
    for name in ("snapshot", "snapshot again"):
        started = time.perf_counter()
        assert len(store.snapshot().stored_keys(fingerprint)) == len(manifest)
        watch.step(name, started)
        started = time.perf_counter()
        work = open_work(store, manifest, task_assets)
        assert not work.plan.num_tasks
        assert GroupCommitter(work).summary().missing == 0
        watch.step(name.replace("snapshot", "resume"), started)


def main() -> None:
    """Measure each number of tasks in its own process, then print the table and write `report.json`."""
    options = parse()
    if len(options.tasks) == 1 and options.alone:
        found = measure(Path(options.folder), options.tasks[0], options.assets, options.num_cpus)
        sys.stdout.write(json.dumps(found) + "\n")
        return
    rows = []
    for count in options.tasks:
        common = ["--assets", str(options.assets), "--num-cpus", str(options.num_cpus)]
        command = [sys.executable, __file__, "--alone", "--tasks", str(count), "--folder", f"{options.folder}/{count}"]
        done = subprocess.run([*command, *common], stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        shutil.rmtree(f"{options.folder}/{count}")
        Path(options.folder, "report.json").write_text(json.dumps(rows, indent=2) + "\n")
    Console(width=None if sys.stdout.isatty() else 180).print(to_table(rows))
    sys.stdout.write(f"{options.folder}/report.json\n")


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tasks", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="default: 1000 10000 100000"
    )
    parser.add_argument("--assets", type=int, default=1, help="assets in each task (default: 1)")
    parser.add_argument("--num-cpus", type=int, default=2, help="logical CPUs of the private Ray (default: 2)")
    parser.add_argument("--folder", default="scale", help="the folder for all files (default: scale)")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def to_lines(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The lines of the table, with a column for each run. Memory is the peak of the driver's own memory in a step."""
    lines: list[tuple[str, ...]] = [("", *(f"{row['tasks']:,} tasks" for row in rows))]
    if any(row["assets"] != row["tasks"] for row in rows):
        lines.append(("assets", *(f"{row['assets']:,}" for row in rows)))
    for name in rows[0]["seconds"]:
        lines.append((f"{name}, s", *(f"{row['seconds'][name]:,.2f}" for row in rows)))
    lines.append(("tasks each second", *(f"{row['tasks_per_second']:,.0f}" for row in rows)))
    lines.append(("driver's memory at first, MB", *(f"{row['start_bytes'] / 1e6:,.0f}" for row in rows)))
    for name in ("plan", "run", "summary"):
        lines.append((f"at its peak in {name}, MB", *(f"{row['peak_bytes'][name] / 1e6:,.0f}" for row in rows)))
    for name in ("driver", "raylet", "gcs_server", "workers"):
        lines.append(
            (f"CPU of {name}, ms for each task", *(per_task(row, row["cpu_seconds"].get(name, 0.0)) for row in rows))
        )
    stored = [row["object_store"][len(row["object_store"]) // 2] for row in rows]
    lines.append(("Ray's object store half-way, MiB", *(f"{use['mib']:,}" for use in stored)))
    lines.append(("objects in it", *(f"{use['objects']:,}" for use in stored)))
    lines.append(("commits", *(f"{row['commits']:,}" for row in rows)))
    for name in ("first", "last", "mean"):
        lines.append((f"a commit, {name}, ms", *(f"{row[f'commit_ms_{name}']:,.0f}" for row in rows)))
    for name in rows[0]["store_bytes"]:
        lines.append((f"{name}, MB", *(f"{row['store_bytes'][name]['bytes'] / 1e6:,.1f}" for row in rows)))
    return lines


def to_table(rows: list[dict[str, Any]]) -> Table:
    """The lines as a table for a terminal."""
    head, *body = to_lines(rows)
    table = Table(title="Cost of tasks that do almost nothing")
    for name in head:
        table.add_column(name, justify="right" if name else "left")
    for line in body:
        table.add_row(*line)
    return table


def per_task(row: dict[str, Any], seconds: float) -> str:
    """The milliseconds for each task."""
    return f"{1000 * seconds / row['tasks']:.2f}"


if __name__ == "__main__":
    main()
