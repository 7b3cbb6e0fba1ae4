"""A toy encoder for tests, by numpy alone: deterministic, and hundreds of times faster than HuBERT."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike

from speechclip.encoders.base import COMPUTE_RULE, Choices, choose_layers
from speechclip.encoders.families import EncoderName
from speechclip.encoders.threads import one_blas_thread
from speechclip.encoders.windows import encode_crops, resolve_window
from speechclip.records import Modality
from speechclip.spec import RESAMPLE_RULE, CodecName, EncoderSpec, Window

WIDTH = 16
NUM_STATES = 3
WINDOW_SAMPLES = 400
HOP_SAMPLES = 320
SIDE = 8
# The rows and the largest weight of each projection. With these, tanh neither saturates nor stays near zero.
PROJECTIONS: dict[Modality, tuple[tuple[int, float], ...]] = {
    "speech": ((WINDOW_SAMPLES // 2 + 1, 0.15), (WIDTH, 0.5), (WIDTH, 0.5)),
    "image": ((SIDE * SIDE * 3, 0.15),),
    "text": ((256, 8.0),),
}
RULES: dict[Modality, dict[str, str]] = {
    "speech": {"resample": RESAMPLE_RULE, "longest": "120s/1"},
    "image": {"resize": "pil-antialias-short-side-centre/1"},
    "text": {"tokens": "utf-8/1"},
}
ARCHITECTURES: dict[Modality, dict[str, Any]] = {
    "speech": {},
    "image": {"preprocess": {"resize": SIDE, "size": SIDE, "interpolation": "bicubic"}},
    "text": {},
}


class ToyEncoder:
    """Random projections with a fixed seed.

    The feature of speech is (3, frames, 16), from its log spectrum. Those of an image, from its pixels, and of a text,
    from its bytes, are (16,).
    """

    def __init__(
        self,
        modality: Modality,
        *,
        layers: Sequence[int] | None = None,
        codec: CodecName = "fp16",
        window: Window = "full",
    ) -> None:
        self.encoder_name = "toy"
        rules = RULES[modality] | ({"window": resolve_window(window, "toy")} if modality == "speech" else {})
        self._matrices = _matrices(modality)
        self.spec = EncoderSpec(
            name=f"toy-untrained-{modality}",
            family="toy",
            modality=modality,
            weights=hashlib.sha256(b"".join(matrix.tobytes() for matrix in self._matrices)).hexdigest(),
            is_trained=False,
            width=WIDTH,
            layers=choose_layers(layers, NUM_STATES, "toy") if modality == "speech" else (),
            hop_samples=HOP_SAMPLES if modality == "speech" else 0,
            window_samples=WINDOW_SAMPLES if modality == "speech" else 0,
            codec=codec,
            rules=rules | {"compute": COMPUTE_RULE},
            architecture=ARCHITECTURES[modality],
        )

    @one_blas_thread()
    def encode(
        self, inputs: Sequence[np.ndarray[Any, Any]], dtype: DTypeLike = np.float32
    ) -> list[np.ndarray[Any, Any]]:
        """One feature for each prepared input. Each is computed alone, so it is equal to the last bit in any batch."""
        features = encode_crops(self.spec, inputs, lambda pieces: [self._encode_one(one) for one in pieces])
        with np.errstate(over="ignore"):
            return [feature.astype(dtype, copy=False) for feature in features]

    def _encode_one(self, one: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        match self.spec.modality:
            case "speech":
                states = self._speech_states(one)
                return np.stack([states[layer] for layer in self.spec.layers])
            case "image":
                return _squash(one.reshape(-1) / np.float32(255) - np.float32(0.5), self._matrices[0])
            case "text":
                share = np.bincount(one, minlength=256).astype(np.float32) / np.float32(len(one))
                return _squash(share, self._matrices[0])

    def _speech_states(self, waveform: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        windows = sliding_window_view(waveform, WINDOW_SAMPLES)[::HOP_SAMPLES]
        state = np.log1p(np.abs(np.fft.rfft(windows))).astype(np.float32)
        states = []
        for matrix in self._matrices:
            state = _squash(state, matrix)
            states.append(state)
        return states


def load_toy(encoder_name: EncoderName, choices: Choices) -> ToyEncoder:
    """The toy encoder of `choices.modality`. It ignores `choices.device`, because it runs on the CPU alone."""
    return ToyEncoder(choices.modality, layers=choices.layers, codec=choices.codec, window=choices.window)


def _squash(values: np.ndarray[Any, Any], matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    squashed: np.ndarray[Any, Any] = np.tanh(values.astype(np.float32) @ matrix)
    return squashed


def _matrices(modality: Modality) -> list[np.ndarray[Any, Any]]:
    generator = np.random.Generator(np.random.PCG64(20_000))
    return [
        (generator.random((rows, WIDTH), dtype=np.float32) * 2 - 1) * np.float32(bound)
        for rows, bound in PROJECTIONS[modality]
    ]
