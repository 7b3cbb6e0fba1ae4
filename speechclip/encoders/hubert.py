"""HuBERT, wav2vec 2.0 and WavLM by transformers."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from speechclip.encoders import wavlm
from speechclip.encoders.base import Choices
from speechclip.encoders.families import EncoderName
from speechclip.encoders.frozen import use_device
from speechclip.encoders.transformer import TransformerStates, states_spec
from speechclip.encoders.untrained import fill_untrained
from speechclip.encoders.weights import find_folder, load_strictly
from speechclip.errors import InvalidInput
from speechclip.spec import EncoderSpec

# The settings of a config that change a state. The list is fixed, so that a setting which a new version of transformers
# adds changes no fingerprint.
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
_CLASSES = {"hubert": "Hubert", "wav2vec2": "Wav2Vec2", "wavlm": "WavLM"}
_ALL_STATES = Choices("speech")


class HubertEncoder(TransformerStates):
    """All hidden states of a HuBERT, wav2vec 2.0 or WavLM model of transformers."""

    def _front_end(self, samples: Tensor) -> Tensor:
        hidden = self._model.feature_projection(self._model.feature_extractor(samples).transpose(1, 2))
        # wav2vec 2.0 and WavLM also return what they project.
        projected: Tensor = hidden[0] if isinstance(hidden, tuple) else hidden
        return projected

    def _states(self, hidden: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
        # Our own loop, because the library has changed which states its `hidden_states` holds.
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


def load_hubert(encoder_name: EncoderName, choices: Choices) -> HubertEncoder:
    """The encoder of a folder, of a hub id or of one of `UNTRAINED`."""
    device = use_device(choices.device)
    if encoder_name.rest.startswith("untrained"):
        if encoder_name.rest not in UNTRAINED:
            raise InvalidInput(f"{encoder_name} is no untrained architecture", f"choose one of {', '.join(UNTRAINED)}")
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
        choices=choices,
        encoder_name=str(encoder_name),
    )
    return HubertEncoder(model.to(device), spec, str(encoder_name))


def build_model(family: str, config: dict[str, Any]) -> Any:
    """A transformers model of that config. Its weights are not set yet."""
    import transformers
    from transformers.initialization import no_init_weights

    stated = config.get("model_type", family)
    if stated != family:
        raise InvalidInput(f"the config is of a {stated} model, not {family}", f"write {stated}: in the encoder name")
    # Masks serve training alone. Without them the model has no mask embedding, which would count as a weight.
    settings = config | {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "dtype": "float32"}
    kind = _CLASSES[family]
    with no_init_weights():
        return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings))


def hubert_spec(
    model: Any,
    *,
    name: str,
    is_trained: bool,
    encoder_name: str,
    normalises: bool | None = None,
    choices: Choices = _ALL_STATES,
) -> EncoderSpec:
    """The spec of such a model.

    Waveforms are normalised for layer-norm front ends, unless the checkpoint says not to (`normalises` is false).
    Checkpoints of Base say that they are, against fairseq (docs/model.md, "Traps", 7), so for Base it is ignored.
    """
    config = model.config
    names = ARCHITECTURE + (wavlm.ARCHITECTURE if config.model_type == "wavlm" else [])
    return states_spec(
        model,
        encoder_name=encoder_name,
        name=name,
        family=config.model_type,
        is_trained=is_trained,
        is_normalised=config.feat_extract_norm == "layer" and normalises is not False,
        width=config.hidden_size,
        num_layers=config.num_hidden_layers,
        kernels=config.conv_kernel,
        strides=config.conv_stride,
        architecture={key: _plain(getattr(config, key, None)) for key in names},
        choices=choices,
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
