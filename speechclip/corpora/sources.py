"""The files that a corpus names, each read once, and the manifest's columns that follow from them."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from speechclip.errors import MachineFailed, Rejected, SegmentOutside, SourceProblem, SourceUnreadable
from speechclip.media.content import content_key, read_source, segment_key, text_key
from speechclip.media.decode import AudioInfo, probe_audio

# Called as progress(done, total) after every file.
OnProgress = Callable[[int, int], None]

# Read ahead of the one that is waited for, times the number of processors: a corpus has a million files.
FILES_AHEAD = 16
MAX_SECONDS = 1e9


@dataclass(frozen=True, slots=True)
class Source:
    """A file as it was found: its content key, or why it can't be read.

    A recording that can't be decoded has a key and no `info`, and `undecodable` says why: whether that rejects it is
    for featurize to say, by the bytes.
    """

    uri: str
    key: str | None
    info: AudioInfo | None = None
    error: str | None = None
    undecodable: str | None = None


def read_sources(
    *, audio: Iterable[str], images: Iterable[str], progress: OnProgress | None = None
) -> tuple[dict[str, Source], dict[str, Source]]:
    """Each recording probed and each picture hashed, by address, as many at a time as there are processors.

    A source that can't be read is recorded; weather (a network error, no memory) raises and ends the ingest.
    """
    audio_uris, image_uris = list(dict.fromkeys(audio)), list(dict.fromkeys(images))
    total = len(audio_uris) + len(image_uris)
    sounds: dict[str, Source] = {}
    pictures: dict[str, Source] = {}
    jobs = [(uri, True) for uri in audio_uris] + [(uri, False) for uri in image_uris]
    for done, source in enumerate(_read_in_order(jobs), start=1):
        (sounds if done <= len(audio_uris) else pictures)[source.uri] = source
        if progress is not None:
            progress(done, total)
    return sounds, pictures


def _read_in_order(jobs: list[tuple[str, bool]]) -> Iterator[Source]:
    num_threads = os.cpu_count() or 1
    waiting: deque[Future[Source]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(_read_source, job))
                if len(waiting) >= FILES_AHEAD * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def speech_columns(
    source: Source | None, *, start_seconds: float | None = None, end_seconds: float | None = None
) -> dict[str, Any]:
    """The manifest's columns of one recording, or of its segment, cut at the nearest samples of its own rate.

    An end beyond the recording's is clamped to it; a segment that then holds nothing goes into `audio_error`.
    """
    if source is None:
        return {}
    columns: dict[str, Any] = {"audio_uri": source.uri, "audio_error": source.error}
    info = source.info
    if source.key is None or (info is None and start_seconds is None and end_seconds is None):
        return columns | {"speech_key": source.key}
    if info is None:
        return columns | {"audio_error": f"{source.undecodable}; so seconds can't be turned into samples"}
    # No number of seconds may overflow.
    start = round(min(start_seconds or 0.0, MAX_SECONDS) * info.sample_rate)
    last = info.num_samples if end_seconds is None else round(min(end_seconds, MAX_SECONDS) * info.sample_rate)
    end = min(info.num_samples, last)
    if not 0 <= start < end:
        length = info.num_samples / info.sample_rate
        detail = f"{source.uri}: [{start_seconds}, {end_seconds}) s holds nothing of its {length:g} s; mend the row"
        return columns | {"audio_error": f"{SegmentOutside.reason}: {detail}"}
    is_whole = (start, end) == (0, info.num_samples)
    bounds = (None, None) if is_whole else (start, end)
    return columns | {
        "speech_key": segment_key(source.key, *bounds),
        "start_sample": bounds[0],
        "end_sample": bounds[1],
        "num_samples": end - start,
        "sample_rate": info.sample_rate,
    }


def image_columns(source: Source | None) -> dict[str, Any]:
    """The manifest's columns of one picture."""
    return {} if source is None else {"image_key": source.key, "image_uri": source.uri, "image_error": source.error}


def text_columns(text: str | None) -> dict[str, Any]:
    """The manifest's columns of one caption; one of white space alone is an asset that featurize rejects."""
    return {"text_key": text_key(text), "text": text} if text else {}


def group_of(columns: dict[str, Any], otherwise: str) -> str:
    """The answer that a row counts as, unless its corpus says otherwise: its picture, else its text, else its sound."""
    keys = (columns.get(name) for name in ("image_key", "text_key", "speech_key"))
    return next((key for key in keys if key), otherwise)


def unreadable(uri: str, why: str) -> Source:
    """A source that is not even tried."""
    return Source(uri, None, error=f"{SourceUnreadable.reason}: {uri}: {why}")


def _read_source(job: tuple[str, bool]) -> Source:
    uri, is_audio = job
    try:
        data = read_source(uri)
    except SourceProblem as error:
        return Source(uri, None, error=f"{error.reason}: {error}")
    key = content_key(data)
    if not is_audio:
        return Source(uri, key)
    try:
        return Source(uri, key, info=probe_audio(data, uri))
    except Rejected as error:
        return Source(uri, key, undecodable=f"{error.reason}: {error}")
    except MemoryError:
        raise MachineFailed(f"{uri}: no memory left to decode it; give the machine more and run again") from None
