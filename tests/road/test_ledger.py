"""The ledger against a model: two manifests that share assets, random good and bad sources, reruns and retries."""

import csv
import io
import random
from collections.abc import Collection
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from support.counts import count

from speechclip.corpora.table import read_table
from speechclip.errors import REASONS, SourceProblem, WorkLeft
from speechclip.featurization.driver import (
    GroupCommitter,
    Summary,
    commit_receipts,
    encode_inline,
    prepare_work,
)
from speechclip.featurization.plan import TaskSizes
from speechclip.featurization.rejections import list_rejected
from speechclip.featurization.tasks import EncoderRequest
from speechclip.manifest import Manifest
from speechclip.records import MODALITIES, Modality
from speechclip.store import FeatureStore

TOY = [EncoderRequest(encoder_name="toy", modality=modality, codec="fp32") for modality in MODALITIES]
SPECS = [request.build().spec for request in TOY]
BY_SOURCE = {kind.reason for kind in SourceProblem.__subclasses__()}


def wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def png(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


TONE = np.sin(np.arange(800) / 5)
# What a file may hold, and what becomes of it by its bytes ("" is stored).
SOUNDS: dict[bytes, str] = {wav(TONE / n): "" for n in range(1, 5)} | {
    wav(0 * TONE): "silent", wav(TONE[:99]): "too-short", wav(TONE * np.nan): "not-finite", b"": "empty-audio",
    b"no sound" * 9: "undecodable", wav(TONE)[:-9]: "truncated",
}  # fmt: skip
PICTURES: dict[bytes, str] = {png(n): "" for n in range(3)} | {b"": "broken-image", png(0)[:-30]: "broken-image"}
TEXTS = {"red": "", "blue": "", " ": "empty-text", "\t": "empty-text"}

OUTCOMES: dict[tuple[Modality, str], str] = {
    **{("speech", sha256(data).hexdigest()): end for data, end in SOUNDS.items()},
    **{("image", sha256(data).hexdigest()): end for data, end in PICTURES.items()},
    **{("text", sha256(text.encode()).hexdigest()): end for text, end in TEXTS.items()},
}
# Few names, so that rows share files, files share bytes and manifests share both.
RECORDINGS, WALL = "abcdefg", "uvw"


def put(path: Path, data: bytes | None) -> None:
    path.unlink(missing_ok=True)
    if data is not None:
        path.write_bytes(data)


def write_table(path: Path, table: list[tuple[str, str, str]]) -> Manifest:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "audio", "image", "text", "split"])
        writer.writerows([n, f"{a}.wav", f"{i}.png", text, "train"] for n, (a, i, text) in enumerate(table))
    return read_table(str(path))


def featurize(uri: str, manifest: Manifest, max_rejected: float, retry: Collection[str]) -> Summary:
    sizes = TaskSizes(shard_items=3, chunk_rows=2)
    work = prepare_work(FeatureStore(uri), manifest, list(zip(TOY, SPECS, strict=True)), sizes, retry)
    committer = GroupCommitter(work, group_size=2)
    try:
        commit_receipts(encode_inline(work), committer, max_rejected=max_rejected)
    except WorkLeft:
        assert max_rejected < 1
    else:
        assert committer.summary().missing == 0
    return committer.summary()


def states(uri: str, manifest: Manifest) -> dict[tuple[Modality, str], str]:
    """For each asset of the manifest: "" if it is stored, the reason if it is rejected, else "missing"."""
    snapshot = FeatureStore(uri).snapshot()
    found: dict[tuple[Modality, str], str] = {}
    for spec in SPECS:
        keys = dict.fromkeys(manifest.utterances(spec.modality), "missing")
        rows = snapshot.rejections(spec.fingerprint, manifest.digest).to_pylist()
        # A reason by the bytes stands before one by the source.
        for row in sorted(rows, key=lambda row: row["source"] is None):
            keys |= {row["asset"]: row["reason"]} if row["asset"] in keys else {}
        keys |= dict.fromkeys(keys.keys() & snapshot.stored_keys(spec.fingerprint), "")
        found |= {(spec.modality, key): state for key, state in keys.items()}
    return found


def check(uri: str, manifest: Manifest, summary: Summary) -> None:
    """Check that the ledger adds up, and that it equals a count of the rows of the manifest and the catalog."""
    found = states(uri, manifest)
    unread = {(row["audio_uri"], row["audio_error"]) for row in manifest.rows() if row["audio_error"]}
    unread |= {(row["image_uri"], row["image_error"]) for row in manifest.rows() if row["image_error"]}
    num_stored = sum(state == "" for state in found.values())
    num_missing = sum(state == "missing" for state in found.values())
    assert summary.planned == len(found) + len(unread)
    assert summary.stored_before + summary.encoded == num_stored
    assert summary.missing == num_missing
    assert summary.rejected == summary.planned - num_stored - num_missing
    listed = list_rejected(FeatureStore(uri), manifest)
    assert len(listed) == summary.rejected
    assert all(entry.utterances for entry in listed)
    for (modality, key), state in found.items():
        # Nothing good is rejected by its bytes, nothing bad is stored.
        assert state in BY_SOURCE or state in ("missing", OUTCOMES[modality, key]), (modality, key, state)


def there_now(manifest: Manifest, modality: Modality, key: str) -> bool:
    """Whether one of the asset's addresses holds its bytes now."""
    if modality == "text":
        return True
    uris = {
        row[f"{'audio' if modality == 'speech' else 'image'}_uri"]
        for row in manifest.rows_where(f"{modality}_key", [key])
    }
    return any(Path(uri).exists() and sha256(Path(uri).read_bytes()).hexdigest() == key for uri in uris)


def rows_of(chance: random.Random) -> list[tuple[str, str, str]]:
    return [(chance.choice(RECORDINGS), chance.choice(WALL), chance.choice(sorted(TEXTS))) for _ in range(8)]


def change(path: Path, original: bytes | None, others: list[bytes], chance: random.Random) -> None:
    """Delete the file, bring it back, or give it the bytes of another file."""
    put(path, chance.choice([None, original, chance.choice(others)]))


@pytest.mark.parametrize("seed", range(count(5, 40)))
def test_planned_is_stored_rejected_and_missing_whatever_happens(tmp_path: Path, seed: int) -> None:
    """One seed alone: `pytest tests/road/test_ledger.py -k "[7]"`."""
    chance, uri = random.Random(seed), str(tmp_path / "store")
    # Fewer contents than files: most have a copy.
    sounds, pictures = chance.sample(sorted(SOUNDS), 4), chance.sample(sorted(PICTURES), 2)
    kinds = {
        **{tmp_path / f"{name}.wav": sounds for name in RECORDINGS},
        **{tmp_path / f"{name}.png": pictures for name in WALL},
    }
    disk: dict[Path, bytes | None] = {path: chance.choice(kind) for path, kind in kinds.items()}
    # These are missing when the tables are read.
    disk |= dict.fromkeys([tmp_path / f"{RECORDINGS[-1]}.wav", tmp_path / f"{WALL[-1]}.png"])
    for path, data in disk.items():
        put(path, data)
    manifests = [write_table(tmp_path / name, rows_of(chance)) for name in ("first.csv", "second.csv")]
    for step in range(5):
        for path in chance.sample(sorted(disk), 3):
            change(path, disk[path], kinds[path], chance)
        manifest = manifests[step % 2]
        before = states(uri, manifest) if step else {}
        assert step > 1 or not BY_SOURCE & set(before.values()), "what a source did hides nothing from another manifest"
        max_rejected = chance.choice([1.0, 1.0, 0.4])
        reasons = sorted(set(before.values()) & set(REASONS), key=lambda reason: reason not in BY_SOURCE)
        retry = chance.sample(reasons[:2], chance.randrange(min(2, len(reasons)) + 1))
        summary = featurize(uri, manifest, max_rejected, retry)
        check(uri, manifest, summary)
        for (modality, key), state in states(uri, manifest).items():
            was = before.get((modality, key), "missing")
            assert was != "" or state == "", "what is stored stays"
            if max_rejected == 1 and was in ("missing", *retry) and there_now(manifest, modality, key):
                assert state == OUTCOMES[modality, key]
    for path, data in disk.items():
        put(path, data)
    for manifest in manifests:
        check(uri, manifest, featurize(uri, manifest, 1.0, BY_SOURCE))
        for (modality, key), state in states(uri, manifest).items():
            assert state == OUTCOMES[modality, key], "every source is back: only the bytes count"
