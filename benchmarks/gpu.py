"""Measures how fast and how exact the encoders are on a GPU: python benchmarks/gpu.py, or --help.

The encoders have the true architectures with random weights from a seed. These show speed and rounding, never quality.
Speech is noise, in utterances as long as those of SpokenCOCO. Tasks have the default size. It prints tables and writes
`gpu.json`.

A rate is in seconds of speech for each second of computing.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_tasks import Waveform, side_by_side, utterances
from rich.console import Console
from rich.table import Table

from speechclip.encoders import load_encoder
from speechclip.encoders.frozen import collect
from speechclip.encoders.hubert import HubertEncoder
from speechclip.featurization.tasks import BatchSizes

SPEECH = ("hubert:untrained-base", "hubert:untrained-large")
PICTURES_AND_TEXTS = ("clip:untrained-ViT-B-32", "clip:untrained-ViT-L-14")
CALL_SECONDS = BatchSizes().speech_seconds


def timed(work: Callable[[], Any], device: str, least_seconds: float) -> float:
    """The seconds of one call: the median of several calls, which take `least_seconds` together, after a first one."""
    work()
    spent = list[float]()
    while sum(spent) < least_seconds or len(spent) < 2:
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        spent.append(time.perf_counter() - started)
    return float(np.median(spent))


def synchronise(device: str) -> None:
    """Wait until a GPU has finished. On a CPU there is nothing to wait for."""
    if device != "cpu":
        torch.cuda.synchronize()


def with_bound(encoder: HubertEncoder, max_frames: int) -> HubertEncoder:
    """The same encoder with another limit for the frames of one transformer call."""
    return HubertEncoder(encoder._model, encoder.spec, encoder.encoder_name, max_frames=max_frames)


def by_frames(encoder: HubertEncoder, device: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rate and the peak memory for each limit of the frames of one transformer call."""
    waveforms, rows = utterances(options.speech_seconds), list[dict[str, Any]]()
    amount = sum(map(len, waveforms)) / 16_000
    for max_frames in options.frames:
        bounded = with_bound(encoder, max_frames)
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        rate = amount / timed(lambda: bounded.encode(waveforms, np.float16), device, options.least_seconds)  # noqa: B023
        peak = torch.cuda.max_memory_allocated() / 1e9 if device != "cpu" else None
        rows.append({"max_frames": max_frames, "rate": rate, "peak_gb": peak})
    return rows


def shares(encoder: HubertEncoder, device: str, options: argparse.Namespace) -> dict[str, float]:
    """The rate of each step alone, for the utterances of one call."""
    waveforms = utterances(CALL_SECONDS)
    amount = sum(map(len, waveforms)) / 16_000
    with torch.inference_mode():
        fronts = [encoder._front(waveform) for waveform in waveforms]
        hidden = torch.nn.utils.rnn.pad_sequence(fronts, batch_first=True)
        states = torch.stack(list(encoder._states(hidden, None)), dim=1)
        lengths = [len(front) for front in fronts]
        mask = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]
        steps: dict[str, Callable[[], Any]] = {
            "convolutions, one utterance at a time": lambda: [encoder._front(one) for one in waveforms],
            "transformer": lambda: list(encoder._states(hidden, mask[:, None, None, :])),
            "transformer without a mask": lambda: list(encoder._states(hidden, None)),
            "to the host in fp32": lambda: collect([states[:, 0]] * states.shape[1], states.shape[1], lengths, "f4"),
            "to the host in fp16": lambda: collect([states[:, 0]] * states.shape[1], states.shape[1], lengths, "f2"),
        }
        return {name: amount / timed(work, device, options.least_seconds) for name, work in steps.items()}


def without_the_rule(encoder: HubertEncoder, device: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What the rule `compute=fp32` costs: rate and largest difference with fp32, TF32 and bf16, without copies."""
    waveforms = utterances(CALL_SECONDS)
    amount = sum(map(len, waveforms)) / 16_000
    exact, found = encoder.encode(waveforms), dict[str, dict[str, float]]()

    @torch.inference_mode()
    def compute() -> None:
        fronts = [encoder._front(one) for one in waveforms]
        list(encoder._states(torch.nn.utils.rnn.pad_sequence(fronts, batch_first=True), None))

    @torch.inference_mode()
    def note(name: str) -> None:
        rate = amount / timed(compute, device, options.least_seconds)
        found[name] = {"rate": rate, "difference": difference(encoder._encode(waveforms, "f4"), exact)}

    note("fp32")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    note("TF32")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        note("bf16")
    return found


def difference(features: Sequence[Waveform], others: Sequence[Waveform]) -> float:
    """The largest difference, divided by the largest number of its state, because Large's states grow with depth."""
    return max(
        float((np.abs(one - other).max((-2, -1)) / np.abs(other).max((-2, -1))).max())
        for one, other in zip(features, others, strict=True)
    )


def exactness(encoder: HubertEncoder, max_frames: int) -> dict[str, float]:
    """How much features differ if they are computed again, in a batch, or on a CPU."""
    waveforms = [*utterances(30.0, seed=1), utterances(2.0, seed=2)[0][:400]]
    batched = with_bound(encoder, max_frames)
    alone = [encoder.encode([one])[0] for one in waveforms]
    together = batched.encode(waveforms)
    on_cpu = load_encoder(encoder.encoder_name, "speech").encode(waveforms)
    return {
        "alone twice": difference([encoder.encode([one])[0] for one in waveforms], alone),
        "in one batch, and alone": difference(together, alone),
        "the same batch twice": difference(batched.encode(waveforms), together),
        "on the GPU alone, and on a CPU": difference(alone, on_cpu),
        "in one batch, and on a CPU": difference(together, on_cpu),
        "largest number": max(float(np.abs(feature).max()) for feature in alone),
    }


def vectors(source: str, device: str, options: argparse.Namespace) -> dict[str, float]:
    """Images and texts for each second, without decoding, and how much features differ in a batch or on a CPU."""
    found = dict[str, float]()
    for modality in ("image", "text"):
        encoder = load_encoder(source, modality, device=device)
        generator = np.random.default_rng(0)
        if modality == "image":
            size = encoder.spec.architecture["preprocess"]["size"]
            inputs = list(generator.integers(0, 256, (256, size, size, 3), dtype=np.uint8))
        else:
            inputs = list(generator.integers(1, 49_000, (256, 77), dtype=np.int32))
        found[modality] = len(inputs) / timed(lambda: encoder.encode(inputs), device, options.least_seconds)  # noqa: B023
        alone = [encoder.encode([one])[0] for one in inputs[:8]]
        on_cpu = load_encoder(source, modality).encode(inputs[:8])
        shift = max(float(np.abs(a - b).max()) for a, b in zip(encoder.encode(inputs)[:8], alone, strict=True))
        found[f"{modality}: in a batch, and alone"] = shift
        found[f"{modality}: and on a CPU"] = max(float(np.abs(a - b).max()) for a, b in zip(alone, on_cpu, strict=True))
    return found


def main() -> None:
    """Measure everything, write the report and print the tables."""
    options = parse()
    device, report = options.device, dict[str, Any]()
    report["machine"] = {
        "gpu": torch.cuda.get_device_name() if device != "cpu" else platform.processor(),
        "torch": torch.__version__,
        "weights": "untrained",
    }
    for source in options.speech:
        encoder = load_encoder(source, "speech", device=device)
        assert isinstance(encoder, HubertEncoder)
        report[source] = {
            "by_frames": by_frames(encoder, device, options),
            "steps": shares(encoder, device, options),
            "rules": without_the_rule(encoder, device, options),
            "exactness": exactness(encoder, max(options.frames)),
        }
        write(options.out, report)
        waits = (options.folder, options.task_seconds)
        report[source]["side_by_side"] = [side_by_side(source, device, count, *waits) for count in options.encoders]
        write(options.out, report)
    for source in options.vectors:
        report[source] = vectors(source, device, options)
        write(options.out, report)
    show(report)


def write(out: str, report: dict[str, Any]) -> None:
    """Write the report as it is now."""
    Path(out).write_text(json.dumps(report, indent=1) + "\n")


def show(report: dict[str, Any]) -> None:
    """Print the figures of each encoder as a table of names and numbers."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    for source, figures in report.items():
        table = Table("", "", title=source)
        for name, value in flat(figures):
            table.add_row(name, f"{value:,.4g}" if isinstance(value, float) else str(value))
        console.print(table)


def flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Each number of nested figures, with the names that lead to it."""
    if isinstance(value, dict):
        return [pair for key, one in value.items() for pair in flat(one, f"{name}, {key}" if name else key)]
    if isinstance(value, list):
        return [
            pair for one in value for pair in flat(dict(list(one.items())[1:]), f"{name} {next(iter(one.values()))}")
        ]
    return [(name, value)]


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--speech", nargs="*", default=list(SPEECH), help="encoders of speech")
    parser.add_argument("--vectors", nargs="*", default=list(PICTURES_AND_TEXTS), help="encoders of images and texts")
    parser.add_argument("--frames", type=int, nargs="+", default=[1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000])
    parser.add_argument(
        "--encoders", type=int, nargs="*", default=[1, 2, 3, 5], help="numbers of encoders side by side"
    )
    parser.add_argument("--speech-seconds", type=float, default=1300.0, help="seconds of speech in a measured call")
    parser.add_argument("--least-seconds", type=float, default=1.0, help="how long each figure is measured")
    parser.add_argument("--task-seconds", type=float, default=4.0, help="how long whole tasks are measured")
    parser.add_argument("--folder", help="where tasks write, best /dev/shm (default: the temporary folder)")
    parser.add_argument("--out", default="gpu.json", help="the report's file (default: gpu.json)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
