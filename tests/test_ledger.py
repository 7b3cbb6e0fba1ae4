"""The ledger against an oracle: two manifests that share assets, random mixes of good and bad, reruns and retries."""

import csv
import io
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import soundfile
from counts import count
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from speechclip.corpora.table import read_table
from speechclip.errors import REASONS, SourceProblem, WorkLeft
from speechclip.featurizer import Committer, Summary, list_rejected, prepare_work, run, run_inline
from speechclip.manifest import Manifest
from speechclip.plan import TaskSizes
from speechclip.records import MODALITIES, Modality
from speechclip.store import FeatureStore
from speechclip.tasks import EncoderRequest

TOY = [EncoderRequest(source="toy", modality=modality, codec="fp32") for modality in MODALITIES]
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

sounds, pictures = st.sampled_from(sorted(SOUNDS)), st.sampled_from(sorted(PICTURES))
OUTCOMES: dict[tuple[Modality, str], str] = {
    **{("speech", sha256(data).hexdigest()): end for data, end in SOUNDS.items()},
    **{("image", sha256(data).hexdigest()): end for data, end in PICTURES.items()},
    **{("text", sha256(text.encode()).hexdigest()): end for text, end in TEXTS.items()},
}
# Few names, so that rows share files and files share bytes.
rows = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from("uvw"), st.sampled_from(sorted(TEXTS))),
    min_size=1, max_size=8,
)  # fmt: skip
steps = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.integers(0, 1), st.sampled_from([1.0, 0.2]), st.sampled_from([None, *REASONS])),
        st.tuples(st.just("sound"), st.sampled_from("abcdef"), st.one_of(st.none(), sounds)),
        st.tuples(st.just("picture"), st.sampled_from("uvw"), st.one_of(st.none(), pictures)),
    ),
    min_size=2, max_size=7,
)  # fmt: skip


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


def featurize(uri: str, manifest: Manifest, max_rejected: float, retry: str | None) -> Summary:
    sizes, retried = TaskSizes(shard_items=3, chunk_rows=2), [retry] if retry else []
    work = prepare_work(FeatureStore(uri), manifest, list(zip(TOY, SPECS, strict=True)), sizes, retried)
    committer = Committer(work, group_size=2)
    try:
        run(run_inline(work), committer, max_rejected=max_rejected)
    except WorkLeft:
        assert max_rejected < 1
    else:
        assert committer.summary().missing == 0
    return committer.summary()


def states(uri: str, manifest: Manifest) -> dict[tuple[Modality, str], str]:
    """Of each asset of the manifest: "" where it is stored, its reason where it is rejected, "missing" otherwise."""
    snapshot = FeatureStore(uri).snapshot()
    found: dict[tuple[Modality, str], str] = {}
    for spec in SPECS:
        keys = dict.fromkeys(manifest.utterances(spec.modality), "missing")
        for row in snapshot.rejections(spec.fingerprint, manifest.digest).to_pylist():
            keys |= {row["asset"]: row["reason"]} if row["asset"] in keys else {}
        keys |= dict.fromkeys(keys.keys() & snapshot.stored_keys(spec.fingerprint), "")
        found |= {(spec.modality, key): state for key, state in keys.items()}
    return found


def check(uri: str, manifest: Manifest, summary: Summary) -> None:
    """The ledger adds up, line by line and by our own count of the manifest's rows and the catalog's."""
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


@settings(max_examples=count(20, 400), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    first=rows,
    second=rows,
    disk=st.lists(sounds, min_size=6, max_size=6),
    wall=st.lists(pictures, min_size=3, max_size=3),
    script=steps,
)
def test_planned_is_stored_rejected_and_missing_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, first: list[tuple[str, str, str]], second: list[tuple[str, str, str]],
    disk: list[bytes], wall: list[bytes], script: list[tuple[object, ...]],
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("ledger")
    uri = str(folder / "store")
    # The last file of each kind is missing when the tables are read.
    for name, data in [*zip("abcde", disk, strict=False)]:
        put(folder / f"{name}.wav", data)
    for name, data in [*zip("uv", wall, strict=False)]:
        put(folder / f"{name}.png", data)
    manifests = [write_table(folder / "first.csv", first), write_table(folder / "second.csv", second)]
    for step in [*script, ("run", 0, 1.0, None), ("run", 1, 1.0, None)]:
        match step:
            case ("sound", str(name), data):
                put(folder / f"{name}.wav", data)
            case ("picture", str(name), data):
                put(folder / f"{name}.png", data)
            case ("run", int(number), float(max_rejected), retry):
                manifest = manifests[number]
                before = states(uri, manifest) if FeatureStore(uri).exists() else {}
                summary = featurize(uri, manifest, max_rejected, retry)
                check(uri, manifest, summary)
                after = states(uri, manifest)
                for (modality, key), state in after.items():
                    was = before.get((modality, key), "missing")
                    assert was != "" or state == "", "what is stored stays"
                    if max_rejected == 1 and was in ("missing", retry) and there_now(manifest, modality, key):
                        assert state == OUTCOMES[modality, key]
