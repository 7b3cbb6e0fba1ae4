"""CLIP by open_clip: one vector for an image or a text, in their joint space, not normalised."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from speechclip.encoders.base import COMPUTE_RULE, Choices, clean_name
from speechclip.encoders.families import EncoderName
from speechclip.encoders.frozen import freeze, use_device
from speechclip.encoders.pictures import normalise_pixels
from speechclip.encoders.untrained import fill_untrained
from speechclip.encoders.vector import VectorEncoder
from speechclip.encoders.weights import fetch_first, weights_digest
from speechclip.errors import InvalidInput
from speechclip.spec import CodecName, EncoderSpec

# A small ViT-B-32, with the same input, patches and vocabulary.
_TINY = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "layers": 3, "width": 128, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def load_clip(encoder_name: EncoderName, choices: Choices) -> VectorEncoder:
    """The image tower or the text tower of a CLIP, by `choices.modality`."""
    device = use_device(choices.device)
    if encoder_name.rest.startswith("untrained-"):
        config, model, name, preprocess = _untrained(encoder_name)
    else:
        config, model, name, preprocess = _trained(encoder_name)
    if choices.modality == "text" and "hf_tokenizer_name" in config["text_cfg"]:
        raise InvalidInput(
            f"{encoder_name} has a tokenizer of its own, but only CLIP's can be used", "choose a plain CLIP"
        )
    spec = _spec(config, model, choices, name=name, preprocess=preprocess, encoder_name=encoder_name)
    model = freeze(model.to(device))
    if choices.modality == "text":
        return VectorEncoder(lambda tokens: model.encode_text(tokens.long()), model, spec, str(encoder_name))
    return VectorEncoder(
        lambda crops: model.encode_image(normalise_pixels(crops, spec.architecture["preprocess"])),
        model,
        spec,
        str(encoder_name),
    )


@dataclass(frozen=True)
class TextWeights:
    """The text tower of a CLIP, by open_clip's names, for a head that puts keywords into it."""

    tensors: dict[str, torch.Tensor]
    num_heads: int
    is_quick_gelu: bool
    spec: EncoderSpec


def load_text_weights(encoder_name: str, codec: CodecName = "fp16") -> TextWeights:
    """The text tower of ``clip:…``. `InvalidInput` if the encoder is no CLIP, or has a tokenizer of its own.

    `codec` is the codec of the stored texts whose spec is compared with this one. It changes no weight.
    """
    parsed = EncoderName.parse(encoder_name)
    if parsed.family != "clip":
        raise InvalidInput(
            f"{encoder_name} has no text tower of CLIP, which keywords need", "choose an image encoder of clip:"
        )
    encoder = load_clip(parsed, Choices("text", codec=codec))
    tensors = {name: value for name, value in encoder.weights().items() if not name.startswith("visual.")}
    return TextWeights(
        tensors=tensors,
        num_heads=encoder.spec.architecture["text_cfg"]["heads"],
        is_quick_gelu=encoder.spec.architecture["quick_gelu"],
        spec=encoder.spec,
    )


def _untrained(encoder_name: EncoderName) -> tuple[dict[str, Any], Any, str, dict[str, Any]]:
    import open_clip

    name = encoder_name.rest.removeprefix("untrained-")
    config = _TINY if name == "tiny" else open_clip.get_model_config(name)
    if config is None or config.keys() - {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}:
        raise InvalidInput(
            f"{encoder_name}: open_clip has no plain CLIP {name!r}",
            "write clip:untrained-ViT-B-32 or clip:untrained-tiny",
        )
    return config, fill_untrained(open_clip.CLIP(**config)), f"clip-{encoder_name.rest}", {}


def _trained(encoder_name: EncoderName) -> tuple[dict[str, Any], Any, str, dict[str, Any]]:
    """The config, the model, its name and the preprocessing that the tag states."""
    import open_clip

    name, _, weights = encoder_name.rest.partition("/")
    config = open_clip.get_model_config(name)
    if config is None:
        raise InvalidInput(
            f"{encoder_name}: open_clip knows no model {name!r}", "write clip:<model>/<tag or checkpoint file>"
        )
    if not weights:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise InvalidInput(
            f"{encoder_name} names no weights", f"write clip:{name}/ and a checkpoint file or one of {tags}"
        )
    tag = open_clip.get_pretrained_cfg(name, weights)
    file = _fetch_tag(tag, encoder_name) if tag else Path(weights).expanduser()
    if not file.is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise InvalidInput(f"{encoder_name}: {weights} is neither a file nor a tag of {name}", f"its tags are {tags}")
    if tag.get("quick_gelu"):
        # For weights that were trained with QuickGELU and a config without it, open_clip only warns. The vectors would
        # be wrong.
        config["quick_gelu"] = True
    is_quick = bool(config.get("quick_gelu"))
    try:
        model = open_clip.create_model(name, pretrained=str(file), force_quick_gelu=is_quick, weights_only=True)
    except (RuntimeError, KeyError, ValueError, OSError, pickle.UnpicklingError, SafetensorError) as error:
        first_line = str(error).partition("\n")[0]
        raise InvalidInput(
            f"{encoder_name}: {file} does not fit {name} ({first_line})", "name the model of these weights"
        ) from None
    return config, model, f"clip-{name}-{weights if tag else file.stem}", tag


def _fetch_tag(tag: dict[str, Any], encoder_name: EncoderName) -> Path:
    """The checkpoint of a tag, from the hub. Safetensors are preferred."""
    hub_id, _, file = tag.get("hf_hub", "").rpartition("/")
    if not hub_id:
        raise InvalidInput(
            f"{encoder_name}: the hub does not have this tag",
            f"download {tag.get('url')} and name the file in place of the tag",
        )
    names = (file,) if file else ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    return fetch_first(hub_id, names, "", str(encoder_name))


def _spec(
    config: dict[str, Any],
    model: Any,
    choices: Choices,
    *,
    name: str,
    preprocess: dict[str, Any],
    encoder_name: EncoderName,
) -> EncoderSpec:
    """The spec of one tower, from the weights and the config of this tower alone.

    So image features stay valid if only the text tower differs.
    """
    is_visual = choices.modality == "image"
    unused = ("logit_scale", "logit_bias")
    tower = {
        key: value
        for key, value in model.state_dict().items()
        if key.startswith("visual.") == is_visual and key not in unused
    }
    parts = {"vision_cfg": config["vision_cfg"]} if is_visual else {"text_cfg": config["text_cfg"]}
    architecture = {"embed_dim": config["embed_dim"], "quick_gelu": bool(config.get("quick_gelu"))} | parts
    rules = {"tokens": "clip-bpe-truncated/1"}
    if is_visual:
        architecture["preprocess"] = _preprocess(model, preprocess, encoder_name)
        rules = {"resize": "pil-antialias-short-side-centre/1"}
    return EncoderSpec(
        name=clean_name(f"{name}-{choices.modality}"),
        family="clip",
        modality=choices.modality,
        weights=weights_digest(tower),
        is_trained="untrained" not in name,
        width=config["embed_dim"],
        codec=choices.codec,
        rules=rules | {"vector": "raw/1", "compute": COMPUTE_RULE},
        architecture=architecture,
    )


def _preprocess(model: Any, tag: dict[str, Any], encoder_name: EncoderName) -> dict[str, Any]:
    """Sizes, filter, mean and standard deviation, with open_clip's defaults for those that the tag does not state."""
    import open_clip

    size = model.visual.image_size
    width, height = size if isinstance(size, tuple) else (size, size)
    mode, interpolation = tag.get("resize_mode", "shortest"), tag.get("interpolation", "bicubic")
    if width != height or mode != "shortest" or interpolation not in ("bicubic", "bilinear"):
        raise InvalidInput(
            f"{encoder_name} needs {width} x {height} pixels by {mode}, {interpolation}, but only square crops from "
            "the short side, bicubic or bilinear, can be made",
            "choose another model",
        )
    return {
        "resize": width,
        "size": width,
        "interpolation": interpolation,
        "mean": list(tag.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        "std": list(tag.get("std", open_clip.OPENAI_DATASET_STD)),
    }
