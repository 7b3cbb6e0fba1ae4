"""From a corpus's utterances to the rows of a manifest: the one place that fills the manifest's columns."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speechclip.corpora.sources import OnProgress, Source, read_sources
from speechclip.errors import SegmentOutside
from speechclip.manifest import Manifest
from speechclip.media.content import segment_key, text_key

# Seconds beyond this many, 31 years, are cut to it, so that the number of samples can't overflow.
MAX_SECONDS = 1e9
_URI_KEYS = (("audio_uri", "speech_key"), ("image_uri", "image_key"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """One utterance as its corpus describes it, before its sources are read.

    `audio` and `image` are addresses. `start` and `end`, in seconds, make it a segment of its recording. Without an
    `id`, the id comes from the content. Without a `group`, the group is the key of the picture, else `picture_name`,
    else the key of the text, else that of the speech.
    """

    id: str | None
    split: str
    audio: str | None = None
    image: str | None = None
    text: str | None = None
    start: float | None = None
    end: float | None = None
    group: str | None = None
    picture_name: str | None = None
    speaker: str | None = None
    language: str | None = None


def read_manifest(utterances: Sequence[Utterance], on_progress: OnProgress | None = None) -> Manifest:
    """The manifest of these utterances, one row each, in order. Each source is read once.

    A source that can't be read doesn't end the ingest: its row has no key, and the reason in `*_error`.
    """
    recordings, pictures = read_sources(
        audio=(one.audio for one in utterances if one.audio),
        images=(one.image for one in utterances if one.image),
        on_progress=on_progress,
    )
    rows = (row_of(one, _found(one.audio, recordings), _found(one.image, pictures)) for one in utterances)
    return Manifest.from_rows(_with_ids(rows))


def row_of(one: Utterance, recording: Source | None, picture: Source | None) -> dict[str, Any]:
    """The manifest's row of an utterance whose sources were read."""
    columns = _speech_columns(recording, start_seconds=one.start, end_seconds=one.end)
    if picture is not None:
        columns |= {"image_key": picture.key, "image_uri": picture.uri, "image_error": picture.error}
    if one.text:
        columns |= {"text_key": text_key(one.text), "text": one.text}
    candidates = (
        one.group, columns.get("image_key"), one.picture_name, columns.get("text_key"), columns.get("speech_key"),
        one.id,
    )  # fmt: skip
    return columns | {
        "utterance": one.id,
        "split": one.split,
        "group": next((group for group in candidates if group), None),
        "speaker": one.speaker,
        "language": one.language,
    }


def _speech_columns(
    recording: Source | None, *, start_seconds: float | None, end_seconds: float | None
) -> dict[str, Any]:
    """The columns of one recording, or of a segment of it, cut at the nearest samples of the file's own rate.

    An end behind the end of the recording becomes the end of the recording. A segment that then holds no sample is
    recorded in `audio_error`.
    """
    if recording is None:
        return {}
    columns: dict[str, Any] = {"audio_uri": recording.uri, "audio_error": recording.error}
    info = recording.info
    if recording.key is None or (info is None and start_seconds is None and end_seconds is None):
        return columns | {"speech_key": recording.key}
    if info is None:
        return columns | {"audio_error": f"{recording.undecodable}; so seconds can't be turned into samples"}
    start = round(min(start_seconds or 0.0, MAX_SECONDS) * info.sample_rate)
    last = info.num_samples if end_seconds is None else round(min(end_seconds, MAX_SECONDS) * info.sample_rate)
    end = min(info.num_samples, last)
    if not 0 <= start < end:
        length = info.num_samples / info.sample_rate
        outside = f"{recording.uri}: [{start_seconds}, {end_seconds}) s holds no sample of its {length:g} s"
        return columns | {"audio_error": f"{SegmentOutside.reason}: {outside}; fix the row"}
    is_whole = (start, end) == (0, info.num_samples)
    bounds = (None, None) if is_whole else (start, end)
    return columns | {
        "speech_key": segment_key(recording.key, *bounds),
        "start_sample": bounds[0],
        "end_sample": bounds[1],
        "num_samples": end - start,
        "sample_rate": info.sample_rate,
    }


def _found(uri: str | None, sources: Mapping[str, Source]) -> Source | None:
    return sources[uri] if uri else None


def _with_ids(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows; those without an id get 16 hex digits of their content, so a moved or sorted table keeps its ids."""
    seen: Counter[str] = Counter()
    for row in rows:
        if row["utterance"] is None:
            content = [row.get(name) for name in ("speech_key", "image_key", "text_key", "speaker", "split")]
            # A source that could not be read has no content. Its file's name takes that place.
            content += [os.path.basename(row[uri]) for uri, key in _URI_KEYS if row.get(uri) and not row.get(key)]
            name = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
            seen[name] += 1
            row["utterance"] = name if seen[name] == 1 else f"{name}-{seen[name]}"
            row["group"] = row["group"] or row["utterance"]
        yield row
