"""What a plan will cost in bytes, objects and hours. The rate is that of the last job, or of a short calibration."""

import time

import numpy as np

from speechclip.encoders import Encoder
from speechclip.featurization.plan import Coverage, TaskSizes
from speechclip.records import Record
from speechclip.spec import SAMPLE_RATE
from speechclip.store import FeatureStore

CALIBRATION_SECONDS = 4.0


class Estimate(Record, frozen=True):
    """What is left to do for one feature set.

    `worker_seconds` is the time that one encoder needs, and `rate_from` says where its rate is from.
    """

    feature_set: str
    is_trained: bool
    planned: int
    stored: int
    rejected: int
    missing: int
    remaining_bytes: int
    remaining_objects: int
    worker_seconds: float
    rate_from: str


def estimate(part: Coverage, encoder: Encoder, store: FeatureStore, sizes: TaskSizes) -> Estimate:
    """The cost of encoding what is missing. Changes nothing."""
    speed = store.speed(part.spec.fingerprint) if part.missing and store.exists() else None
    if not part.missing:
        seconds, rate_from = 0.0, "nothing to do"
    elif speed is not None:
        seconds, rate_from = len(part.missing) / speed, "the last run"
    else:
        amount = part.missing_seconds if part.spec.modality == "speech" else len(part.missing)
        seconds, rate_from = amount * calibrate(encoder), "a short calibration"
    return Estimate(
        feature_set=part.spec.fingerprint,
        is_trained=part.spec.is_trained,
        planned=part.num_planned,
        stored=part.num_stored,
        rejected=part.num_rejected,
        missing=len(part.missing),
        remaining_bytes=part.remaining_bytes(sizes),
        remaining_objects=part.remaining_objects(sizes),
        worker_seconds=round(seconds, 1),
        rate_from=rate_from,
    )


def calibrate(encoder: Encoder) -> float:
    """Seconds that this machine needs for one second of speech, or for one image or text.

    It measures the second of two small batches, because the first call is slower.
    """
    if encoder.spec.modality == "speech":
        noise = np.random.default_rng(0).standard_normal(round(CALIBRATION_SECONDS * SAMPLE_RATE)).astype(np.float32)
        inputs, amount = [noise], CALIBRATION_SECONDS
    else:
        inputs, amount = _blank_inputs(encoder), 4.0
    encoder.encode(inputs)
    started = time.perf_counter()
    encoder.encode(inputs)
    return (time.perf_counter() - started) / amount


def _blank_inputs(encoder: Encoder) -> list[np.ndarray]:
    from PIL import Image

    from speechclip.encoders import prepare

    ready = prepare(encoder.spec)
    blank = Image.new("RGB", (256, 256)) if encoder.spec.modality == "image" else "a word"
    return [ready(blank)] * 4
