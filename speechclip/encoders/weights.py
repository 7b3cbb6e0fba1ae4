"""Weights: found in a folder or on the Hugging Face hub, read without running code, and known by their digest."""

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

# A folder's config.json may carry this key, set to true: its weights are a random start, and its name will say so.
UNTRAINED_MARKER = "speechclip_untrained"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_PROBE = "facebook/hubert-base-ls960/resolve/main/config.json"


@dataclass(frozen=True)
class WeightsFolder:
    """A local folder of a published model: config.json beside safetensors, or the older pytorch_model.bin."""

    path: Path
    name: str
    encoder_name: str

    @property
    def is_trained(self) -> bool:
        """False where config.json carries the marker of a random start."""
        return self.read_json("config.json").get(UNTRAINED_MARKER) is not True

    def read_json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file of the folder, empty where there is none."""
        file = self.path / name
        try:
            content: dict[str, Any] = json.loads(file.read_bytes()) if file.exists() else {}
        except ValueError as error:
            raise InvalidInput(f"{self.encoder_name}: {file} is not JSON ({error}); fetch the folder again") from None
        return content

    def read_tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by its name in the file, safetensors first."""
        files = [self.path / name for name in WEIGHT_FILES if (self.path / name).is_file()]
        if not files:
            raise InvalidInput(
                f"{self.encoder_name}: {self.path} holds none of {', '.join(WEIGHT_FILES)}; put one there"
            )
        return read_tensors(files[0])


def find_folder(name: str, encoder_name: str, untrained: Iterable[str]) -> WeightsFolder:
    """The folder at the path `name`, or the hub's ``<owner>/<model>[@<revision>]``, from its cache where offline.

    `untrained` are the family's architectures without weights, for the error to name.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InvalidInput(
                f"{encoder_name}: {path} has no config.json; name a folder with config.json and model.safetensors"
            )
        return WeightsFolder(path, path.resolve().name, encoder_name)
    hub_id, _, revision = name.partition("@")
    if not _HUB_ID.fullmatch(hub_id):
        raise InvalidInput(
            f"{encoder_name}: no folder {path}; name a folder with config.json and model.safetensors, a hub id, "
            f"or one of {', '.join(untrained)}"
        )
    config = fetch_first(hub_id, ("config.json",), revision, encoder_name)
    fetch_first(hub_id, ("preprocessor_config.json", "config.json"), revision, encoder_name)
    fetch_first(hub_id, WEIGHT_FILES, revision, encoder_name)
    return WeightsFolder(config.parent, hub_id.split("/")[1], encoder_name)


def fetch_first(hub_id: str, names: Sequence[str], revision: str, encoder_name: str) -> Path:
    """The first of `names` that the hub has, or that its local cache holds where the hub can't be reached."""
    from huggingface_hub import errors, hf_hub_download

    # Asked first, because the hub's client waits 24 s over five retries before it falls back on its cache.
    is_reachable = is_hub_reachable()
    for name in names:
        try:
            return Path(hf_hub_download(hub_id, name, revision=revision or None, local_files_only=not is_reachable))
        except errors.EntryNotFoundError:
            continue
        except (OSError, errors.HFValidationError) as error:
            kind = type(error).__name__
            raise InvalidInput(
                f"{encoder_name}: the hub refuses {hub_id} ({kind}); check its name and revision"
            ) from None
    if is_reachable:
        raise InvalidInput(
            f"{encoder_name}: {hub_id} has none of {', '.join(names)} on the hub; name another model or a folder"
        )
    raise InvalidInput(
        f"{encoder_name}: the hub can't be reached from here and its cache lacks {hub_id}; "
        "name a local folder of the weights, or an untrained encoder such as hubert:untrained-base"
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
    """The tensors of a safetensors file or of a PyTorch checkpoint; a pickle that would run code is refused."""
    import safetensors
    import safetensors.torch

    try:
        if file.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(file))
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first_line = str(error).partition("\n")[0]
        raise InvalidInput(f"{file} can't be read as weights ({first_line}); convert it to safetensors") from None
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}


def load_strictly(
    module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], prefixes: Sequence[str], encoder_name: str
) -> None:
    """Copy into `module` the tensors under the first of `prefixes` that occurs; every weight must be there.

    transformers would start a missing weight at random with a mere warning, and the feature would mean nothing.
    """
    prefix = next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in tensors)), "")
    found = {_modern(name.removeprefix(prefix)): value for name, value in tensors.items() if name.startswith(prefix)}
    # Batch norm's counter serves training alone; some files have it, some do not.
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
            f"{encoder_name}: the weights do not fit: {wrong[0]} ({len(wrong)} such); name the matching model"
        )
    module.load_state_dict({name: found[name] for name in wanted}, strict=False)


def _modern(name: str) -> str:
    """A parameter's name as torch writes it since weight norm became a parametrization."""
    name = re.sub(r"\.weight_g$", ".parametrizations.weight.original0", name)
    return re.sub(r"\.weight_v$", ".parametrizations.weight.original1", name)


def weights_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """The sha256 over names, types, shapes and bytes (C order), by ascending name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
