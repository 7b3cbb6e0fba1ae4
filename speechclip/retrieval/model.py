"""A trained model without a store: recordings, texts and pictures become vectors that can be compared.

model = speechclip.load("demo/run")
model.embed("dog.wav") @ model.embed_text("a dog in the snow")  # the cosine, from -1 to 1
"""

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
import torch
from jaxtyping import Float

from speechclip.encoders import Encoder, load_encoder, prepare
from speechclip.encoders.prepare import longest_samples
from speechclip.errors import InvalidInput
from speechclip.media.content import content_key
from speechclip.media.decode import decode_audio, decode_image
from speechclip.media.source import read_source
from speechclip.records import Modality
from speechclip.spec import SAMPLE_RATE
from speechclip.store.codec import codec_of
from speechclip.training.identity import FeatureSetRef
from speechclip.training.run import Run, load_run

# A path or address, or a pair of samples and their rate. The samples are an array (samples,) or (samples, channels), of
# floats from -1 to 1 or of integers over their type's whole range.
Audio = str | os.PathLike[str] | tuple[np.ndarray, int]
MAX_CHANNELS = 64
Vector = Float[np.ndarray, " width"]


class Model:
    """A finished run with its encoders. Each encoder is loaded when it is first needed.

    All vectors have length one, so a dot product of two is their cosine. Features are rounded as in a store. So a
    recording gets the same vector as its stored embedding, within 1e-5.
    """

    def __init__(self, trained: Run, *, device: str = "cpu") -> None:
        self.trained, self.device = trained, device
        self._head = trained.head.to(device)
        self._encoders: dict[Modality, Encoder] = {}

    def embed(self, audio: Audio | Sequence[Audio]) -> Float[np.ndarray, "*recordings width"]:
        """The vector (width,) of a recording, or the vectors (recordings, width) of a list of them.

        `Rejected` if a recording can't be encoded, for example because it is silent. If the head was trained on crops,
        the vector is that of the recording's first crop.
        """
        if isinstance(audio, list):
            vectors = [self._embed_one(one) for one in audio]
            return np.stack(vectors) if vectors else np.empty((0, self._head.config.embedding_width), np.float32)
        return self._embed_one(audio)  # type: ignore[arg-type]

    def embed_text(self, text: str) -> Vector:
        """The vector of a text, by the text tower of the CLIP that encoded the run's images."""
        # The run records the digest of the image tower only. Loading that one proves that this is the run's CLIP.
        self.encoder("image")
        if "text" not in self._encoders:
            image = self.trained.info.identity.image
            self._encoders["text"] = load_encoder(image.encoder_name, "text", codec=image.codec, device=self.device)
        return self._to_joint(self._encode(self._encoders["text"], text))

    def embed_image(self, uri: str | os.PathLike[str]) -> Vector:
        """The vector of a picture, at a path or address."""
        name = os.fspath(uri)
        return self._to_joint(self._encode(self.encoder("image"), decode_image(read_source(name), name=name)))

    def encoder(self, modality: Modality) -> Encoder:
        """The encoder of the run's speech or images.

        `InvalidInput` if the encoder of that name has other weights on this machine than the run's.
        """
        if modality not in self._encoders:
            identity = self.trained.info.identity
            self._encoders[modality] = _load(
                identity.speech if modality == "speech" else identity.image, modality, self.device
            )
        return self._encoders[modality]

    def encode_audio(self, audio: Audio) -> Float[np.ndarray, "layers frames width"]:
        """The frames of a recording as they would be stored; if the run reads crops, those of its first crop."""
        encoder = self.encoder("speech")
        data, name = _bytes_of(audio)
        waveform = decode_audio(data, name=name, max_seconds=longest_samples(encoder.spec) / SAMPLE_RATE)
        hidden = self._encode(encoder, waveform, content_key(data))
        return hidden[:, : encoder.spec.frames_per_crop] if encoder.spec.num_crops else hidden

    def _embed_one(self, audio: Audio) -> Vector:
        hidden = self.encode_audio(audio)
        frames = torch.from_numpy(np.ascontiguousarray(hidden))[None].to(self.device)
        with torch.inference_mode():
            output = self._head(frames, torch.tensor([hidden.shape[1]], device=self.device))
        return np.asarray(output.embedding[0].cpu().numpy())

    def _encode(self, encoder: Encoder, decoded: Any, key: str = "") -> np.ndarray:
        feature = encoder.encode([prepare(encoder.spec, key)(decoded)], codec_of(encoder.spec).dtype)[0]
        return feature.astype(np.float32)

    def _to_joint(self, vector: np.ndarray) -> Vector:
        with torch.inference_mode():
            joint = self._head.embed_images(torch.from_numpy(vector)[None].to(self.device))
        return np.asarray(joint[0].cpu().numpy())


def load(uri: str | os.PathLike[str], *, device: str = "cpu") -> Model:
    """The model of the finished run in a folder, local or `s3://`; `InvalidInput` if the folder has none.

    model = speechclip.load("s3://bucket/run", device="cuda")
    vectors = model.embed(["dog.wav", "cat.wav"])  # (2, width)
    """
    return Model(load_run(os.fspath(uri)), device=device)


def _load(source: FeatureSetRef, modality: Modality, device: str) -> Encoder:
    encoder = load_encoder(
        source.encoder_name,
        modality,
        layers=source.layers or None,
        codec=source.codec,
        window=source.window,
        device=device,
    )
    if encoder.spec.fingerprint != source.fingerprint:
        raise InvalidInput(
            f"{source.encoder_name} is {encoder.spec.fingerprint} here, but the head was trained on "
            f"{source.fingerprint}",
            "give the weights that it was trained with",
        )
    return encoder


def _bytes_of(audio: Audio) -> tuple[bytes, str]:
    """The bytes and the name of a recording. Samples become a wav in memory, so they are decoded like a file."""
    if not isinstance(audio, tuple):
        name = os.fspath(audio)
        return read_source(name), name
    samples, rate = np.asarray(audio[0]), audio[1]
    name = f"samples of shape {samples.shape}"
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[1] > MAX_CHANNELS):
        raise InvalidInput(
            f"{name} can't be decoded", f"give (samples,) or (samples, channels), with up to {MAX_CHANNELS} channels"
        )
    if np.issubdtype(samples.dtype, np.integer):
        samples = samples / -float(np.iinfo(samples.dtype).min)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.astype(np.float32), rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue(), name
