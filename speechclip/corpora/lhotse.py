"""Lhotse's manifests: recordings.jsonl(.gz) and supervisions.jsonl(.gz); a row for each supervision.

A recording names its file, a supervision a stretch of it in seconds, with text, speaker and language; a supervision's
`custom` may hold the path of an `image`. Relative paths begin in the working directory, as for lhotse itself.
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

from speechclip.corpora.listing import folder_storage, show_names
from speechclip.corpora.sources import (
    OnProgress,
    Source,
    group_of,
    image_columns,
    read_sources,
    speech_columns,
    text_columns,
    unreadable,
)
from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest
from speechclip.records import explain
from speechclip.storage import read_uri

# A small gzip may unpack to any size; no recording or supervision takes so much.
MAX_LINE_BYTES = 1 << 24
# Lhotse's own tolerance between the duration that a manifest states and the file's.
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
class _Sound:
    """Where a supervision's recording lies, or the sentence that says why it can't be taken."""

    uri: str
    num_channels: int = 1
    refusal: str | None = None


def read_lhotse(
    recordings: str,
    supervisions: str,
    *,
    split: str = "train",
    root: str | None = None,
    progress: OnProgress | None = None,
) -> Manifest:
    """One row for each supervision, in order, all in `split`; `root` is where relative paths begin.

    Only files and s3:// addresses are read. A command is never run, and lhotse's transforms are not repeated: such rows
    stand in the manifest with that as their reason, as does one channel of a file that holds several, because a
    recording is decoded to the average of its channels.
    """
    base = folder_storage(root or os.getcwd()).root
    known = _by_id(_read_lines(recordings, _Recording), recordings)
    spoken = list(_read_lines(supervisions, _Supervision))
    if not spoken:
        raise InvalidInput(f"{supervisions}: holds no supervisions; give at least one")
    if all(one.recording_id not in known for one in spoken):
        raise InvalidInput(f"{recordings}: has none of the recordings that {supervisions} names; give two that match")
    if silent := sorted(known.keys() - {one.recording_id for one in spoken}):
        logger.warning("%d recordings have no supervision and are left out: %s", len(silent), show_names(silent))
    sounds = [_find_sound(known.get(one.recording_id), one, base) for one in spoken]
    images = [_find_image(one, base) for one in spoken]
    audio, pictures = read_sources(
        audio=(sound.uri for sound in sounds if sound.refusal is None),
        images=(image.uri for image in images if image and image.refusal is None),
        progress=progress,
    )
    _warn_of_other_files(known, spoken, sounds, audio)
    return Manifest.from_rows(
        _row(one, _source(sound, audio), None if image is None else _source(image, pictures), split)
        for one, sound, image in zip(spoken, sounds, images, strict=True)
    )


def _read_lines(uri: str, kind: type[_Kind]) -> Iterator[_Kind]:
    """The records of a JSONL file, packed by gzip or not."""
    data = read_uri(uri)
    raw = io.BytesIO(data)
    stream: Any = gzip.GzipFile(fileobj=raw) if data[:2] == b"\x1f\x8b" else raw
    number = 0
    try:
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES:
                raise InvalidInput(f"{uri}: line {number} is longer than {MAX_LINE_BYTES} bytes; give lhotse's JSONL")
            if line.strip():
                yield msgspec.json.decode(line, type=kind)
    except msgspec.ValidationError as error:
        name = kind.__name__.strip("_").lower()
        raise InvalidInput(f"{uri}: line {number} is no {name} of lhotse's: {explain(error)}; mend it") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{uri}: line {number} is no JSON ({error}); give lhotse's .jsonl or .jsonl.gz") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidInput(f"{uri}: the gzip is damaged or cut ({error}); fetch the file again") from None


def _by_id(recordings: Iterable[_Recording], uri: str) -> dict[str, _Recording]:
    found: dict[str, _Recording] = {}
    for recording in recordings:
        if recording.id in found:
            raise InvalidInput(f"{uri}: recording {recording.id!r} occurs twice; make its id unique")
        found[recording.id] = recording
    return found


def _find_sound(recording: _Recording | None, one: _Supervision, base: str) -> _Sound:
    if recording is None:
        return _Sound(one.recording_id, refusal="no recording of that id among the recordings; mend either file")
    if recording.transforms:
        names = ", ".join(str(step.get("name")) if isinstance(step, dict) else "?" for step in recording.transforms)
        return _Sound(
            recording.sources[0].source if recording.sources else recording.id,
            refusal=f"lhotse transforms this recording ({names}); save its audio by lhotse and ingest that",
        )
    channels = {one.channel} if isinstance(one.channel, int) else set(one.channel)
    matching = [source for source in recording.sources if channels <= set(source.channels)]
    if not matching:
        there = [sorted(source.channels) for source in recording.sources]
        return _Sound(
            recording.id, refusal=f"channels {sorted(channels)} are in no one file of it, which have {there}; join them"
        )
    source = matching[0]
    if channels != set(source.channels):
        return _Sound(
            source.source,
            refusal=f"channels {sorted(channels)} of {sorted(source.channels)} are meant, but a file is decoded to the "
            "average of its channels; save them in a file of their own",
        )
    return _located(source.type, source.source, base, len(source.channels))


def _find_image(one: _Supervision, base: str) -> _Sound | None:
    image = (one.custom or {}).get("image")
    if image is None:
        return None
    if not isinstance(image, str):
        return _Sound(one.id, refusal="its custom image is no path; give a text")
    return _located("file", image, base, 1)


def _located(kind: str, source: str, base: str, num_channels: int) -> _Sound:
    if kind not in ("file", "url"):
        return _Sound(source, refusal=f"a source of type {kind!r}; only files and s3:// are read, no command is run")
    if "://" in source and not source.startswith("s3://"):
        return _Sound(source, refusal="only local paths and s3:// addresses are read; fetch the file")
    if "://" in source or source.startswith("/"):
        return _Sound(source, num_channels)
    return _Sound(f"{base}/{source}" if "://" in base else os.path.normpath(os.path.join(base, source)), num_channels)


def _source(sound: _Sound, found: dict[str, Source]) -> Source:
    if sound.refusal is not None:
        return unreadable(sound.uri, sound.refusal)
    source = found[sound.uri]
    if source.info is not None and source.info.num_channels != sound.num_channels:
        there, stated = source.info.num_channels, sound.num_channels
        return unreadable(sound.uri, f"has {there} channels, the manifest states {stated}; make the recordings anew")
    return source


def _warn_of_other_files(
    known: dict[str, _Recording], spoken: list[_Supervision], sounds: list[_Sound], audio: dict[str, Source]
) -> None:
    """Name the recordings whose file is of another rate or length than stated: likely it is another file."""
    other: dict[str, None] = {}
    for one, sound in zip(spoken, sounds, strict=True):
        info = audio[sound.uri].info if sound.uri in audio else None
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


def _row(one: _Supervision, sound: Source, picture: Source | None, split: str) -> dict[str, Any]:
    columns = speech_columns(sound, start_seconds=one.start, end_seconds=one.start + one.duration)
    columns |= image_columns(picture) | text_columns(one.text)
    return columns | {
        "utterance": one.id,
        "split": split,
        "group": group_of(columns, one.id),
        "speaker": one.speaker,
        "language": one.language,
    }
