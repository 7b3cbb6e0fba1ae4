"""Lhotse's manifests. `recording` and `supervision` below were compared with what lhotse 1.33 writes."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import soundfile
from support.miniatures import picture, put, recording

from speechclip.corpora.lhotse import read_lhotse
from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest
from speechclip.media.content import content_key, fetch


def recorded(name: str, source: object, channels: tuple[int, ...] = (0,), **more: Any) -> dict[str, Any]:
    sources = [{"type": "file", "channels": list(channels), "source": str(source)}]
    length = {"sampling_rate": 16_000, "num_samples": 1_600, "duration": 0.1}
    return {"id": name, "sources": sources} | length | {"channel_ids": list(channels)} | more


def supervised(name: str, of: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "recording_id": of, "start": 0.0, "duration": 0.1, "channel": 0} | more


class Corpus:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.wav = put(root / "a b.wav", recording(1))
        self.recordings = [recorded("a b", self.wav)]

    def read(self, *supervisions: dict[str, Any], **options: Any) -> Manifest:
        lines = [
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in part)
            for part in (self.recordings, supervisions)
        ]
        files = [
            str(put(self.root / f"{name}.jsonl", text))
            for name, text in zip(("recordings", "supervisions"), lines, strict=True)
        ]
        return read_lhotse(*files, **options)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(tmp_path)


def test_a_supervision_becomes_a_row(corpus: Corpus) -> None:
    image = put(corpus.root / "x.jpg", picture(1))
    whole = supervised(
        "s1",
        "a b",
        text="hé",
        language="English",
        speaker="spk",
        gender="F",
        custom={"image": str(image), "snr": 7.5},
        alignment={"word": [["hi", 0.1, 0.2, None]]},
    )
    part = supervised("s2", "a b", start=0.025, duration=0.05)
    first, second = corpus.read(whole, part, split="dev").rows()
    key = content_key(recording(1))
    assert (first["utterance"], first["split"], first["text"], first["language"]) == ("s1", "dev", "hé", "English")
    assert (first["speaker"], first["speech_key"], first["start_sample"]) == ("spk", key, None)
    assert first["group"] == first["image_key"] == content_key(picture(1))
    assert second["speech_key"] == second["group"] == f"{key}-400-1200"
    assert (second["num_samples"], second["text"], second["audio_error"]) == (800, None, None)


def test_a_gzipped_manifest_gives_the_same_rows(corpus: Corpus) -> None:
    plain = corpus.read(supervised("s", "a b"))
    names = []
    for name in ("recordings", "supervisions"):
        data = (corpus.root / f"{name}.jsonl").read_bytes()
        names.append(str(put(corpus.root / f"{name}.jsonl.gz", gzip.compress(data + b"\n"))))
    assert read_lhotse(*names).digest == plain.digest
    put(corpus.root / "recordings.jsonl.gz", (corpus.root / "recordings.jsonl.gz").read_bytes()[:-12])
    with pytest.raises(InvalidInput, match="the gzip is damaged or cut"):
        read_lhotse(*names)


def test_relative_paths_start_in_the_working_directory_or_at_the_root(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.recordings = [recorded("r", "a b.wav")]
    assert corpus.read(supervised("s", "r"), root=str(tmp_path)).source_problems("speech") == []
    monkeypatch.chdir(tmp_path)
    assert corpus.read(supervised("s", "r")).rows()[0]["audio_uri"] == str(tmp_path / "a b.wav")
    os.chdir(tmp_path.parent)
    assert corpus.read(supervised("s", "r")).source_problems("speech")[0].reason == "source-missing"


def test_manifests_and_files_on_s3_are_read_there(corpus: Corpus, s3_uri: str) -> None:
    bucket = s3_uri.split("/")[2]
    client = boto3.client("s3")
    client.upload_file(str(corpus.wav), bucket, "d/a b.wav")
    url = {"type": "url", "channels": [0], "source": f"s3://{bucket}/d/a b.wav"}
    corpus.recordings = [recorded("u", "") | {"sources": [url]}, recorded("f", "d/a b.wav")]
    corpus.read(supervised("1", "u"), supervised("2", "f"))
    for name in ("recordings", "supervisions"):
        client.upload_file(str(corpus.root / f"{name}.jsonl"), bucket, f"{name}.jsonl")
    manifest = read_lhotse(
        f"s3://{bucket}/recordings.jsonl", f"s3://{bucket}/supervisions.jsonl", root=f"s3://{bucket}"
    )
    (asset,) = manifest.assets("speech")
    assert fetch(asset) == recording(1)


def stereo(path: Path) -> Path:
    samples = 0.3 * np.sin(np.outer(np.arange(1_600), [0.1, 0.2]))
    soundfile.write(path, samples, 16_000)
    return path


def test_channels_are_taken_only_as_a_whole_file(corpus: Corpus) -> None:
    both = stereo(corpus.root / "both.wav")
    two_files = recorded("two", corpus.wav)
    two_files["sources"].append({"type": "file", "channels": [1], "source": str(both)})
    apart = put(corpus.root / "right.wav", recording(2))
    one_each = recorded("each", corpus.wav)
    one_each["sources"].append({"type": "file", "channels": [1], "source": str(apart)})
    corpus.recordings = [recorded("both", both, (0, 1)), one_each, two_files]
    rows = {
        row["utterance"]: row
        for row in corpus.read(
            supervised("average", "both", channel=[0, 1]),
            supervised("left", "both", channel=0),
            supervised("right", "each", channel=1),
            supervised("across", "each", channel=[0, 1]),
            supervised("none", "each", channel=5),
            supervised("miscounted", "two", channel=1),
        ).rows()
    }
    assert rows["average"]["speech_key"] == content_key(both.read_bytes())
    assert rows["right"]["speech_key"] == content_key(recording(2))
    errors = {name: row["audio_error"] for name, row in rows.items() if row["speech_key"] is None}
    assert set(errors) == {"left", "across", "none", "miscounted"}
    assert all(error.startswith("source-unreadable: ") for error in errors.values())
    assert "channels [0] of [0, 1] are wanted, but a file is decoded to the average" in errors["left"]
    assert "no one file of it has the channels [0, 1]" in errors["across"]
    assert "no one file of it has the channels [5]" in errors["none"]
    assert "has 2 channels, the manifest states 1" in errors["miscounted"]


def test_a_refused_source_keeps_its_row_and_no_command_is_run(corpus: Corpus) -> None:
    ran = corpus.root / "ran"
    kinds = {
        "command": f"touch {ran}; cat '{corpus.wav}'",
        "url": "https://example.org/a.wav",
        "memory": "UklGRg==",
        "shar": "",
    }
    for kind, source in kinds.items():
        corpus.recordings.append(recorded(kind, "") | {"sources": [{"type": kind, "channels": [0], "source": source}]})
    speed = [{"name": "Speed", "kwargs": {"factor": 1.1}}]
    corpus.recordings += [recorded("fast", corpus.wav, transforms=speed), recorded("bare", "") | {"sources": []}]
    names = [line["id"] for line in corpus.recordings]
    manifest = corpus.read(*(supervised(name, name) for name in [*names, "unknown"]))
    errors = {row["utterance"]: row["audio_error"] for row in manifest.rows()}
    assert errors.pop("a b") is None
    assert not ran.exists()
    assert all(error.startswith("source-unreadable: ") for error in errors.values())
    assert "type 'command', but only files and s3:// are read and no command is run" in errors["command"]
    assert "only local paths and s3:// addresses are read; download the file" in errors["url"]
    assert "type 'memory'" in errors["memory"]
    assert "type 'shar'" in errors["shar"]
    assert "lhotse transforms this recording (Speed)" in errors["fast"]
    assert "no one file" in errors["bare"]
    assert "unknown: no recording of that id" in errors["unknown"]


def test_pictures_that_can_not_be_read_keep_their_rows(corpus: Corpus) -> None:
    images = {"gone": str(corpus.root / "no.jpg"), "odd": {"type": "image"}, "far": "http://x/y.jpg"}
    rows = corpus.read(*(supervised(name, "a b", custom={"image": image}) for name, image in images.items())).rows()
    reasons = {row["utterance"]: row["image_error"].partition(":")[0] for row in rows}
    assert reasons == {"gone": "source-missing", "odd": "source-unreadable", "far": "source-unreadable"}


def test_a_segment_outside_of_its_recording_keeps_its_row_without_a_key(corpus: Corpus) -> None:
    bounds = {
        "late": (5.0, 1.0),
        "before": (-1.0, 0.05),
        "empty": (0.05, 0.0),
        "huge": (1e308, 1e308),
        "long": (0, 9e99),
    }
    lines = [supervised(name, "a b", start=start, duration=length) for name, (start, length) in bounds.items()]
    errors = {row["utterance"]: row["audio_error"] for row in corpus.read(*lines).rows()}
    assert errors.pop("long") is None
    assert all(error.startswith("segment-outside: ") for error in errors.values())


def test_what_does_not_fit_together_is_named(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    corpus.read(supervised("s", "a b"))
    assert caplog.text == ""
    corpus.recordings = [recorded("a b", corpus.wav, sampling_rate=8_000, duration=0.2), recorded("mute", corpus.wav)]
    corpus.read(supervised("s", "a b"))
    assert "1 recordings have another rate or length than stated, so their seconds may be wrong: a b" in caplog.text
    assert "1 recordings have no supervision and are left out: mute" in caplog.text


@pytest.mark.parametrize(
    ("recordings", "supervisions", "message"),
    [
        ("", "", "has no supervisions"),
        ("{", None, "recordings.jsonl: line 1 is not JSON"),
        (b"\xff\xfe", None, "line 1 is not JSON"),
        ("[1]", None, "line 1 is not a recording of lhotse"),
        ('{"id": "x"}', None, "line 1 is not a recording of lhotse.*sources"),
        (
            None,
            '\n{"id": "s", "recording_id": "a b", "start": "0", "duration": 1}',
            "line 2 is not a supervision.*start",
        ),
        (None, json.dumps(supervised("s", "other")), "has none of the recordings that"),
        (None, f"{json.dumps(supervised('s', 'a b'))}\n" * 2, "1 utterance ids occur twice, first 's'"),
        (f"{json.dumps(recorded('a b', 'x'))}\n" * 2, None, "recording 'a b' occurs twice"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(
    recordings: str | bytes | None, supervisions: str | None, message: str, corpus: Corpus
) -> None:
    corpus.read(supervised("s", "a b"))
    files = [str(corpus.root / f"{name}.jsonl") for name in ("recordings", "supervisions")]
    for path, data in zip(files, (recordings, supervisions), strict=True):
        if data is not None:
            put(Path(path), data)
    with pytest.raises(InvalidInput, match=message):
        read_lhotse(*files)


def test_an_endless_line_is_refused(corpus: Corpus) -> None:
    corpus.read(supervised("s", "a b"))
    bomb = str(put(corpus.root / "bomb.gz", gzip.compress(b" " * (1 << 25))))
    with pytest.raises(InvalidInput, match="line 1 is longer than"):
        read_lhotse(bomb, str(corpus.root / "supervisions.jsonl"))
