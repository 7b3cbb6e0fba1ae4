"""One task: any CPU fetches and decodes its assets, an encoder makes features of them, and storage gets one object.

receipt = TaskEncoder(encoder, storage, BatchSizes())(decode_task(task, encoder.spec))
"""

import functools
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

import msgspec
import numpy as np

from speechclip.batching import batch_by_length
from speechclip.encoders import Encoder, load_encoder, prepare
from speechclip.encoders.prepare import longest_samples
from speechclip.errors import MachineFailed, NotFinite, Rejected, SourceProblem
from speechclip.media.content import fetch
from speechclip.media.decode import decode_audio, decode_image, decoder
from speechclip.records import Asset, Modality, Receipt, Record, RejectedAsset, StoredAsset, Task
from speechclip.spec import SAMPLE_RATE, CodecName, EncoderSpec, Window
from speechclip.storage import Storage
from speechclip.store.codec import codec_of
from speechclip.store.layout import matrix_path, shard_path
from speechclip.store.shards import find_shard, pack_shard, write_shard
from speechclip.store.vectors import find_chunk, write_chunk

PROVENANCE_LIBRARIES = ("speechclip", "torch", "transformers", "open_clip_torch", "soundfile", "soxr", "numpy")


class EncoderRequest(Record, frozen=True):
    """How to build an encoder, in the words of the command line. `build().spec` holds what they mean."""

    encoder_name: str
    modality: Modality
    layers: tuple[int, ...] | None = None
    codec: CodecName = "fp16"
    window: Window = "full"

    @classmethod
    def again(cls, spec: EncoderSpec, encoder_name: str) -> "EncoderRequest":
        """The request that builds the encoder of a stored feature set again."""
        return cls(
            encoder_name=encoder_name,
            modality=spec.modality,
            layers=spec.layers or None,
            codec=spec.codec,
            window=spec.window,
        )

    def build(self, device: str = "cpu") -> Encoder:
        """The encoder with its weights loaded, on `cpu`, `cuda`, or `auto` for a GPU if there is one."""
        return load_encoder(
            self.encoder_name, self.modality, layers=self.layers, codec=self.codec, device=device, window=self.window
        )


class BatchSizes(Record, frozen=True):
    """How much one call of an encoder gets, padding included. Changes speed, never a feature."""

    speech_seconds: Annotated[float, msgspec.Meta(gt=0)] = 40.0
    items: Annotated[int, msgspec.Meta(ge=1)] = 64


class DecodedTask(Record, frozen=True):
    """A decoded task on the way to its encoder: the inputs as raw bytes, in the order of its assets.

    `keys`, `dtypes`, `shapes` and `buffers` have one entry for each asset that is not rejected.
    """

    task: Task
    keys: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    buffers: tuple[bytes, ...]
    rejected: tuple[RejectedAsset, ...]

    def inputs(self) -> list[np.ndarray]:
        """The arrays that `encoders.prepare` made."""
        parts = zip(self.buffers, self.dtypes, self.shapes, strict=True)
        return [np.frombuffer(data, dtype).reshape(shape).copy() for data, dtype, shape in parts]


def decode_task(task: Task, spec: EncoderSpec) -> DecodedTask:
    """Fetch, decode and prepare every asset of the task. An asset that can't be decoded is rejected with its reason.

    Raises `StorageFailed` if the storage does not answer, and `MachineFailed` if memory is used up: neither says
    anything about the asset.
    """
    keys, inputs, rejected = [], [], []
    for asset in task.assets:
        try:
            inputs.append(prepare(spec, asset.key)(_decode(asset, spec)))
            keys.append(asset.key)
        except Rejected as error:
            rejected.append(_rejection(asset, error))
        except MemoryError:
            raise MachineFailed(
                f"{asset.uri or asset.key}: no memory left to decode it", "give the machine more memory and run again"
            ) from None
    return DecodedTask(
        task=task,
        keys=tuple(keys),
        dtypes=tuple(array.dtype.str for array in inputs),
        shapes=tuple(array.shape for array in inputs),
        buffers=tuple(array.tobytes() for array in inputs),
        rejected=tuple(rejected),
    )


def encode_task(decoded: DecodedTask, encoder: Encoder, storage: Storage, sizes: BatchSizes) -> Receipt:
    """Encode a decoded task and write its shard or chunk. A whole one that an earlier job left is reused as it is."""
    task, spec = decoded.task, encoder.spec
    assert spec.fingerprint == task.feature_set, f"task of {task.feature_set} given to {spec.fingerprint}"
    started = time.monotonic()
    found = _find(storage, spec, task, decoded.keys)
    if found is not None:
        path, stored = found
        return _receipt(task, path, stored, decoded.rejected, num_bytes=0, seconds=0.0, num_encoded=0)
    features, not_finite = encode_inputs(decoded, encoder, sizes)
    rejected = decoded.rejected + not_finite
    if not features:
        return _receipt(task, "", (), rejected, num_bytes=0, seconds=time.monotonic() - started, num_encoded=0)
    encoded = time.monotonic()
    if spec.is_frames:
        tar = pack_shard(spec, features.items(), {"fingerprint": spec.fingerprint, "libraries": _libraries()})
        path, stored = write_shard(storage, spec, task.id, tar, list(features))
        num_bytes = len(tar)
    else:
        path, stored, num_bytes = write_chunk(storage, spec, task, features)
    ended = time.monotonic()
    return _receipt(
        task,
        path,
        stored,
        rejected,
        num_bytes=num_bytes,
        seconds=ended - started,
        write_seconds=ended - encoded,
        num_encoded=len(features),
    )


class TaskEncoder:
    """Encodes one task after the other with one encoder. Each receipt also says how long the encoder had waited."""

    def __init__(self, encoder: Encoder, storage: Storage, sizes: BatchSizes) -> None:
        self.encoder, self.storage, self.sizes = encoder, storage, sizes
        self._free_since = time.monotonic()

    def __call__(self, decoded: DecodedTask) -> Receipt:
        """Encode the next task and write it."""
        idle = time.monotonic() - self._free_since
        receipt = encode_task(decoded, self.encoder, self.storage, self.sizes)
        self._free_since = time.monotonic()
        return msgspec.structs.replace(receipt, idle_seconds=idle)


def _decode(asset: Asset, spec: EncoderSpec) -> Any:
    data, name = fetch(asset), asset.uri or asset.key
    match asset.modality:
        case "text":
            return data.decode()
        case "image":
            return decode_image(data, name=name)
        case "speech":
            return decode_audio(
                data,
                name=name,
                start_sample=asset.start_sample,
                end_sample=asset.end_sample,
                max_seconds=longest_samples(spec) / SAMPLE_RATE,
            )


def _rejection(asset: Asset, error: Rejected) -> RejectedAsset:
    """The record of a rejection. One by the bytes names the decoder, because a later decoder may read them."""
    if isinstance(error, SourceProblem):
        return RejectedAsset(
            key=asset.key, reason=error.reason, detail=str(error), source=asset.uri or asset.text or ""
        )
    judge = decoder(asset.modality)
    return RejectedAsset(key=asset.key, reason=error.reason, detail=f"{error} ({judge})" if judge else str(error))


def encode_inputs(
    decoded: DecodedTask, encoder: Encoder, sizes: BatchSizes
) -> tuple[dict[str, np.ndarray], tuple[RejectedAsset, ...]]:
    """The features by key, in the order of the task, and the assets whose feature is NaN or too large for the codec."""
    inputs = decoded.inputs()
    is_speech = encoder.spec.modality == "speech"
    lengths = [len(array) if is_speech else 1 for array in inputs]
    codec, found = codec_of(encoder.spec), dict[int, np.ndarray]()
    for group in batch_by_length(lengths, round(sizes.speech_seconds * SAMPLE_RATE), sizes.items):
        features_of_group = encoder.encode([inputs[position] for position in group], codec.dtype)
        found |= dict(zip(group, features_of_group, strict=True))
    features, rejected = {}, []
    for position, key in enumerate(decoded.keys):
        refused = codec.refuses(found[position])
        if refused is None:
            features[key] = found[position]
        else:
            detail = f"{key}: the feature holds {refused} in {codec.name}; try --codec fp32"
            rejected.append(RejectedAsset(key=key, reason=NotFinite.reason, detail=detail))
    return features, tuple(rejected)


def _find(
    storage: Storage, spec: EncoderSpec, task: Task, keys: Sequence[str]
) -> tuple[str, tuple[StoredAsset, ...]] | None:
    """The path and the assets of this task's shard or chunk, if an earlier job wrote it whole and did not commit it."""
    if not spec.is_frames:
        path = matrix_path(spec.fingerprint, task.matrix)
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
        speech_seconds=stored_seconds(task, stored),
        **figures,
    )


def stored_seconds(task: Task, stored: Sequence[StoredAsset]) -> float:
    """Seconds of speech in the assets of the task that are stored."""
    keys = {entry.key for entry in stored}
    return sum(asset.seconds for asset in task.assets if asset.key in keys)


@functools.cache
def _libraries() -> dict[str, str]:
    return {name: version(name) for name in PROVENANCE_LIBRARIES}
