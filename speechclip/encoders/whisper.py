"""Whisper's encoder on a window that depends on the utterance alone: a one second clip costs one second, not thirty."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from speechclip.encoders.base import COMPUTE_RULE, EncoderName, choose_layers, clean_name
from speechclip.encoders.frozen import assert_exact, assert_frozen, collect, freeze, use_device
from speechclip.encoders.untrained import fill_untrained
from speechclip.encoders.weights import find_folder, load_strictly, weights_digest
from speechclip.errors import InvalidInput
from speechclip.spec import RESAMPLE_RULE, SAMPLE_RATE, Codec, EncoderSpec

ARCHITECTURE = [
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "activation_function",
    "num_mel_bins",
    "max_source_positions",
    "scale_embedding",
]
UNTRAINED_TINY = {"d_model": 96, "encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 192}
FFT_SAMPLES = 400
MEL_HOP_SAMPLES = 160
HOP_SAMPLES = 2 * MEL_HOP_SAMPLES
CPU_SECONDS, GPU_SECONDS = 1, 480


class WhisperStates:
    """All hidden states of a Whisper encoder, (layers, frames, width), 50 frames a second.

    The waveform is padded with zeros to the next full second and the position embeddings are cut to that length; the
    ceil(samples / 320) frames that hold speech are kept. State 0 is the input with positions, state i leaves layer i;
    the final LayerNorm is not applied.
    """

    def __init__(self, model: Any, spec: EncoderSpec, encoder_name: str, *, max_seconds: int | None = None) -> None:
        self.spec = spec
        self.encoder_name = encoder_name
        self._model: Any = freeze(model)
        self._device = next(model.parameters()).device
        self._max_seconds = max_seconds or (CPU_SECONDS if self._device.type == "cpu" else GPU_SECONDS)
        self._mel_filters = torch.from_numpy(_mel_filters(model.num_mel_bins)).to(self._device)
        self._window = torch.hann_window(FFT_SAMPLES, device=self._device)

    @torch.inference_mode()
    def encode(
        self, inputs: Sequence[np.ndarray[Any, Any]], dtype: DTypeLike = np.float32
    ) -> list[np.ndarray[Any, Any]]:
        """One (layers, frames, width) array per waveform, in order; batches hold windows of equal length."""
        assert_frozen(self._model)
        assert_exact(self._device)
        features: dict[int, np.ndarray[Any, Any]] = {}
        for seconds, members in self._groups(inputs):
            mels = torch.stack([self._log_mel(inputs[member], seconds) for member in members])
            lengths = [self.spec.num_frames(len(inputs[member])) for member in members]
            states = collect(self._states(mels), len(self.spec.layers), lengths, dtype)
            features |= dict(zip(members, states, strict=True))
        return [features[position] for position in range(len(inputs))]

    def _groups(self, inputs: Sequence[np.ndarray[Any, Any]]) -> Iterator[tuple[int, list[int]]]:
        """Windows of equal length, in seconds, with the positions that share them."""
        by_seconds: dict[int, list[int]] = {}
        for position, waveform in enumerate(inputs):
            by_seconds.setdefault(-(-len(waveform) // SAMPLE_RATE), []).append(position)
        for seconds, members in sorted(by_seconds.items()):
            step = max(1, self._max_seconds // seconds)
            for first in range(0, len(members), step):
                yield seconds, members[first : first + step]

    def _log_mel(self, waveform: np.ndarray[Any, Any], seconds: int) -> Tensor:
        """(mel bins, 100 frames a second): log10, at most 8 below the utterance's own peak (openai, audio.py)."""
        samples = torch.zeros(seconds * SAMPLE_RATE, device=self._device)
        samples[: len(waveform)] = torch.from_numpy(waveform)
        spectrum = torch.stft(samples, FFT_SAMPLES, MEL_HOP_SAMPLES, window=self._window, return_complex=True)
        mel = self._mel_filters.T @ (spectrum[:, :-1].abs() ** 2)
        log_mel = mel.clamp(min=1e-10).log10()
        return (log_mel.maximum(log_mel.max() - 8.0) + 4.0) / 4.0

    def _states(self, mels: Tensor) -> Iterator[Tensor]:
        model = self._model
        hidden = torch.nn.functional.gelu(model.conv1(mels))
        hidden = torch.nn.functional.gelu(model.conv2(hidden)).transpose(1, 2)
        hidden = hidden + model.embed_positions.weight[: hidden.shape[1]]
        for state in range(self.spec.layers[-1] + 1):
            if state > 0:
                hidden = model.layers[state - 1](hidden, None)
            if state in self.spec.layers:
                yield hidden


def load_whisper(
    encoder_name: EncoderName, *, layers: Sequence[int] | None = None, codec: Codec = "fp16", device: str = "cpu"
) -> WhisperStates:
    """The encoder half of a Whisper folder or hub id, or the untrained one."""
    found = use_device(device)
    if encoder_name.rest.startswith("untrained"):
        if encoder_name.rest != "untrained-tiny":
            raise InvalidInput(f"{encoder_name}: the one untrained architecture is whisper:untrained-tiny; name that")
        model = fill_untrained(build_model(UNTRAINED_TINY))
        name, is_trained = "whisper-untrained-tiny", False
    else:
        folder = find_folder(encoder_name.rest, str(encoder_name), ("untrained-tiny",))
        model = build_model(folder.read_json("config.json"))
        load_strictly(model, folder.read_tensors(), ("model.encoder.", "encoder."), str(encoder_name))
        name, is_trained = folder.name, folder.is_trained
    spec = whisper_spec(
        model, name=name, is_trained=is_trained, layers=layers, codec=codec, encoder_name=str(encoder_name)
    )
    return WhisperStates(model.to(found), spec, str(encoder_name))


def build_model(config: dict[str, Any]) -> Any:
    """A transformers WhisperEncoder of that config, its weights not yet set."""
    from transformers import WhisperConfig
    from transformers.initialization import no_init_weights
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    if config.get("model_type", "whisper") != "whisper":
        raise InvalidInput(f"the config is of a {config['model_type']} model, not whisper; use that family in the SPEC")
    with no_init_weights():
        return WhisperEncoder(WhisperConfig(**(config | {"dtype": "float32"})))


def whisper_spec(
    model: Any,
    *,
    name: str,
    is_trained: bool,
    encoder_name: str,
    layers: Sequence[int] | None = None,
    codec: Codec = "fp16",
) -> EncoderSpec:
    """The spec of such an encoder; `window_samples` 1 makes the frame count ceil(samples / 320)."""
    config = model.config
    return EncoderSpec(
        name=clean_name(name) if is_trained or "untrained" in name else f"{clean_name(name)}-untrained",
        family="whisper",
        modality="speech",
        weights=weights_digest(model.state_dict()),
        is_trained=is_trained,
        width=config.d_model,
        layers=choose_layers(layers, config.encoder_layers + 1, encoder_name),
        hop_samples=HOP_SAMPLES,
        window_samples=1,
        codec=codec,
        rules={
            "resample": RESAMPLE_RULE,
            "waveform": "whisper-log-mel/1",
            "states": "pre-final-ln/1",
            "window": "whisper-ceil-1s/1",
            "longest": f"{config.max_source_positions * HOP_SAMPLES // SAMPLE_RATE}s/1",
            "compute": COMPUTE_RULE,
        },
        architecture={key: getattr(config, key) for key in ARCHITECTURE},
    )


def _mel_filters(num_mel_bins: int) -> np.ndarray[Any, Any]:
    """(frequencies, mel bins), Slaney's scale and norm, as every published Whisper uses."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        num_frequency_bins=FFT_SAMPLES // 2 + 1,
        num_mel_filters=num_mel_bins,
        min_frequency=0.0,
        max_frequency=8000.0,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return np.asarray(filters, np.float32)
