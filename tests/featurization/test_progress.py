"""The progress of a job, from receipts and a clock."""

from dataclasses import dataclass, field

import pytest
from support.feature_sets import FRAMES_SPEC as SPEECH

from speechclip.cli.follow import featurize_sentence
from speechclip.featurization.plan import Plan
from speechclip.featurization.progress import Tally
from speechclip.records import Asset, Receipt, RejectedAsset, StoredAsset, Task
from speechclip.spec import EncoderSpec

TEXT = EncoderSpec(name="toy-untrained-text", family="toy", modality="text", weights="", is_trained=False, width=16)


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Run:
    """A job with four tasks of two recordings of 30 s, and two tasks of one text. One more task was settled before."""

    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        recordings = tuple(Asset(key=f"s{n}", modality="speech", uri="x", seconds=30.0) for n in range(8))
        texts = tuple(Asset(key=f"t{n}", modality="text", text="x") for n in range(2))
        tasks = [
            Task(id=f"speech-{n}", feature_set=SPEECH.fingerprint, assets=recordings[2 * n : 2 * n + 2])
            for n in range(4)
        ] + [
            Task(id=f"text-{n}", feature_set=TEXT.fingerprint, assets=texts[n : n + 1], matrix="p-2x1", first_row=n)
            for n in range(2)
        ]
        specs = {spec.fingerprint: spec for spec in (SPEECH, TEXT)}
        self.tally = Tally(Plan.of("p", tasks, specs, num_settled=1), specs, self.clock)

    def speech(self, number: int, **figures: float) -> None:
        stored = StoredAsset(key=f"s{2 * number}", offset=0, num_frames=1, sums_offset=0, checksum=0)
        rejected = RejectedAsset(key=f"s{2 * number + 1}", reason="silent", detail="")
        self._add(f"speech-{number}", SPEECH.fingerprint, stored, (rejected,), figures)

    def text(self, number: int, **figures: float) -> None:
        stored = StoredAsset(key=f"t{number}", offset=0, num_frames=1, sums_offset=0, checksum=0)
        self._add(f"text-{number}", TEXT.fingerprint, stored, (), figures)

    def _add(
        self, task: str, name: str, stored: StoredAsset, rejected: tuple[RejectedAsset, ...], figures: dict[str, float]
    ) -> None:
        self.tally.add(
            Receipt(
                task=task, feature_set=name, shard="x", stored=(stored,), rejected=rejected, num_bytes=1000,
                num_encoded=1, seconds=figures.get("seconds", 1.0), write_seconds=figures.get("write", 0.0),
                idle_seconds=figures.get("idle", 0.0),
                speech_seconds=30.0 if name == SPEECH.fingerprint else 0.0,
            )
        )  # fmt: skip


def test_receipts_are_counted() -> None:
    run = Run()
    run.clock.now += 10
    run.speech(0)
    run.text(0)
    found = run.tally.look()
    assert (found.tasks, found.tasks_done, found.tasks_skipped) == (6, 2, 1)
    assert (found.utterances, found.images, found.texts, found.rejected) == (1, 0, 1, 1)
    assert (found.speech_seconds, found.bytes, found.seconds) == (30.0, 2000, 10.0)


def test_the_time_left_is_that_of_the_slowest_modality() -> None:
    run = Run()
    assert run.tally.look().eta_seconds is None
    run.clock.now += 10
    run.speech(0, seconds=10)
    found = run.tally.look()
    assert (found.eta_seconds, found.is_eta_whole) == (30.0, False)
    run.clock.now += 10
    run.speech(1, seconds=10)
    run.text(0, seconds=1)
    found = run.tally.look()
    assert (found.eta_seconds, found.is_eta_whole) == (20.0, True)


def test_a_modality_that_began_late_is_measured_from_its_own_start() -> None:
    run = Run()
    for number in range(4):
        run.clock.now += 10
        run.speech(number, seconds=10)
    run.clock.now += 3
    run.text(0, seconds=2, idle=1)
    assert run.tally.look().eta_seconds == 3.0
    run.text(1)
    assert run.tally.look().eta_seconds == 0.0


@pytest.mark.parametrize(
    ("figures", "bound_by"),
    [
        ({"seconds": 5.0, "write": 1.0, "idle": 2.0}, "encoding"),
        ({"seconds": 5.0, "write": 4.0, "idle": 2.0}, "writing"),
        ({"seconds": 5.0, "write": 1.0, "idle": 7.0}, "fetching and decoding"),
    ],
)
def test_a_job_is_bound_by_what_encoders_spend_most_time_on(figures: dict[str, float], bound_by: str) -> None:
    run = Run()
    assert run.tally.look().bound_by == "starting"
    run.speech(0, **figures)
    assert run.tally.look().bound_by == bound_by
    # Without a new receipt it stays the same.
    assert run.tally.look().bound_by == bound_by
    # Only the receipts since the last look count.
    run.speech(1, seconds=2.0, write=1.5)
    assert run.tally.look().bound_by == "writing"


def test_the_progress_line_says_how_sure_the_time_left_is() -> None:
    run = Run()
    assert featurize_sentence(run.tally.look()).endswith("starting, time left not known yet")
    run.clock.now += 10
    run.text(0, seconds=10)
    assert featurize_sentence(run.tally.look()).endswith("bound by encoding, at least 10 s left")
    run.text(1, seconds=10)
    assert featurize_sentence(run.tally.look()).endswith("bound by encoding, time left not known yet")
    run.clock.now += 10
    run.speech(0, seconds=20)
    assert featurize_sentence(run.tally.look()).endswith("bound by encoding, 60 s left")
