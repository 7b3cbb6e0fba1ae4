"""HuBERT, wav2vec 2.0 and WavLM by torchaudio: its published bundles, or your own weights of its models."""

import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechclip.encoders.base import Choices
from speechclip.encoders.families import EncoderName
from speechclip.encoders.frozen import use_device
from speechclip.encoders.transformer import TransformerStates, states_spec
from speechclip.encoders.untrained import fill_untrained
from speechclip.encoders.weights import UNTRAINED_MARKER, WeightsFolder, load_strictly, read_tensors
from speechclip.errors import InvalidInput

# The arguments of `torchaudio.models.wav2vec2_model` that change a state, and those that only `wavlm_model` has.
ARGUMENTS = (
    "extractor_mode",
    "extractor_conv_layer_config",
    "extractor_conv_bias",
    "encoder_embed_dim",
    "encoder_pos_conv_kernel",
    "encoder_pos_conv_groups",
    "encoder_num_layers",
    "encoder_num_heads",
    "encoder_ff_interm_features",
    "encoder_layer_norm_first",
)
WAVLM_ARGUMENTS = ("encoder_num_buckets", "encoder_max_distance")
# These arguments only serve training. A config may state them, and they are ignored.
DROPOUTS = (
    "encoder_projection_dropout",
    "encoder_attention_dropout",
    "encoder_ff_interm_dropout",
    "encoder_dropout",
    "encoder_layer_drop",
)
# Our own keys in a config.json, besides the arguments.
NORMALISES = "normalize_waveform"
WEIGHT_FILES = ("model.safetensors", "model.pt")
_CONVOLUTIONS = [[512, 10, 5], *[[512, 3, 2]] * 4, *[[512, 2, 2]] * 2]
_BASE: dict[str, Any] = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": None,
    "extractor_conv_bias": False,
    "encoder_embed_dim": 768,
    "encoder_pos_conv_kernel": 128,
    "encoder_pos_conv_groups": 16,
    "encoder_num_layers": 12,
    "encoder_num_heads": 12,
    "encoder_ff_interm_features": 3072,
    "encoder_layer_norm_first": False,
}
_TINY = _BASE | {
    "extractor_conv_layer_config": [[64, kernel, stride] for _, kernel, stride in _CONVOLUTIONS],
    "encoder_embed_dim": 96,
    "encoder_num_layers": 4,
    "encoder_num_heads": 4,
    "encoder_ff_interm_features": 192,
}
_LAYER_NORM = {"extractor_mode": "layer_norm", "extractor_conv_bias": True, "encoder_layer_norm_first": True}
_LARGE = {
    "encoder_embed_dim": 1024,
    "encoder_num_layers": 24,
    "encoder_num_heads": 16,
    "encoder_ff_interm_features": 4096,
}
UNTRAINED: dict[str, dict[str, Any]] = {
    "untrained-base": _BASE,
    "untrained-large": _BASE | _LARGE | _LAYER_NORM,
    "untrained-tiny": _TINY,
    "untrained-tiny-large": _TINY | _LAYER_NORM,
}


class TorchaudioEncoder(TransformerStates):
    """All hidden states of a `torchaudio.models.Wav2Vec2Model`."""

    def _front_end(self, samples: Tensor) -> Tensor:
        frames, _ = self._model.feature_extractor(samples, None)
        projected: Tensor = self._model.encoder.feature_projection(frames)
        return projected

    def _states(self, hidden: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
        # Our own loop, because `extract_features` does not return state 0.
        transformer = self._model.encoder.transformer
        hidden = hidden + transformer.pos_conv_embed(hidden)
        # In torchaudio this attribute is true for a post-LN model, against its argument of the same name.
        if transformer.layer_norm_first:
            hidden = transformer.layer_norm(hidden)
        masks = _masks(hidden, mask, is_wavlm=self.spec.architecture["model"] == "wavlm")
        bias = None
        for state in range(self.spec.layers[-1] + 1):
            if state > 0:
                hidden, bias = transformer.layers[state - 1](hidden, position_bias=bias, **masks)
            if state in self.spec.layers:
                yield hidden


def _masks(hidden: Tensor, mask: Tensor | None, *, is_wavlm: bool) -> dict[str, Tensor]:
    """The mask as a layer of torchaudio takes it. WavLM's needs floats, because its position bias has floats."""
    if mask is None:
        return {}
    if not is_wavlm:
        return {"attention_mask": mask.expand(-1, -1, mask.shape[-1], -1)}
    zeros = torch.zeros(mask[:, 0, 0].shape, dtype=hidden.dtype, device=hidden.device)
    return {"key_padding_mask": zeros.masked_fill(~mask[:, 0, 0], -torch.inf)}


@dataclass(frozen=True)
class _Source:
    """What a name stands for: a model's arguments and its weights, None for random ones."""

    name: str
    config: Mapping[str, Any]
    tensors: dict[str, Tensor] | None
    is_trained: bool


def load_torchaudio(encoder_name: EncoderName, choices: Choices) -> TorchaudioEncoder:
    """The encoder of a bundle of torchaudio, of a folder or file, or one of `UNTRAINED`."""
    device = use_device(choices.device)
    source = _find(encoder_name)
    config = _check_config(source.config, str(encoder_name))
    model = build_model(config, str(encoder_name))
    if source.tensors is None:
        fill_untrained(model)
    else:
        # A bundle that normalises has its model inside another, and HuBERT's pretraining model has it too.
        load_strictly(model, source.tensors, ("model.", "wav2vec2."), str(encoder_name))
    convolutions = config["extractor_conv_layer_config"]
    spec = states_spec(
        model,
        encoder_name=str(encoder_name),
        name=f"torchaudio-{source.name}",
        family="torchaudio",
        is_trained=source.is_trained,
        is_normalised=source.config.get(NORMALISES, config["extractor_mode"] == "layer_norm"),
        width=config["encoder_embed_dim"],
        num_layers=config["encoder_num_layers"],
        kernels=[kernel for _, kernel, _ in convolutions],
        strides=[stride for _, _, stride in convolutions],
        architecture={"model": "wavlm" if _is_wavlm(config) else "wav2vec2", **config},
        choices=choices,
    )
    return TorchaudioEncoder(model.to(device), spec, str(encoder_name))


def build_model(config: Mapping[str, Any], encoder_name: str) -> Any:
    """A model of torchaudio with these arguments. Its weights are not the right ones yet."""
    from torchaudio.models import wav2vec2_model, wavlm_model

    build = wavlm_model if _is_wavlm(config) else wav2vec2_model
    try:
        return build(**config, **dict.fromkeys(DROPOUTS, 0.0), aux_num_out=None)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise InvalidInput(
            f"{encoder_name}: torchaudio makes no model of these arguments ({error})", "correct its config.json"
        ) from None


def _find(encoder_name: EncoderName) -> _Source:
    from torchaudio import pipelines

    rest = encoder_name.rest
    if rest in UNTRAINED:
        return _Source(rest, UNTRAINED[rest], None, is_trained=False)
    bundles = [name for name in pipelines.__all__ if isinstance(getattr(pipelines, name), pipelines.Wav2Vec2Bundle)]
    if rest in bundles:
        return _read_bundle(rest, getattr(pipelines, rest), str(encoder_name))
    path = Path(rest).expanduser()
    if path.exists():
        return _read_path(path, str(encoder_name))
    raise InvalidInput(
        f"{encoder_name}: torchaudio has no bundle {rest!r}, and there is no such folder or file",
        f"name a folder, a file, one of {', '.join(UNTRAINED)}, or one of the bundles {', '.join(sorted(bundles))}",
    )


def _read_bundle(name: str, bundle: Any, encoder_name: str) -> _Source:
    """The arguments and weights of a bundle, from its private attributes: it has no public ones for them."""
    url = (
        bundle._path
        if bundle._path.startswith("https")
        else f"https://download.pytorch.org/torchaudio/models/{bundle._path}"
    )
    config = bundle._params | {NORMALISES: bundle._normalize_waveform}
    return _Source(name, config, read_tensors(_fetch(url, encoder_name)), is_trained=True)


def _fetch(url: str, encoder_name: str, timeout_seconds: float = 10) -> Path:
    """The file of that address in torch.hub's cache, which torchaudio uses too. A missing file is downloaded."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    try:
        # Without this short request, a network that does not answer would keep the download waiting.
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout_seconds):
            path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except OSError as error:
        raise InvalidInput(
            f"{encoder_name}: {url} can't be downloaded ({error})",
            f"download it on another machine and put it at {path}",
        ) from None
    return path


def _read_path(path: Path, encoder_name: str) -> _Source:
    """A folder with config.json and weights, or a file of weights with config.json beside it."""
    folder = WeightsFolder(path if path.is_dir() else path.parent, path.name, encoder_name)
    files = [path] if path.is_file() else [path / name for name in WEIGHT_FILES if (path / name).is_file()]
    if not files or not (folder.path / "config.json").is_file():
        lacking = f"none of {', '.join(WEIGHT_FILES)}" if not files else "no config.json"
        raise InvalidInput(
            f"{encoder_name}: {folder.path} has {lacking}",
            "put there the weights of a torchaudio model, and config.json with the arguments of wav2vec2_model",
        )
    name = path.resolve().name if path.is_dir() else path.stem
    return _Source(name, folder.read_json("config.json"), read_tensors(files[0]), is_trained=folder.is_trained)


def _check_config(config: Mapping[str, Any], encoder_name: str) -> dict[str, Any]:
    """The arguments that change a state, with the convolutions written out."""
    wanted = ARGUMENTS + (WAVLM_ARGUMENTS if _is_wavlm(config) else ())
    ignored = (*DROPOUTS, "aux_num_out", NORMALISES, UNTRAINED_MARKER)
    wrong = [f"{name} is missing" for name in wanted if name not in config]
    wrong += [f"{name} is unknown" for name in config if name not in wanted + ignored]
    if wrong:
        raise InvalidInput(
            f"{encoder_name}: its config.json does not have the arguments of torchaudio's model: {', '.join(wrong)}",
            f"write {', '.join(ARGUMENTS)}, and for WavLM also {', '.join(WAVLM_ARGUMENTS)}",
        )
    convolutions = config["extractor_conv_layer_config"] or _CONVOLUTIONS
    return {name: config[name] for name in wanted} | {
        "extractor_conv_layer_config": [list(layer) for layer in convolutions]
    }


def _is_wavlm(config: Mapping[str, Any]) -> bool:
    return any(name in config for name in WAVLM_ARGUMENTS)
