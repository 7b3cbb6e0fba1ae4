"""Any image model of timm as a frozen encoder: the pooled vector before its classifier."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechclip.encoders.base import COMPUTE_RULE, Source, clean_name
from speechclip.encoders.frozen import assert_exact, assert_frozen, freeze, use_device
from speechclip.encoders.weights import WeightsFolder, load_strictly, read_tensors, weights_digest
from speechclip.errors import InvalidInput
from speechclip.spec import Codec, EncoderSpec

BATCH = 64


class PictureEncoder:
    """A timm model without its classifier, (width,) for each prepared image."""

    def __init__(self, model: Any, spec: EncoderSpec, source: str) -> None:
        self.spec = spec
        self.source = source
        self._model: Any = freeze(model)
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def encode(self, inputs: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """One (width,) float32 array per crop, in order; within 1e-5 of encoding it alone."""
        assert_frozen(self._model)
        assert_exact(self._device)
        vectors: list[np.ndarray[Any, Any]] = []
        for first in range(0, len(inputs), BATCH):
            batch = torch.from_numpy(np.stack(inputs[first : first + BATCH])).to(self._device)
            pixels = normalise_pixels(batch, self.spec.architecture["preprocess"])
            vectors.extend(self._model(pixels).cpu().numpy())
        return vectors


def normalise_pixels(crops: torch.Tensor, preprocess: dict[str, Any]) -> torch.Tensor:
    """(batch, 3, size, size) float32 from uint8 (batch, size, size, 3): to 0..1, less the mean, by the deviation."""
    pixels = crops.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(preprocess[name], device=crops.device)[:, None, None] for name in ("mean", "std"))
    return (pixels - mean) / std


def load_picture_encoder(source: Source, *, codec: Codec = "fp16", device: str = "cpu") -> PictureEncoder:
    """The model of ``<timm model>@<folder or safetensors file>``; a config.json beside may state its preprocessing."""
    import timm

    found = use_device(device)
    name, _, location = source.rest.partition("@")
    if not timm.is_model(name) or not location:
        raise InvalidInput(f"{source}: timm knows no model {name!r}; write timm:<model>@<folder or safetensors file>")
    path = Path(location).expanduser()
    folder = WeightsFolder(path if path.is_dir() else path.parent, name, str(source))
    overlay = folder.read_json("config.json").get("pretrained_cfg")
    model = timm.create_model(name, pretrained=False, num_classes=0, pretrained_cfg_overlay=overlay)
    load_strictly(model, folder.read_tensors() if path.is_dir() else read_tensors(path), (), str(source))
    suffix = "" if folder.is_trained else "-untrained"
    spec = EncoderSpec(
        name=clean_name(f"timm-{name}{suffix}-image"),
        family="timm",
        modality="image",
        weights=weights_digest(model.state_dict()),
        is_trained=folder.is_trained,
        width=model.head_hidden_size,
        codec=codec,
        rules={"resize": "pil-antialias-short-side-centre/1", "vector": "raw/1", "compute": COMPUTE_RULE},
        architecture={"model": name, "preprocess": _preprocess(model, source)},
    )
    return PictureEncoder(model.to(found), spec, str(source))


def _preprocess(model: Any, source: Source) -> dict[str, Any]:
    """What timm's evaluation transform does: resize to size / crop_pct, crop the centre."""
    from timm.data import resolve_data_config

    config = resolve_data_config({}, model=model)
    _, height, width = config["input_size"]
    if height != width or config["crop_mode"] != "center" or config["interpolation"] not in ("bicubic", "bilinear"):
        raise InvalidInput(
            f"{source} wants {width} x {height} by {config['crop_mode']}, {config['interpolation']}; "
            "only square centre crops are known"
        )
    return {
        "resize": int(width / config["crop_pct"]),
        "size": width,
        "interpolation": config["interpolation"],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }
