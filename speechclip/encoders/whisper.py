"""Whisper's encoder by transformers, on windows of full seconds.

A recording of one second is padded to one second and not to thirty, so it costs a thirtieth.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from speechclip.encoders.base import COMPUTE_RULE, Choices, choose_layers, spec_name
from speechclip.encoders.families import EncoderName
from speechclip.encoders.frozen import assert_exact, assert_frozen, collect, freeze, use_device
from speechclip.encoders.threads import one_thread
from speechclip.encoders.untrained import fill_untrained
from speechclip.encoders.weights import find_folder, load_strictly, weights_digest
from speechclip.errors import InvalidInput
from speechclip.spec import RESAMPLE_RULE, SAMPLE_RATE, EncoderSpec

# The settings of a config that change a state.
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
# Seconds in one call of the encoder, padding included.
CPU_SECONDS, GPU_SECONDS = 1, 480
_ALL_STATES = Choices("speech")


class WhisperStates:
    """All hidden states of a Whisper encoder, (layers, frames, width), 50 frames a second.

    The waveform is padded with zeros to the next full second, and the position embeddings are cut to that length. The
    ceil(samples / 320) frames that contain speech are kept. State 0 is the input of the first layer, with positions
    added. State i is the output of layer i. The final LayerNorm is not applied.
    """

    def __init__(self, model: Any, spec: EncoderSpec, encoder_name: str, *, max_seconds: int | None = None) -> None:
        self.spec = spec
        self.encoder_name = encoder_name
        self._model: Any = freeze(model)
        self._device = next(model.parameters()).device
        self._max_seconds = max_seconds or (CPU_SECONDS if self._device.type == "cpu" else GPU_SECONDS)
        self._mel_filters = torch.from_numpy(_mel_filters(model.num_mel_bins)).to(self._device)
        self._window = torch.hann_window(FFT_SAMPLES, device=self._device)

    @one_thread()
    @torch.inference_mode()
    def encode(
        self, inputs: Sequence[np.ndarray[Any, Any]], dtype: DTypeLike = np.float32
    ) -> list[np.ndarray[Any, Any]]:
        """One (layers, frames, width) array for each waveform, in order. A batch holds windows of equal length."""
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
        """Batches of equal length: that length in seconds, and the positions in `inputs`."""
        by_seconds: dict[int, list[int]] = {}
        for position, waveform in enumerate(inputs):
            by_seconds.setdefault(-(-len(waveform) // SAMPLE_RATE), []).append(position)
        for seconds, members in sorted(by_seconds.items()):
            step = max(1, self._max_seconds // seconds)
            for first in range(0, len(members), step):
                yield seconds, members[first : first + step]

    def _log_mel(self, waveform: np.ndarray[Any, Any], seconds: int) -> Tensor:
        """The log10 mel spectrogram (mel bins, frames), 100 frames a second, as in openai/whisper, audio.py.

        Values more than 8 below the utterance's own peak are raised to that level.
        """
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


def load_whisper(encoder_name: EncoderName, choices: Choices) -> WhisperStates:
    """The encoder half of the Whisper in a folder or of a hub id, or the untrained one."""
    device = use_device(choices.device)
    if encoder_name.rest.startswith("untrained"):
        if encoder_name.rest != "untrained-tiny":
            raise InvalidInput(f"{encoder_name} is no untrained architecture", "write whisper:untrained-tiny")
        model = fill_untrained(build_model(UNTRAINED_TINY))
        name, is_trained = "whisper-untrained-tiny", False
    else:
        folder = find_folder(encoder_name.rest, str(encoder_name), ("untrained-tiny",))
        model = build_model(folder.read_json("config.json"))
        load_strictly(model, folder.read_tensors(), ("model.encoder.", "encoder."), str(encoder_name))
        name, is_trained = folder.name, folder.is_trained
    spec = whisper_spec(model, name=name, is_trained=is_trained, choices=choices, encoder_name=str(encoder_name))
    return WhisperStates(model.to(device), spec, str(encoder_name))


def build_model(config: dict[str, Any]) -> Any:
    """A WhisperEncoder of transformers with that config. Its weights are not set yet."""
    from transformers import WhisperConfig
    from transformers.initialization import no_init_weights
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    if config.get("model_type", "whisper") != "whisper":
        stated = config["model_type"]
        raise InvalidInput(f"the config is of a {stated} model, not whisper", f"write {stated}: in the encoder name")
    with no_init_weights():
        return WhisperEncoder(WhisperConfig(**(config | {"dtype": "float32"})))


def whisper_spec(
    model: Any,
    *,
    name: str,
    is_trained: bool,
    encoder_name: str,
    choices: Choices = _ALL_STATES,
) -> EncoderSpec:
    """The spec of such an encoder. `window_samples` is 1, so that the number of frames is ceil(samples / 320)."""
    config = model.config
    return EncoderSpec(
        name=spec_name(name, is_trained=is_trained),
        family="whisper",
        modality="speech",
        weights=weights_digest(model.state_dict()),
        is_trained=is_trained,
        width=config.d_model,
        layers=choose_layers(choices.layers, config.encoder_layers + 1, encoder_name),
        hop_samples=HOP_SAMPLES,
        window_samples=1,
        codec=choices.codec,
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
    """(frequencies, mel bins) by Slaney's scale and norm, as in every published Whisper."""
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
