"""One task: which problems belong to the bytes, to the source, and to the machine."""

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile
from PIL import Image

from speechclip.encoders import load_encoder
from speechclip.featurization.tasks import decode_task
from speechclip.media.content import content_key, text_key
from speechclip.media.decode import decoder
from speechclip.records import Asset, Modality, RejectedAsset, Task


def rejected(asset: Asset) -> RejectedAsset:
    task = Task(id="t", feature_set="f", assets=(asset,))
    (entry,) = decode_task(task, load_encoder("toy", asset.modality).spec).rejected
    assert entry.key == asset.key
    return entry


@pytest.mark.parametrize(("modality", "words"), [("speech", "libsndfile 1."), ("image", "Pillow ")])
def test_a_rejection_by_the_bytes_names_the_decoder_and_no_source(
    tmp_path: Path, modality: Modality, words: str
) -> None:
    (tmp_path / "x").write_bytes(b"neither")
    entry = rejected(Asset(key=content_key(b"neither"), modality=modality, uri=str(tmp_path / "x")))
    assert entry.source is None
    assert entry.detail.endswith(f"({decoder(modality)})")
    assert words in entry.detail


def test_a_rejection_by_the_source_names_the_source(tmp_path: Path) -> None:
    uri = str(tmp_path / "gone")
    entry = rejected(Asset(key="0" * 64, modality="image", uri=uri, other_uris=(f"{uri}-too",)))
    assert (entry.reason, entry.source) == ("source-missing", uri)
    assert "Pillow" not in entry.detail


def test_a_text_of_another_key_is_its_manifests_fault_and_an_empty_one_its_own() -> None:
    forged = rejected(Asset(key=text_key("true"), modality="text", text=" "))
    assert (forged.reason, forged.source) == ("source-changed", " ")
    blank = rejected(Asset(key=text_key(" "), modality="text", text=" "))
    assert (blank.reason, blank.source) == ("empty-text", None)


MEMORY_PROGRAM = """
import io, resource, sys
import numpy as np, soundfile
from PIL import Image
from speechclip.media.content import content_key
from speechclip.encoders import load_encoder
from speechclip.errors import MachineFailed
from speechclip.records import Asset, Task
from speechclip.featurization.tasks import decode_task

kind, path = sys.argv[1:]
spec = load_encoder("toy", kind).spec
data = open(path, "rb").read()
asset = Asset(key=content_key(data), modality=kind, uri=path)
decode_task(Task(id="t", feature_set="f", assets=()), spec)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20),) * 2)
try:
    print(decode_task(Task(id="t", feature_set="f", assets=(asset,)), spec).rejected)
except MachineFailed as error:
    print("MachineFailed", error)
"""


@pytest.mark.parametrize("modality", ["speech", "image"])
def test_a_machine_without_memory_ends_the_run_and_rejects_nothing(tmp_path: Path, modality: str) -> None:
    path = tmp_path / "large"
    if modality == "speech":
        soundfile.write(path, np.sin(np.arange(119 * 300_000) / 9), 300_000, format="WAV", subtype="PCM_U8")
    else:
        Image.new("1", (20_000, 3_900)).save(path, "PNG")
    command = [sys.executable, "-c", MEMORY_PROGRAM, modality, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"MachineFailed {path}: no memory left"), done


def test_an_asset_of_a_plan_that_knew_one_address_still_parses() -> None:
    old = b'{"key":"ab","modality":"image","uri":"/a.png","text":null,"seconds":0.0}'
    assert msgspec.json.decode(old, type=Asset) == Asset(key="ab", modality="image", uri="/a.png")
