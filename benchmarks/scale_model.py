"""Computes what large corpora need in tasks, requests, memory, GPU hours and money: the table of docs/scale.md.

    python benchmarks/scale_model.py

It prints the table. Everything that is assumed or was measured is in `Assumptions`. For another price or GPU, change a
number there.
"""

import math
import sys
from dataclasses import dataclass, fields

from speechclip.featurization.driver import GroupCommitter
from speechclip.featurization.plan import MEMBER_BYTES, TaskSizes
from speechclip.spec import EncoderSpec
from speechclip.store.codec import stored_bytes
from speechclip.store.matrices import KEY_BYTES


@dataclass(frozen=True)
class Assumptions:
    """The numbers from which the table is computed. A rate is in seconds of speech for each second of a machine."""

    # SpokenCOCO: 742 hours, 605,495 spoken captions, each with its text, of 123,287 images.
    utterance_seconds: float = 4.41
    utterances_an_image: float = 4.91
    # An H200 with three encoders side by side (benchmarks/gpu.py).
    base_rate: float = 1070.0
    large_rate: float = 455.0
    # One run with Ray, which also encoded images and texts, took so many times as long.
    ray_factor: float = 1.75
    decode_rate: float = 800.0  # 48 kHz wav, on one CPU
    # Measured by benchmarks/scale.py.
    driver_bytes: float = 450e6
    driver_bytes_an_asset: float = 5e3
    driver_seconds_a_task: float = 0.0036
    commit_seconds: float = 1.0  # on S3, an assumption; only a local one was measured
    # The catalog's keys cannot be compressed; its files have 7,680 rows. A task in Ray's queue has addresses of 80
    # letters.
    catalog_bytes_an_asset: float = 55.0
    queue_bytes_an_asset: float = 250.0
    # Requests, counted at an S3 server. Those of a commit are the mean of fifty, from one checkpoint to the next.
    puts_a_task: int = 2
    reads_a_speech_task: int = 2
    reads_a_vector_task: int = 5
    puts_a_commit: int = 4
    gets_a_commit: int = 100
    lists_a_commit: int = 3
    # Rounded list prices in dollars. For petabytes and years of GPUs a contract is cheaper.
    gpu_hour: float = 5.0
    cpu_hour: float = 0.05
    gigabyte_month: float = 0.022
    thousand_puts: float = 0.005
    thousand_gets: float = 0.0004


@dataclass(frozen=True)
class Encoders:
    """A HuBERT and a CLIP: the number of hidden states, their width, and the width of the vectors."""

    name: str
    num_states: int
    width: int
    vector_width: int

    @property
    def speech(self) -> EncoderSpec:
        """The spec of features with all hidden states in fp16."""
        states = tuple(range(self.num_states))
        return EncoderSpec(
            name=f"untrained-{self.name.lower()}",
            family="hubert",
            modality="speech",
            weights="",
            is_trained=False,
            width=self.width,
            layers=states,
            hop_samples=320,
            window_samples=400,
        )


BASE, LARGE = Encoders("Base", 13, 768, 512), Encoders("Large", 25, 1024, 768)
HOURS = (10_000, 10_000_000)


class Size:
    """What `hours` of speech with their images and texts need."""

    def __init__(self, hours: int, encoders: Encoders, given: Assumptions = Assumptions()) -> None:
        self.hours, self.encoders, self.given, self.sizes = hours, encoders, given, TaskSizes()
        self.utterances = round(hours * 3600 / given.utterance_seconds)
        self.images = round(self.utterances / given.utterances_an_image)
        self.assets = 2 * self.utterances + self.images
        self._one_bytes = stored_bytes(encoders.speech, given.utterance_seconds)
        items = min(self.sizes.shard_items, self.sizes.shard_bytes // self._one_bytes)
        self.speech_tasks = math.ceil(self.utterances / items)
        rows = self.sizes.chunk_rows
        self.vector_tasks = math.ceil(self.utterances / rows) + math.ceil(self.images / rows)
        self.tasks = self.speech_tasks + self.vector_tasks

    # Bytes on storage.

    @property
    def frame_bytes(self) -> int:
        """The bytes of all frames, with tar headers and notes."""
        return self.utterances * (self._one_bytes + MEMBER_BYTES)

    @property
    def vector_bytes(self) -> int:
        """The bytes of all vectors, as whole chunks with their keys."""
        return self.vector_tasks * self.sizes.chunk_rows * (2 * self.encoders.vector_width + KEY_BYTES)

    @property
    def catalog_bytes(self) -> float:
        """The bytes of the catalog's rows. The copy in the journal has as many."""
        return self.assets * self.given.catalog_bytes_an_asset

    # Work of the machines.

    @property
    def commits(self) -> int:
        """The number of commits, each of a full group of receipts."""
        return math.ceil(self.tasks / GroupCommitter.group_size)

    @property
    def driver_bytes(self) -> float:
        """The peak of the driver's memory, in the summary. Measured for up to 100,000 assets and extended linearly."""
        return self.given.driver_bytes + self.assets * self.given.driver_bytes_an_asset

    @property
    def queue_bytes(self) -> float:
        """The bytes of all open tasks, which wait in Ray's object store."""
        return self.assets * self.given.queue_bytes_an_asset

    @property
    def driver_hours(self) -> float:
        """The hours of the driver's own work and of commits. More GPUs do not make a run faster than this."""
        given = self.given
        return (self.tasks * given.driver_seconds_a_task + self.commits * given.commit_seconds) / 3600

    @property
    def tasks_a_second(self) -> float:
        """The tasks for each second of the driver."""
        return self.tasks / (3600 * self.driver_hours)

    @property
    def gpu_hours(self) -> float:
        """The GPU hours of HuBERT. CLIP adds little to them."""
        return self.hours / (self.given.base_rate if self.encoders is BASE else self.given.large_rate)

    @property
    def gpu_hours_on_ray(self) -> float:
        """The GPU hours if the factor of the one run with Ray holds."""
        return self.gpu_hours * self.given.ray_factor

    @property
    def decode_hours(self) -> float:
        """The CPU hours of decoding."""
        return self.hours / self.given.decode_rate

    # Requests. PUT writes objects. GET and HEAD read sources and the log and check whether an object exists. LIST lists
    # the log.

    @property
    def puts(self) -> int:
        """The number of PUT requests."""
        return self.tasks * self.given.puts_a_task + self.commits * self.given.puts_a_commit

    @property
    def gets(self) -> int:
        """The number of GET and HEAD requests, if each recording and image is one object."""
        given, sources = self.given, self.utterances + self.images
        looks = self.speech_tasks * given.reads_a_speech_task + self.vector_tasks * given.reads_a_vector_task
        return sources + looks + self.commits * given.gets_a_commit

    @property
    def lists(self) -> int:
        """The number of LIST requests."""
        return self.commits * self.given.lists_a_commit

    # Dollars.

    @property
    def compute_dollars(self) -> float:
        """The price of the GPUs, and of the CPUs that decode for them."""
        return self.gpu_hours * self.given.gpu_hour + self.decode_hours * self.given.cpu_hour

    @property
    def request_dollars(self) -> float:
        """Once, for the run."""
        paid_as_puts, given = self.puts + self.lists, self.given
        return (paid_as_puts * given.thousand_puts + self.gets * given.thousand_gets) / 1000

    @property
    def month_dollars(self) -> float:
        """To keep it."""
        return (self.frame_bytes + self.vector_bytes + 2 * self.catalog_bytes) / 1e9 * self.given.gigabyte_month


def rows() -> list[tuple[str, ...]]:
    """The lines of the table, with a column for each corpus and encoder. docs/scale.md has the same lines."""
    found = [Size(hours, encoders) for hours in HOURS for encoders in (BASE, LARGE)]
    lines: list[tuple[str, ...]] = [("", *(f"{human(size.hours)} h, {size.encoders.name}" for size in found))]

    def add(name: str, *cells: str) -> None:
        lines.append((name, *cells))

    add("utterances, and as many texts", *(human(size.utterances) for size in found))
    add("images", *(human(size.images) for size in found))
    add("tasks: speech", *(human(size.speech_tasks) for size in found))
    add("tasks: image and text", *(human(size.vector_tasks) for size in found))
    add("bytes: frames", *(human(size.frame_bytes, "B") for size in found))
    add("bytes: vectors", *(human(size.vector_bytes, "B") for size in found))
    add("bytes: catalog, and again its copy", *(human(size.catalog_bytes, "B") for size in found))
    add("objects written, each by one PUT", *(human(size.puts) for size in found))
    add("GET and HEAD", *(human(size.gets) for size in found))
    add("LIST", *(human(size.lists) for size in found))
    add("commits", *(human(size.commits) for size in found))
    add("driver's memory", *(human(size.driver_bytes, "B") for size in found))
    add("tasks in Ray's object store", *(human(size.queue_bytes, "B") for size in found))
    add("driver's hours", *(human(size.driver_hours) for size in found))
    add("GPU hours, without Ray", *(human(size.gpu_hours) for size in found))
    add("GPU hours, with Ray", *(human(size.gpu_hours_on_ray) for size in found))
    add("CPU hours of decoding", *(human(size.decode_hours) for size in found))
    add("tasks each second, one driver (calculated)", *(human(size.tasks_a_second) for size in found))
    add("GPUs that one driver keeps busy", *(human(size.gpu_hours / size.driver_hours) for size in found))
    add("CPUs that decode for these GPUs", *(human(size.decode_hours / size.driver_hours) for size in found))
    add("bytes to storage each second", *(human(size.frame_bytes / size.driver_hours / 3600, "B") for size in found))
    add("PUT each second on each of 256 prefixes", *(human(2 * size.tasks_a_second / 256) for size in found))
    add("compute, $", *(human(size.compute_dollars) for size in found))
    add("requests, $", *(human(size.request_dollars) for size in found))
    add("storage, $ each month", *(human(size.month_dollars) for size in found))
    return lines


def assumptions() -> list[str]:
    """Each assumption with its name and value, as docs/scale.md lists them."""
    return [f"`{field.name}` {field.default:,.15g}" for field in fields(Assumptions)]


def human(number: float, unit: str = "") -> str:
    """The number with three digits and a word or prefix for its size. Without a unit, all digits below 100,000."""
    if not unit and number < 100_000:
        return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
    words = {"": ("", " thousand", " million", " billion"), "B": (" B", " KB", " MB", " GB", " TB", " PB")}[unit]
    power = min(max(0, math.floor(math.log10(max(number, 1)) / 3)), len(words) - 1)
    return f"{number / 1000**power:.3g}{words[power]}"


def main() -> None:
    """Print the table and the assumptions as Markdown."""
    head, *body = rows()
    lines = [head, ("---", *("---:" for _ in head[1:])), *body]
    sys.stdout.write("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n" + ", ".join(assumptions()) + "\n")


if __name__ == "__main__":
    main()
