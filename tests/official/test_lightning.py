"""A Lightning file gives its values and tensors; any other file is refused in one sentence."""

import contextlib
import hashlib
import os
import random
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support import official_files
from support.counts import count

from speechclip.errors import InvalidInput
from speechclip.official.lightning import LightningFile, settings
from speechclip.official.pickles import Inert

TOKENS = torch.arange(40.0).view(10, 4)
SIZES = {"width": 16, "layers": 3, "joint": 4, "feed_forward": 32}


def write(path: Path, **more: object) -> Path:
    rest = official_files.around(SIZES, tokens=TOKENS, ids=torch.tensor([0, 2]))
    config = {"audio_encoder": {"name": "hubert", "list": [1, {"a": 2}]}}
    return official_files.write_checkpoint(path, official_files.cascaded_state(SIZES), rest, config, **more)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lightning") / "base.ckpt")


def test_a_file_tells_its_state_config_and_step(checkpoint: Path) -> None:
    with LightningFile(str(checkpoint)) as file:
        assert (file.epoch, file.step) == (58, 6_902)
        assert settings(file.config["audio_encoder"])["name"] == "hubert"
        logger = settings(file.config["trainer"])["logger"]
        assert isinstance(logger, Inert)
        assert settings(logger)["_project"] == "sphclip"
        assert file.shape("cascaded_branch.cls") == (1, 8, 16)
        assert file.sha256() == hashlib.sha256(checkpoint.read_bytes()).hexdigest()


def test_every_tensor_is_what_torch_reads(checkpoint: Path) -> None:
    with official_files.official_classes():
        state = torch.load(checkpoint, weights_only=False)["state_dict"]
    with LightningFile(str(checkpoint)) as file:
        assert file.tensors.keys() == state.keys()
        for name, tensor in state.items():
            found = file.read(name)
            assert found.dtype == tensor.dtype, name
            assert torch.equal(found, tensor), name


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).view(3, 4).T,
        torch.arange(12.0)[5:9],
        torch.arange(12.0).view(3, 4)[:, 1:3],
        torch.tensor(7),
        torch.zeros(0, 3),
        torch.arange(4, dtype=torch.bfloat16),
        torch.nn.Parameter(torch.arange(4.0)),
    ],
)
def test_views_scalars_and_empty_tensors_are_read(tensor: torch.Tensor, tmp_path: Path) -> None:
    path = write(tmp_path / "x.ckpt", state_dict=OrderedDict(x=tensor))
    with LightningFile(str(path)) as file:
        found = file.read("x")
    assert found.dtype == tensor.dtype
    assert torch.equal(found, tensor)
    assert found.is_contiguous()
    assert found.untyped_storage().nbytes() == found.nbytes


def test_only_the_tensors_that_are_asked_for_are_read(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    plain = zipfile.ZipFile.open

    def note(self: zipfile.ZipFile, name: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(name.filename)
        return plain(self, name, *arguments, **options)

    monkeypatch.setattr(zipfile.ZipFile, "open", note)
    with LightningFile(str(checkpoint)) as file:
        assert opened == ["base/byteorder", "base/data.pkl"]
        file.read("cascaded_branch.cls")
    assert len(opened) == 3
    assert opened[2].startswith("base/data/")


def test_a_file_that_is_no_checkpoint_gets_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    safetensors.torch.save_file({"x": torch.zeros(2)}, path)
    refuses(path, "is a safetensors file")
    path.write_bytes(os.urandom(4_000).replace(b"PK", b"xx"))
    refuses(path, "is no PyTorch checkpoint")
    path.write_bytes(b"")
    refuses(path, "is no PyTorch checkpoint")
    torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False)
    refuses(path, r"was written by torch before 1\.6 .*if you trust the file, load it with that torch")
    refuses(tmp_path / "none.ckpt", "no such file")
    refuses(tmp_path, "no such file")
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("readme.txt", "words")
    refuses(path, "a zip, but no PyTorch checkpoint")
    torch.save([1, 2], path)
    refuses(path, "holds no state_dict")


def refuses(path: Path, sentence: str, read: Callable[[LightningFile], object] = lambda file: None) -> None:
    with pytest.raises(InvalidInput, match=sentence) as refusal, LightningFile(str(path)) as file:
        read(file)
    assert "\n" not in str(refusal.value)


def test_a_call_anywhere_in_the_file_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Runs:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {marker}",)

    for place in ("hyper_parameters", "callbacks", "optimizer_states", "state_dict"):
        path = write(tmp_path / "x.ckpt", **{place: {"deep": [{"er": Runs()}]}})
        refuses(path, "would call posix.system")
    assert not marker.exists()
    with official_files.official_classes():
        torch.load(path, weights_only=False)
    assert marker.exists()


def test_a_file_cut_short_is_said(checkpoint: Path, tmp_path: Path) -> None:
    data, path = checkpoint.read_bytes(), tmp_path / "x.ckpt"
    for size in (30, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        refuses(path, "the zip is damaged or cut short")


def rewrite(
    source: Path, target: Path, change: Callable[[str, bytes], tuple[str, bytes] | None], **options: Any
) -> Path:
    """A copy of the zip, with each entry replaced by what `change` returns; None leaves it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:
        for name in old.namelist():
            if made := change(name, old.read(name)):
                new.writestr(*made)
    return target


def test_a_missing_short_or_packed_part_is_said(checkpoint: Path, tmp_path: Path) -> None:
    with LightningFile(str(checkpoint)) as file:
        entry = f"base/{file.tensors['cascaded_branch.cls'].storage.entry}"

    def read(file: LightningFile) -> object:
        return file.read("cascaded_branch.cls")

    path = tmp_path / "x.ckpt"
    rewrite(checkpoint, path, lambda name, data: None if name == entry else (name, data))
    refuses(path, f"lacks its part {entry}", read)
    rewrite(checkpoint, path, lambda name, data: (name, data[:-4] if name == entry else data))
    refuses(path, "has 508 bytes, not 512", read)
    rewrite(checkpoint, path, lambda name, data: (name, data + b"1234" if name == entry else data))
    refuses(path, "is compressed or of a wrong size", read)
    rewrite(checkpoint, path, lambda name, data: (name, data), compression=zipfile.ZIP_DEFLATED)
    refuses(path, "is compressed or of a wrong size", read)
    rewrite(checkpoint, path, lambda name, data: (name, b"big" if name.endswith("byteorder") else data))
    refuses(path, "big-endian", read)


# Python's zip writer warns about the duplicate that this test needs.
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_name_that_stands_twice_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """Of two entries with one name, another reader might read the other one."""
    path = rewrite(checkpoint, tmp_path / "x.ckpt", lambda name, data: (name, data))
    with zipfile.ZipFile(path, "a") as made:
        made.writestr("base/data.pkl", b"\x80\x02}.")
    refuses(path, "no PyTorch checkpoint")
    path = rewrite(checkpoint, tmp_path / "x.ckpt", lambda name, data: (name, data))
    with zipfile.ZipFile(path, "a") as made:
        made.writestr("base/data/0", b"1234")
    refuses(path, "no PyTorch checkpoint")


def test_a_changed_byte_of_a_tensor_is_found_by_its_checksum(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    shutil.copy(checkpoint, path)
    with LightningFile(str(path)) as file:
        wanted = file.read("cascaded_branch.cls").numpy().tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(wanted) + 100] ^= 1
    path.write_bytes(data)
    refuses(path, "is damaged", lambda file: file.read("cascaded_branch.cls"))


class Tensorlike:
    """Its pickle describes a tensor with the given numbers, as torch does."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.arguments


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (0, (2,), (4,)),
        (0, (1_000_000_000,), (0,)),
        (0, (-1,), (1,)),
        (0, (4,), (-1,)),
        (-1, (2,), (1,)),
        (0, (4,), (1, 1)),
        (0, ("4",), (1,)),
        (0, (4.0,), (1,)),
        (True, (2,), (1,)),
        (0, (1 << 60, 1 << 60, 0), (1, 1, 1)),
        (0, (1,) * 9, (1,) * 9),
    ],
)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(
    offset: Any, shape: Any, stride: Any, tmp_path: Path
) -> None:
    storage = torch.zeros(4).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    odd = Tensorlike(typed, offset, shape, stride, False, OrderedDict())
    path = write(tmp_path / "x.ckpt", state_dict=OrderedDict(x=odd))
    refuses(path, "a tensor that does not fit its storage")


def test_a_storage_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ckpt", state_dict=OrderedDict(x=torch.zeros(2, dtype=torch.complex64)))
    refuses(path, "names a storage of a kind that no official checkpoint has")


def test_a_name_that_leads_out_of_the_zip_leads_nowhere(checkpoint: Path, tmp_path: Path) -> None:
    """A storage's name is looked up in the zip only. A name with `../` never opens a file on the disk."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")

    def lead_out(name: str, data: bytes) -> tuple[str, bytes]:
        return name, data.replace(b"X\x01\x00\x00\x000", b"X\x09\x00\x00\x00../secret") if name.endswith(
            "pkl"
        ) else data

    path = rewrite(checkpoint, tmp_path / "x.ckpt", lead_out)
    with LightningFile(str(path)) as file:
        led = [name for name, tensor in file.tensors.items() if tensor.storage.entry == "data/../secret"]
        assert led
        with pytest.raises(InvalidInput, match=r"lacks its part base/data/\.\./secret"):
            file.read(led[0])


def test_bytes_flipped_at_random_end_in_a_checkpoint_or_a_sentence(checkpoint: Path, tmp_path: Path) -> None:
    original, path = checkpoint.read_bytes(), tmp_path / "x.ckpt"
    directory = original.index(b"PK\x01\x02")
    num_read = 0
    for seed in range(count(150, 1_000)):
        generator = random.Random(seed)
        data = bytearray(original)
        # Most bytes are numbers of tensors, where a flip tests little. Those of the zip and the pickle get more flips.
        ranges = [(directory, len(data)), (0, 12_000), (0, len(data))]
        for _ in range(generator.randint(1, 5)):
            data[generator.randrange(*generator.choice(ranges))] = generator.randrange(256)
        path.write_bytes(data)
        with contextlib.suppress(InvalidInput), LightningFile(str(path)) as file:
            for name in file.tensors:
                file.read(name)
            num_read += 1
    assert num_read < count(150, 1_000)
