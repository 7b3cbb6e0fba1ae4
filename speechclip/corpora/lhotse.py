"""Lhotse's manifests, recordings.jsonl(.gz) and supervisions.jsonl(.gz): one row for each supervision.

A recording names its file. A supervision is a stretch of a recording, in seconds, with text, speaker and language. Its
`custom` may hold the path of an `image`. Relative paths start in the working directory, as in lhotse itself.
"""

import gzip
import io
import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from speechclip.corpora.folder import folder_storage, show_names
from speechclip.corpora.sources import OnProgress, Source, read_sources, unreadable
from speechclip.corpora.utterances import Utterance, row_of
from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest
from speechclip.records import explain
from speechclip.storage import read_uri

# A small gzip can unpack to any size. No recording or supervision is longer than this.
MAX_LINE_BYTES = 1 << 24
# Lhotse's own tolerance between the duration that a manifest states and that of the file.
TOLERANCE_SECONDS = 0.025

logger = logging.getLogger(__name__)


class _AudioSource(msgspec.Struct):
    type: str
    channels: list[int]
    source: str


class _Recording(msgspec.Struct):
    id: str
    sources: list[_AudioSource]
    sampling_rate: int
    num_samples: int
    duration: float
    transforms: list[Any] | None = None


class _Supervision(msgspec.Struct):
    id: str
    recording_id: str
    start: float
    duration: float
    channel: int | list[int] = 0
    text: str | None = None
    language: str | None = None
    speaker: str | None = None
    custom: dict[str, Any] | None = None


_Kind = TypeVar("_Kind", _Recording, _Supervision)


@dataclass(frozen=True)
class _Place:
    """The address of a recording or picture, or the sentence that says why we refuse to read it."""

    uri: str
    num_channels: int = 1
    refusal: str | None = None


def read_lhotse(
    recordings: str,
    supervisions: str,
    *,
    split: str = "train",
    root: str | None = None,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """One row for each supervision, in order, all in `split`. `root` is the folder where relative paths start.

    Only files and s3:// addresses are read. These rows keep the reason instead of a key: a source that is a command
    (no command is run), a recording with lhotse's transforms (they are not applied here), and one channel of a file
    with several (we decode a file to the average of its channels).
    """
    base = folder_storage(root or os.getcwd()).root
    known = _by_id(_read_lines(recordings, _Recording), recordings)
    spoken = list(_read_lines(supervisions, _Supervision))
    if not spoken:
        raise InvalidInput(f"{supervisions}: has no supervisions", "give at least one")
    if all(one.recording_id not in known for one in spoken):
        raise InvalidInput(
            f"{recordings}: has none of the recordings that {supervisions} names", "give two files that match"
        )
    if unused := sorted(known.keys() - {one.recording_id for one in spoken}):
        logger.warning("%d recordings have no supervision and are left out: %s", len(unused), show_names(unused))
    places = [_find_audio(known.get(one.recording_id), one, base) for one in spoken]
    images = [_find_image(one, base) for one in spoken]
    audio, pictures = read_sources(
        audio=(place.uri for place in places if place.refusal is None),
        images=(image.uri for image in images if image and image.refusal is None),
        on_progress=on_progress,
    )
    _warn_of_other_files(known, spoken, places, audio)
    return Manifest.from_rows(
        row_of(_utterance(one, split), _source(place, audio), None if image is None else _source(image, pictures))
        for one, place, image in zip(spoken, places, images, strict=True)
    )


def _utterance(one: _Supervision, split: str) -> Utterance:
    return Utterance(
        id=one.id,
        split=split,
        text=one.text,
        start=one.start,
        end=one.start + one.duration,
        speaker=one.speaker,
        language=one.language,
    )


def _read_lines(uri: str, kind: type[_Kind]) -> Iterator[_Kind]:
    """The records of a JSONL file, compressed by gzip or not."""
    data = read_uri(uri)
    raw = io.BytesIO(data)
    stream: Any = gzip.GzipFile(fileobj=raw) if data[:2] == b"\x1f\x8b" else raw
    number = 0
    try:
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES:
                raise InvalidInput(f"{uri}: line {number} is longer than {MAX_LINE_BYTES} bytes", "give lhotse's JSONL")
            if line.strip():
                yield msgspec.json.decode(line, type=kind)
    except msgspec.ValidationError as error:
        name = kind.__name__.strip("_").lower()
        raise InvalidInput(f"{uri}: line {number} is not a {name} of lhotse: {explain(error)}", "fix it") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{uri}: line {number} is not JSON ({error})", "give lhotse's .jsonl or .jsonl.gz") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidInput(f"{uri}: the gzip is damaged or cut ({error})", "download the file again") from None


def _by_id(recordings: Iterable[_Recording], uri: str) -> dict[str, _Recording]:
    found: dict[str, _Recording] = {}
    for recording in recordings:
        if recording.id in found:
            raise InvalidInput(f"{uri}: recording {recording.id!r} occurs twice", "make its id unique")
        found[recording.id] = recording
    return found


def _find_audio(recording: _Recording | None, one: _Supervision, base: str) -> _Place:
    if recording is None:
        return _Place(one.recording_id, refusal="no recording of that id among the recordings; fix either file")
    if recording.transforms:
        names = ", ".join(str(step.get("name")) if isinstance(step, dict) else "?" for step in recording.transforms)
        return _Place(
            recording.sources[0].source if recording.sources else recording.id,
            refusal=f"lhotse transforms this recording ({names}); save its audio by lhotse and ingest that",
        )
    channels = {one.channel} if isinstance(one.channel, int) else set(one.channel)
    matching = [source for source in recording.sources if channels <= set(source.channels)]
    if not matching:
        there = [sorted(source.channels) for source in recording.sources]
        return _Place(
            recording.id,
            refusal=f"no one file of it has the channels {sorted(channels)}, its files have {there}; "
            "save these channels in one file",
        )
    source = matching[0]
    if channels != set(source.channels):
        return _Place(
            source.source,
            refusal=f"only channels {sorted(channels)} of {sorted(source.channels)} are wanted, but a file is decoded "
            "to the average of its channels; save them in a file of their own",
        )
    return _located(source.type, source.source, base, len(source.channels))


def _find_image(one: _Supervision, base: str) -> _Place | None:
    image = (one.custom or {}).get("image")
    if image is None:
        return None
    if not isinstance(image, str):
        return _Place(one.id, refusal="its custom image is not a path; give a text")
    return _located("file", image, base, 1)


def _located(kind: str, source: str, base: str, num_channels: int) -> _Place:
    if kind not in ("file", "url"):
        return _Place(
            source, refusal=f"a source of type {kind!r}, but only files and s3:// are read and no command is run"
        )
    if "://" in source and not source.startswith("s3://"):
        return _Place(source, refusal="only local paths and s3:// addresses are read; download the file")
    if "://" in source or source.startswith("/"):
        return _Place(source, num_channels)
    return _Place(f"{base}/{source}" if "://" in base else os.path.normpath(os.path.join(base, source)), num_channels)


def _source(place: _Place, found: dict[str, Source]) -> Source:
    if place.refusal is not None:
        return unreadable(place.uri, place.refusal)
    source = found[place.uri]
    if source.info is not None and source.info.num_channels != place.num_channels:
        there, stated = source.info.num_channels, place.num_channels
        return unreadable(
            place.uri, f"has {there} channels, the manifest states {stated}; make the recordings by lhotse again"
        )
    return source


def _warn_of_other_files(
    known: dict[str, _Recording], spoken: list[_Supervision], places: list[_Place], audio: dict[str, Source]
) -> None:
    """Warn of files whose rate or length is not the stated one: the path probably leads to another file."""
    other: dict[str, None] = {}
    for one, place in zip(spoken, places, strict=True):
        info = audio[place.uri].info if place.uri in audio else None
        stated = known.get(one.recording_id)
        if info is None or stated is None:
            continue
        seconds = info.num_samples / info.sample_rate
        if info.sample_rate != stated.sampling_rate or abs(seconds - stated.duration) > TOLERANCE_SECONDS:
            other[one.recording_id] = None
    if other:
        logger.warning(
            "%d recordings have another rate or length than stated, so their seconds may be wrong: %s",
            len(other), show_names(list(other)),
        )  # fmt: skip
