"""Weights: found in a folder or on the Hugging Face hub, read without running code, identified by their digest."""

import hashlib
import json
import pickle
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speechclip.errors import InvalidInput

# If config.json has this key, set to true, then the weights of the folder are random, and the spec's name says so.
UNTRAINED_MARKER = "speechclip_untrained"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_PROBE = "facebook/hubert-base-ls960/resolve/main/config.json"


@dataclass(frozen=True)
class WeightsFolder:
    """A local folder with a published model: config.json, and model.safetensors or the older pytorch_model.bin."""

    path: Path
    name: str
    encoder_name: str

    @property
    def is_trained(self) -> bool:
        """False if config.json says that the weights are random."""
        return self.read_json("config.json").get(UNTRAINED_MARKER) is not True

    def read_json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file of the folder, empty if there is no such file."""
        file = self.path / name
        try:
            content: dict[str, Any] = json.loads(file.read_bytes()) if file.exists() else {}
        except ValueError as error:
            raise InvalidInput(
                f"{self.encoder_name}: {file} is not JSON ({error})", "download the folder again"
            ) from None
        return content

    def read_tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by its name in the file. Safetensors are preferred."""
        files = [self.path / name for name in WEIGHT_FILES if (self.path / name).is_file()]
        if not files:
            raise InvalidInput(
                f"{self.encoder_name}: {self.path} contains none of {', '.join(WEIGHT_FILES)}", "put one there"
            )
        return read_tensors(files[0])


def find_folder(name: str, encoder_name: str, untrained: Iterable[str]) -> WeightsFolder:
    """The folder at the path `name`, or the one that the hub has for ``<owner>/<model>[@<revision>]``.

    Without a connection the hub's local cache is used. An error lists `untrained`, the family's untrained encoders.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InvalidInput(
                f"{encoder_name}: {path} has no config.json",
                "name a folder with config.json and model.safetensors",
            )
        return WeightsFolder(path, path.resolve().name, encoder_name)
    hub_id, _, revision = name.partition("@")
    if not _HUB_ID.fullmatch(hub_id):
        raise InvalidInput(
            f"{encoder_name}: there is no folder {path}",
            f"name a folder with config.json and model.safetensors, a hub id, or one of {', '.join(untrained)}",
        )
    config = fetch_first(hub_id, ("config.json",), revision, encoder_name)
    fetch_first(hub_id, ("preprocessor_config.json", "config.json"), revision, encoder_name)
    fetch_first(hub_id, WEIGHT_FILES, revision, encoder_name)
    return WeightsFolder(config.parent, hub_id.split("/")[1], encoder_name)


def fetch_first(hub_id: str, names: Sequence[str], revision: str, encoder_name: str) -> Path:
    """The first file of `names` that the hub has. If the hub can't be reached, the first in its local cache."""
    from huggingface_hub import errors, hf_hub_download

    # Tested first, because the hub's client retries five times in 24 s before it uses its cache.
    is_reachable = is_hub_reachable()
    for name in names:
        try:
            return Path(hf_hub_download(hub_id, name, revision=revision or None, local_files_only=not is_reachable))
        except errors.EntryNotFoundError:
            continue
        except (OSError, errors.HFValidationError) as error:
            kind = type(error).__name__
            raise InvalidInput(
                f"{encoder_name}: the hub refuses {hub_id} ({kind})", "check its name and revision"
            ) from None
    if is_reachable:
        raise InvalidInput(
            f"{encoder_name}: {hub_id} has none of {', '.join(names)} on the hub", "name another model or a folder"
        )
    raise InvalidInput(
        f"{encoder_name}: the hub can't be reached from here and its cache lacks {hub_id}",
        "name a local folder with the weights, or an untrained encoder such as hubert:untrained-base",
    )


def is_hub_reachable(timeout_seconds: float = 5) -> bool:
    """Whether the Hugging Face hub, or the mirror in HF_ENDPOINT, answers now."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(f"{constants.ENDPOINT}/{_PROBE}", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file or of a PyTorch checkpoint. `InvalidInput` for a pickle that would run code."""
    import safetensors
    import safetensors.torch

    try:
        if file.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(file))
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first_line = str(error).partition("\n")[0]
        raise InvalidInput(f"{file} can't be read as weights ({first_line})", "convert it to safetensors") from None
    if not isinstance(content, Mapping):
        raise InvalidInput(f"{file} contains a {type(content).__name__}, not weights by name", "save a state dict")
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}


def load_strictly(
    module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], prefixes: Sequence[str], encoder_name: str
) -> None:
    """Copy `tensors` into `module`. `InvalidInput` if a weight is missing, unknown or of another shape.

    Only the tensors whose names begin with the first of `prefixes` that occurs are used, without that prefix.
    transformers would only warn of a missing weight and start it at random, and the features would mean nothing.
    """
    prefix = next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in tensors)), "")
    found = {_modern(name.removeprefix(prefix)): value for name, value in tensors.items() if name.startswith(prefix)}
    # Batch norm's counter serves training alone. Some files have it and others do not.
    found = {name: value for name, value in found.items() if not name.endswith("num_batches_tracked")}
    wanted = {name: value for name, value in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    parts = {name.partition(".")[0] for name in wanted}
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    wrong += [f"{name} is unknown" for name in found if name not in wanted and name.partition(".")[0] in parts]
    wrong += [
        f"{name} has another shape" for name in wanted if name in found and found[name].shape != wanted[name].shape
    ]
    if wrong:
        raise InvalidInput(
            f"{encoder_name}: the weights do not fit the model: {wrong[0]} ({len(wrong)} such)",
            "name the model of these weights",
        )
    module.load_state_dict({name: found[name] for name in wanted}, strict=False)


def _modern(name: str) -> str:
    """A parameter's name in newer versions of torch, in which weight norm is a parametrization."""
    name = re.sub(r"\.weight_g$", ".parametrizations.weight.original0", name)
    return re.sub(r"\.weight_v$", ".parametrizations.weight.original1", name)


def weights_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """The sha256 over the names, types, shapes and bytes (C order) of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
