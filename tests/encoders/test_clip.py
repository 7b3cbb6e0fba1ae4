import json

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import save_file

from speechclip.encoders import load_encoder, prepare
from speechclip.encoders.clip import _TINY
from speechclip.encoders.untrained import fill_untrained
from speechclip.errors import InvalidInput

BOUND = 1e-5


def picture(seed):
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (200 + 10 * seed, 260, 3), dtype=np.uint8))


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A small plain CLIP, which open_clip knows as `speechclip-test`, and a checkpoint of it."""
    # It is smaller than the untrained one. Like ViT-B-32, it has no QuickGELU in its config.
    config = _TINY | {"vision_cfg": _TINY["vision_cfg"] | {"layers": 1}}
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    (tmp_path / "speechclip-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "speechclip-test.json")
    model = fill_untrained(open_clip.CLIP(**config))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors", model.eval()


@pytest.fixture
def published_tag(checkpoint, tmp_path, monkeypatch):
    """The checkpoint as tag `openai`, trained with QuickGELU, in the hub's cache of a machine without a network."""
    tag = {"hf_hub": "owner/name/", "quick_gelu": True, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "speechclip-test", {"openai": tag})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots" / ("a" * 40)).mkdir(parents=True)
    checkpoint[0].rename(repository / "snapshots" / ("a" * 40) / "open_clip_model.safetensors")
    return checkpoint[1]


def test_an_image_vector_is_open_clips_own_by_its_own_preprocessing(checkpoint):
    file, model = checkpoint
    encoder = load_encoder(f"clip:speechclip-test/{file}", "image")
    with torch.inference_mode():
        expected = model.encode_image(image_transform(224, is_train=False)(picture(0))[None])[0]
    vector = encoder.encode([prepare(encoder.spec)(picture(0))])[0]
    np.testing.assert_allclose(vector, expected, rtol=0, atol=BOUND)
    assert abs(np.linalg.norm(vector) - 1) > 0.01
    assert encoder.spec.fingerprint.startswith("clip-speechclip-test-mine-image-")


def test_a_text_vector_is_open_clips_own(checkpoint):
    file, model = checkpoint
    encoder = load_encoder(f"clip:speechclip-test/{file}", "text")
    with torch.inference_mode():
        expected = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(["a brown dog"]))[0]
    vector = encoder.encode([prepare(encoder.spec)("a brown dog")])[0]
    np.testing.assert_allclose(vector, expected, rtol=0, atol=BOUND)


def test_openai_weights_run_with_the_activation_they_were_trained_with(published_tag):
    """open_clip itself only warns."""
    encoder = load_encoder("clip:speechclip-test/openai", "text")
    quick = open_clip.CLIP(**open_clip.get_model_config("speechclip-test"), quick_gelu=True).eval()
    quick.load_state_dict(published_tag.state_dict())
    tokens = open_clip.get_tokenizer("ViT-B-32")(["a brown dog"])
    with torch.inference_mode():
        expected, plain = quick.encode_text(tokens)[0], published_tag.encode_text(tokens)[0]
    vector = encoder.encode([prepare(encoder.spec)("a brown dog")])[0]
    np.testing.assert_allclose(vector, expected, rtol=0, atol=BOUND)
    assert np.abs(vector - plain.numpy()).max() > 10 * BOUND
    assert encoder.spec.architecture["quick_gelu"]
    assert encoder.spec.name == "clip-speechclip-test-openai-text"


def test_a_tags_own_mean_and_deviation_are_used(published_tag):
    preprocess = load_encoder("clip:speechclip-test/openai", "image").spec.architecture["preprocess"]
    assert (preprocess["mean"], preprocess["std"]) == ([0.5, 0.4, 0.3], [0.2, 0.2, 0.2])
    assert (preprocess["resize"], preprocess["size"], preprocess["interpolation"]) == (224, 224, "bicubic")


def test_another_text_tower_leaves_image_features_valid(checkpoint):
    file, model = checkpoint
    source = f"clip:speechclip-test/{file}"
    before = [load_encoder(source, modality).spec.fingerprint for modality in ("image", "text")]
    with torch.no_grad():
        model.text_projection += 1
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, file)
    after = [load_encoder(source, modality).spec.fingerprint for modality in ("image", "text")]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False]


@pytest.mark.parametrize("modality", ["image", "text"])
@settings(max_examples=8, deadline=None)
@given(seeds=st.lists(st.integers(0, 9), min_size=1, max_size=70))
def test_a_vector_is_the_same_alone_and_in_any_batch(modality, seeds):
    encoder = tiny(modality)
    step = prepare(encoder.spec)
    inputs = [step(picture(seed) if modality == "image" else f"{seed} dogs " * (1 + 3 * seed)) for seed in range(10)]
    alone = [encoder.encode([one])[0] for one in inputs]
    vectors = encoder.encode([inputs[seed] for seed in seeds])
    assert len(vectors) == len(seeds)
    for vector, seed in zip(vectors, seeds, strict=True):
        assert (vector.shape, vector.dtype) == ((64,), np.float32)
        np.testing.assert_allclose(vector, alone[seed], rtol=0, atol=BOUND)
    assert max(np.abs(one - alone[0]).max() for one in alone[1:]) > 1000 * BOUND


def tiny(modality, encoders={}):  # noqa: B006 - one load for all examples
    if modality not in encoders:
        encoders[modality] = load_encoder("clip:untrained-tiny", modality)
    return encoders[modality]


@pytest.mark.parametrize("content", [b"not weights", b"\x80\x02cos\nsystem\n(S'true'\ntR."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused(checkpoint, tmp_path, content, suffix):
    (tmp_path / f"bad{suffix}").write_bytes(content)
    with pytest.raises(InvalidInput, match="does not fit speechclip-test"):
        load_encoder(f"clip:speechclip-test/{tmp_path / f'bad{suffix}'}", "image")


def test_weights_of_another_model_are_refused(checkpoint, tmp_path):
    save_file({"visual.class_embedding": torch.zeros(7)}, tmp_path / "other.safetensors")
    with pytest.raises(InvalidInput, match="does not fit speechclip-test"):
        load_encoder(f"clip:speechclip-test/{tmp_path / 'other.safetensors'}", "image")
