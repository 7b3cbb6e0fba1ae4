"""HuBERT, wav2vec 2.0 and WavLM: every hidden state, the same alone and in any batch.

The convolutional front end runs on each utterance by itself, because Base's group norm averages over time and would
see the padding (up to 50 % off; docs/model.md, "Traps", 3). Only the transformer runs on padded batches, masked.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from speechclip.batching import batch_by_length
from speechclip.encoders import wavlm
from speechclip.encoders.base import COMPUTE_RULE, EncoderName, choose_layers, clean_name
from speechclip.encoders.frozen import assert_exact, assert_frozen, collect, freeze, use_device
from speechclip.encoders.padded import encode_padded
from speechclip.encoders.untrained import fill_untrained
from speechclip.encoders.weights import find_folder, load_strictly, weights_digest
from speechclip.encoders.windows import encode_crops, resolve_window
from speechclip.errors import InvalidInput
from speechclip.spec import RESAMPLE_RULE, Codec, EncoderSpec, Window

# What of a config changes a state. Named one by one: a key that a new transformers adds changes no fingerprint.
ARCHITECTURE = [
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "feat_extract_norm",
    "feat_extract_activation",
    "feat_proj_layer_norm",
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "conv_bias",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
    "conv_pos_batch_norm",
    "do_stable_layer_norm",
]
_TINY = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "conv_dim": [64] * 7,
}
_STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
UNTRAINED: dict[str, dict[str, Any]] = {
    "untrained-base": {},
    "untrained-large": _LARGE | _STABLE,
    "untrained-tiny": _TINY,
    "untrained-tiny-large": _TINY | _STABLE,
}
# Frames in one padded transformer call, padding included. On a CPU one utterance at a time is fastest: HuBERT Base does
# 5.4 s of audio per CPU-second so, and 3.4 to 3.6 in padded batches. On a GPU more than these are no faster and take
# more memory (benchmarks/gpu.py). A run's batches of 40 s stay below.
CPU_FRAMES, GPU_FRAMES = 1, 4_000


class HubertEncoder:
    """All hidden states of a transformers HuBERT, wav2vec 2.0 or WavLM model, (layers, frames, width).

    State 0 enters the transformer: after the position convolution and, for post-LN models, after its LayerNorm.
    State i leaves layer i; the final LayerNorm of pre-LN models is never applied.
    """

    def __init__(self, model: Any, spec: EncoderSpec, encoder_name: str, *, max_frames: int | None = None) -> None:
        self.spec = spec
        self.encoder_name = encoder_name
        self._model: Any = freeze(model)
        self._device = next(model.parameters()).device
        self._max_frames = max_frames or (CPU_FRAMES if self._device.type == "cpu" else GPU_FRAMES)

    @torch.inference_mode()
    def encode(
        self, inputs: Sequence[np.ndarray[Any, Any]], dtype: DTypeLike = np.float32
    ) -> list[np.ndarray[Any, Any]]:
        """One (layers, frames, width) array per waveform, in order; within 1e-5 of encoding it alone."""
        assert_frozen(self._model)
        assert_exact(self._device)
        return encode_crops(self.spec, inputs, functools.partial(self._encode, dtype=dtype))

    def _encode(self, inputs: Sequence[np.ndarray[Any, Any]], dtype: DTypeLike) -> list[np.ndarray[Any, Any]]:
        features: dict[int, np.ndarray[Any, Any]] = {}
        num_frames = [self.spec.num_frames(len(waveform)) for waveform in inputs]
        for members in batch_by_length(num_frames, self._max_frames):
            fronts = [self._front_end(inputs[member]) for member in members]
            for member, feature in zip(members, self._transform(fronts, dtype), strict=True):
                features[member] = feature
        return [features[position] for position in range(len(inputs))]

    def weights(self) -> dict[str, Tensor]:
        """The model's numbers by transformers' names."""
        found: dict[str, Tensor] = self._model.state_dict()
        return found

    @torch.inference_mode()
    def encode_padded(self, inputs: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """What fairseq makes of these waveforms as one padded batch (see `padded`): to compare with, never to store."""
        assert_frozen(self._model)
        assert_exact(self._device)
        return encode_padded(self._model, [self._samples(waveform) for waveform in inputs], self._states)

    def _front_end(self, waveform: np.ndarray[Any, Any]) -> Tensor:
        """(frames, width) of one utterance, whose statistics are its own."""
        hidden: Tensor = self._model.feature_extractor(self._samples(waveform)[None]).transpose(1, 2)
        hidden = self._model.feature_projection(hidden)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return hidden[0]

    def _samples(self, waveform: np.ndarray[Any, Any]) -> Tensor:
        samples = torch.from_numpy(waveform).to(self._device)
        return samples if self.spec.rules["waveform"] == "raw/1" else normalise_waveform(samples)

    def _transform(self, fronts: Sequence[Tensor], dtype: DTypeLike) -> list[np.ndarray[Any, Any]]:
        """The states of a group; its padding is zero before the position convolution, and no frame attends to it."""
        lengths = [len(front) for front in fronts]
        hidden = torch.nn.utils.rnn.pad_sequence(list(fronts), batch_first=True)
        mask = None
        if min(lengths) < max(lengths):
            frames = torch.arange(max(lengths), device=self._device)
            mask = (frames < torch.tensor(lengths, device=self._device)[:, None])[:, None, None, :]
        return collect(self._states(hidden, mask), len(self.spec.layers), lengths, dtype)

    def _states(self, hidden: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
        """The states of `spec.layers` in order, from our own loop: what the library's tuple holds has changed."""
        encoder = self._model.encoder
        hidden = hidden + encoder.pos_conv_embed(hidden)
        if not self._model.config.do_stable_layer_norm:
            hidden = encoder.layer_norm(hidden)
        bias = None
        for state in range(self.spec.layers[-1] + 1):
            if state > 0 and self.spec.family == "wavlm":
                hidden, bias = wavlm.run_layer(encoder.layers[state - 1], hidden, mask, bias)
            elif state > 0:
                hidden = encoder.layers[state - 1](hidden, attention_mask=mask)
            if state in self.spec.layers:
                yield hidden


def normalise_waveform(samples: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-5) over one utterance, as fairseq; transformers' 1e-7 is 86 % off when quiet."""
    return torch.nn.functional.layer_norm(samples, samples.shape, eps=1e-5)


def load_hubert(
    encoder_name: EncoderName,
    *,
    layers: Sequence[int] | None = None,
    codec: Codec = "fp16",
    device: str = "cpu",
    window: Window = "full",
) -> HubertEncoder:
    """The encoder of a folder, a hub id or one of `UNTRAINED`."""
    found = use_device(device)
    if encoder_name.rest.startswith("untrained"):
        if encoder_name.rest not in UNTRAINED:
            raise InvalidInput(f"{encoder_name}: untrained architectures are {', '.join(UNTRAINED)}; name one of them")
        model = fill_untrained(build_model(encoder_name.family, UNTRAINED[encoder_name.rest]))
        name, is_trained, normalises = f"{encoder_name.family}-{encoder_name.rest}", False, None
    else:
        folder = find_folder(encoder_name.rest, str(encoder_name), UNTRAINED)
        model = build_model(encoder_name.family, folder.read_json("config.json"))
        load_strictly(model, folder.read_tensors(), (f"{encoder_name.family}.",), str(encoder_name))
        name, is_trained = folder.name, folder.is_trained
        normalises = folder.read_json("preprocessor_config.json").get("do_normalize")
    spec = hubert_spec(
        model,
        name=name,
        is_trained=is_trained,
        normalises=normalises,
        layers=layers,
        codec=codec,
        window=window,
        encoder_name=str(encoder_name),
    )
    return HubertEncoder(model.to(found), spec, str(encoder_name))


def build_model(family: str, config: dict[str, Any]) -> Any:
    """A transformers model of that config, its weights not yet set."""
    import transformers
    from transformers.initialization import no_init_weights

    kind = {"hubert": "Hubert", "wav2vec2": "Wav2Vec2", "wavlm": "WavLM"}[family]
    if config.get("model_type", family) != family:
        raise InvalidInput(
            f"the config is of a {config['model_type']} model, not {family}; use that family in the SPEC"
        )
    # Masks are for training alone; without them the model holds no mask embedding, which would count as a weight.
    settings = config | {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "dtype": "float32"}
    with no_init_weights():
        return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings))


def hubert_spec(
    model: Any,
    *,
    name: str,
    is_trained: bool,
    encoder_name: str,
    normalises: bool | None = None,
    layers: Sequence[int] | None = None,
    codec: Codec = "fp16",
    window: Window = "full",
) -> EncoderSpec:
    """The spec of such a model. Waveforms are normalised for layer-norm front ends unless the checkpoint says not to.

    transformers says so for Base too, against fairseq (docs/model.md, "Traps", 7), so there its word is ignored.
    """
    config = model.config
    names = ARCHITECTURE + (wavlm.ARCHITECTURE if config.model_type == "wavlm" else [])
    is_normalised = config.feat_extract_norm == "layer" and normalises is not False
    strides = [math.prod(config.conv_stride[:depth]) for depth in range(len(config.conv_stride) + 1)]
    reach = sum((kernel - 1) * stride for kernel, stride in zip(config.conv_kernel, strides, strict=False))
    return EncoderSpec(
        name=clean_name(name) if is_trained or "untrained" in name else f"{clean_name(name)}-untrained",
        family=config.model_type,
        modality="speech",
        weights=weights_digest(model.state_dict()),
        is_trained=is_trained,
        width=config.hidden_size,
        layers=choose_layers(layers, config.num_hidden_layers + 1, encoder_name),
        hop_samples=strides[-1],
        window_samples=reach + 1,
        codec=codec,
        rules={
            "resample": RESAMPLE_RULE,
            "waveform": "zero-mean-unit-var-eps1e-5/1" if is_normalised else "raw/1",
            "states": "pre-final-ln/1",
            "window": resolve_window(window, encoder_name),
            "longest": "120s/1",
            "compute": COMPUTE_RULE,
        },
        architecture={key: _plain(getattr(config, key, None)) for key in names},
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
