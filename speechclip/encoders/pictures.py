"""Image models of timm: the pooled vector before the classifier."""

from pathlib import Path
from typing import Any

import torch

from speechclip.encoders.base import COMPUTE_RULE, Choices, clean_name
from speechclip.encoders.families import EncoderName
from speechclip.encoders.frozen import freeze, use_device
from speechclip.encoders.vector import VectorEncoder
from speechclip.encoders.weights import WeightsFolder, load_strictly, read_tensors, weights_digest
from speechclip.errors import InvalidInput
from speechclip.spec import EncoderSpec


def normalise_pixels(crops: torch.Tensor, preprocess: dict[str, Any]) -> torch.Tensor:
    """Pixels (batch, 3, size, size) in float32 from uint8 pixels (batch, size, size, 3).

    They are divided by 255. Then the mean is subtracted, and the result is divided by the standard deviation.
    """
    pixels = crops.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(preprocess[name], device=crops.device)[:, None, None] for name in ("mean", "std"))
    return (pixels - mean) / std


def load_picture_encoder(encoder_name: EncoderName, choices: Choices) -> VectorEncoder:
    """The encoder of ``timm:<model>@<folder or safetensors file>``.

    If there is a config.json beside the weights, its ``pretrained_cfg`` states the preprocessing.
    """
    import timm

    device = use_device(choices.device)
    name, _, location = encoder_name.rest.partition("@")
    if not timm.is_model(name) or not location:
        raise InvalidInput(
            f"{encoder_name}: timm knows no model {name!r}, or no weights are named",
            "write timm:<model>@<folder or safetensors file>",
        )
    path = Path(location).expanduser()
    folder = WeightsFolder(path if path.is_dir() else path.parent, name, str(encoder_name))
    overlay = folder.read_json("config.json").get("pretrained_cfg")
    model = timm.create_model(name, pretrained=False, num_classes=0, pretrained_cfg_overlay=overlay)
    load_strictly(model, folder.read_tensors() if path.is_dir() else read_tensors(path), (), str(encoder_name))
    suffix = "" if folder.is_trained else "-untrained"
    spec = EncoderSpec(
        name=clean_name(f"timm-{name}{suffix}-image"),
        family="timm",
        modality="image",
        weights=weights_digest(model.state_dict()),
        is_trained=folder.is_trained,
        width=model.head_hidden_size,
        codec=choices.codec,
        rules={"resize": "pil-antialias-short-side-centre/1", "vector": "raw/1", "compute": COMPUTE_RULE},
        architecture={"model": name, "preprocess": _preprocess(model, encoder_name)},
    )
    model = freeze(model.to(device))
    return VectorEncoder(
        lambda crops: model(normalise_pixels(crops, spec.architecture["preprocess"])), model, spec, str(encoder_name)
    )


def _preprocess(model: Any, encoder_name: EncoderName) -> dict[str, Any]:
    """The preprocessing of timm's evaluation: resize the short side to size / crop_pct, then crop the centre."""
    from timm.data import resolve_data_config

    config = resolve_data_config({}, model=model)
    _, height, width = config["input_size"]
    if height != width or config["crop_mode"] != "center" or config["interpolation"] not in ("bicubic", "bilinear"):
        raise InvalidInput(
            f"{encoder_name} needs {width} x {height} pixels by {config['crop_mode']}, {config['interpolation']}, "
            "but only square centre crops, bicubic or bilinear, can be made",
            "choose another model",
        )
    return {
        "resize": int(width / config["crop_pct"]),
        "size": width,
        "interpolation": config["interpolation"],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }
