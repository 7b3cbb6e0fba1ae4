"""Read each source of a corpus once: recordings are probed, pictures are hashed."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from speechclip.errors import MachineFailed, Rejected, SourceProblem, SourceUnreadable
from speechclip.media.content import content_key
from speechclip.media.decode import AudioInfo, probe_audio
from speechclip.media.source import read_source

# Called as on_progress(done, total) after every source.
OnProgress = Callable[[int, int], None]

# How many sources a thread may be ahead of the one that is waited for. A corpus can have a million of them.
SOURCES_AHEAD = 16


@dataclass(frozen=True, slots=True)
class Source:
    """A source as it was found at ingest: its content key, or why it can't be read.

    A recording that can't be decoded has a key and no `info`; `undecodable` says why. Ingest doesn't reject it:
    featurize decodes it again and records the reason for every manifest.
    """

    uri: str
    key: str | None
    info: AudioInfo | None = None
    error: str | None = None
    undecodable: str | None = None


def read_sources(
    *, audio: Iterable[str], images: Iterable[str], on_progress: OnProgress | None = None
) -> tuple[dict[str, Source], dict[str, Source]]:
    """The recordings and the pictures by address, each read once even if it is given several times.

    One thread a processor reads. A source that can't be read gets an `error`. A failure that says nothing about the
    source (the network, no memory) is raised and ends the ingest.
    """
    audio_uris, image_uris = list(dict.fromkeys(audio)), list(dict.fromkeys(images))
    total = len(audio_uris) + len(image_uris)
    recordings: dict[str, Source] = {}
    pictures: dict[str, Source] = {}
    jobs = [(uri, True) for uri in audio_uris] + [(uri, False) for uri in image_uris]
    for done, source in enumerate(_read_in_order(jobs), start=1):
        (recordings if done <= len(audio_uris) else pictures)[source.uri] = source
        if on_progress is not None:
            on_progress(done, total)
    return recordings, pictures


def unreadable(uri: str, why: str) -> Source:
    """A source that ingest refuses without reading it."""
    return Source(uri, None, error=f"{SourceUnreadable.reason}: {uri}: {why}")


def _read_in_order(jobs: list[tuple[str, bool]]) -> Iterator[Source]:
    num_threads = os.cpu_count() or 1
    waiting: deque[Future[Source]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(_read_source, job))
                if len(waiting) >= SOURCES_AHEAD * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


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
        raise MachineFailed(f"{uri}: no memory left to decode it", "give the machine more and run again") from None
