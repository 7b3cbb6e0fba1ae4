"""One task on its road: fetch and decode on any CPU, encode and write beside the weights, come back as a receipt."""

import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from speechclip.encoders import Encoder, load_encoder, prepare
from speechclip.errors import EmptyText, NotFinite, Rejected, SourceChanged, SourceProblem
from speechclip.media import decode_audio, decode_image, fetch, text_key
from speechclip.records import Asset, Modality, Receipt, Record, RejectedAsset, StoredAsset, Task
from speechclip.spec import Codec, EncoderSpec
from speechclip.storage import Storage
from speechclip.store.frames import find_shard, pack_shard, write_shard
from speechclip.store.layout import segment_path, shard_path
from speechclip.store.vectors import find_chunk, write_chunk

PROVENANCE_LIBRARIES = ("speechclip", "torch", "transformers", "open_clip_torch", "soundfile", "soxr", "numpy")


class EncoderRequest(Record, frozen=True):
    """How to build an encoder: the words of the command line. The spec that results holds what they mean."""

    source: str
    modality: Modality
    layers: tuple[int, ...] | None = None
    codec: Codec = "fp16"

    def build(self, device: str = "cpu") -> Encoder:
        """The encoder, its weights loaded."""
        return load_encoder(self.source, self.modality, layers=self.layers, codec=self.codec, device=device)


class BatchSizes(Record, frozen=True):
    """How much one call of an encoder takes, padding included: speed, never values."""

    speech_seconds: float = 40.0
    items: int = 64


class DecodedTask(Record, frozen=True):
    """A task on its way from a decode worker to an encoder: its inputs as raw bytes, in the order of its assets."""

    task: Task
    keys: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    buffers: tuple[bytes, ...]
    rejected: tuple[RejectedAsset, ...]

    def inputs(self) -> list[np.ndarray]:
        """The arrays, as `prepare` made them."""
        parts = zip(self.buffers, self.dtypes, self.shapes, strict=True)
        return [np.frombuffer(data, dtype).reshape(shape).copy() for data, dtype, shape in parts]


def decode_task(task: Task, spec: EncoderSpec) -> DecodedTask:
    """Fetch, decode and prepare every asset of the task; what can't be is rejected with its reason."""
    ready = prepare(spec)
    keys, inputs, rejected = [], [], []
    for asset in task.assets:
        try:
            inputs.append(ready(_decode(asset)))
            keys.append(asset.key)
        except Rejected as error:
            source = (asset.uri or asset.text) if isinstance(error, SourceProblem) else None
            rejected.append(RejectedAsset(key=asset.key, reason=error.reason, detail=str(error), source=source))
    return DecodedTask(
        task=task,
        keys=tuple(keys),
        dtypes=tuple(array.dtype.str for array in inputs),
        shapes=tuple(array.shape for array in inputs),
        buffers=tuple(array.tobytes() for array in inputs),
        rejected=tuple(rejected),
    )


def encode_task(decoded: DecodedTask, encoder: Encoder, storage: Storage, sizes: BatchSizes) -> Receipt:
    """Encode what was decoded and put it on storage; a shard that an earlier run left whole is adopted unencoded."""
    task, spec = decoded.task, encoder.spec
    assert spec.fingerprint == task.feature_set, f"task of {task.feature_set} given to {spec.fingerprint}"
    started = time.monotonic()
    found = _find(storage, spec, task, decoded.keys)
    if found is not None:
        path, stored = found
        return _receipt(task, path, stored, decoded.rejected, num_bytes=0, seconds=0.0, num_encoded=0)
    features, not_finite = _encode(decoded, encoder, sizes)
    rejected = decoded.rejected + not_finite
    if not features:
        return _receipt(task, "", (), rejected, num_bytes=0, seconds=time.monotonic() - started, num_encoded=0)
    if spec.is_frames:
        tar = pack_shard(spec, features.items(), {"fingerprint": spec.fingerprint, "libraries": _libraries()})
        path, stored = write_shard(storage, spec, task.id, tar, list(features))
        num_bytes = len(tar)
    else:
        path, stored, num_bytes = write_chunk(storage, spec, task, features)
    seconds = time.monotonic() - started
    return _receipt(task, path, stored, rejected, num_bytes=num_bytes, seconds=seconds, num_encoded=len(features))


def batches(lengths: Sequence[int], limit: int, items: int) -> list[list[int]]:
    """Positions in batches of like length, each at most `limit` when padded; a function of the task alone."""
    order = sorted(range(len(lengths)), key=lambda position: (lengths[position], position))
    groups: list[list[int]] = []
    for position in order:
        if not groups or len(groups[-1]) >= items or (len(groups[-1]) + 1) * lengths[position] > limit:
            groups.append([])
        groups[-1].append(position)
    return groups


def _decode(asset: Asset) -> Any:
    if asset.modality == "text":
        if not (asset.text or "").strip():
            raise EmptyText(f"{asset.key[:12]}: the text is empty")
        if text_key(asset.text or "") != asset.key:
            raise SourceChanged(
                f"{asset.text!r}: not the text of the key {asset.key[:12]}; run `speechclip ingest` again"
            )
        return asset.text
    data = fetch(asset)
    if asset.modality == "image":
        return decode_image(data, name=asset.uri or asset.key)
    return decode_audio(data, name=asset.uri or asset.key, start_sample=asset.start_sample, end_sample=asset.end_sample)


def _encode(
    decoded: DecodedTask, encoder: Encoder, sizes: BatchSizes
) -> tuple[dict[str, np.ndarray], tuple[RejectedAsset, ...]]:
    """The features by key in the task's order, and those that came out as NaN or too large for the codec."""
    inputs = decoded.inputs()
    is_speech = encoder.spec.modality == "speech"
    lengths = [len(array) if is_speech else 1 for array in inputs]
    found: dict[int, np.ndarray] = {}
    for group in batches(lengths, round(sizes.speech_seconds * 16_000), sizes.items):
        for position, feature in zip(group, encoder.encode([inputs[position] for position in group]), strict=True):
            with np.errstate(over="ignore"):
                found[position] = feature.astype(encoder.spec.dtype)
    features, rejected = {}, []
    for position, key in enumerate(decoded.keys):
        if np.isfinite(found[position]).all():
            features[key] = found[position]
        else:
            detail = f"{key}: the feature is not finite in {encoder.spec.codec}; try --codec fp32"
            rejected.append(RejectedAsset(key=key, reason=NotFinite.reason, detail=detail))
    return features, tuple(rejected)


def _find(
    storage: Storage, spec: EncoderSpec, task: Task, keys: Sequence[str]
) -> tuple[str, tuple[StoredAsset, ...]] | None:
    """The whole and verified work of a run that ended between the shard and its commit."""
    if not spec.is_frames:
        path = segment_path(spec.fingerprint, task.segment)
        stored = find_chunk(storage, spec, task, path)
        return (path, stored) if {entry.key for entry in stored} >= set(keys) else None
    path = shard_path(spec.fingerprint, task.id, keys, 0)
    shard = find_shard(storage, spec, path, keys) if keys else None
    return (path, shard) if shard else None


def _receipt(
    task: Task, shard: str, stored: Sequence[StoredAsset], rejected: Sequence[RejectedAsset], **figures: Any
) -> Receipt:
    return Receipt(
        task=task.id,
        feature_set=task.feature_set,
        shard=shard,
        stored=tuple(stored),
        rejected=tuple(rejected),
        **figures,
    )


def _libraries() -> dict[str, str]:
    return {name: version(name) for name in PROVENANCE_LIBRARIES}
