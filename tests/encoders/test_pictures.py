import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config

from speechclip.encoders import load_encoder, prepare
from speechclip.errors import InvalidInput

NAME = "tf_efficientnet_lite0"


@pytest.fixture
def folder(tmp_path):
    """A folder like those that timm publishes: config.json, and model.safetensors with the classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(NAME, pretrained=False).eval()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    return tmp_path, model


def random_pictures():
    generator = np.random.default_rng(0)
    sizes = [(300, 400), (260, 230), (90, 120)]
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def test_the_vector_is_timms_pooled_feature_by_its_own_preprocessing(folder):
    path, model = folder
    encoder = load_encoder(f"timm:{NAME}@{path}", "image")
    step, transform = prepare(encoder.spec), create_transform(**resolve_data_config({}, model=model))
    vectors = encoder.encode([step(picture) for picture in random_pictures()])
    for vector, picture in zip(vectors, random_pictures(), strict=True):
        with torch.inference_mode():
            pixels = transform(picture)[None]
            expected = model.forward_head(model.forward_features(pixels), pre_logits=True)[0]
        assert vector.shape == (1280,) == (encoder.spec.width,)
        np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_a_config_beside_the_weights_states_their_preprocessing(folder):
    path, _ = folder
    before = load_encoder(f"timm:{NAME}@{path / 'model.safetensors'}", "image").spec
    overlay = {"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "crop_pct": 1.0}, "speechclip_untrained": True}
    (path / "config.json").write_text(json.dumps(overlay))
    after = load_encoder(f"timm:{NAME}@{path}", "image").spec
    assert before.architecture["preprocess"]["resize"] == 256
    assert after.architecture["preprocess"]["resize"] == after.architecture["preprocess"]["size"] == 224
    assert after.architecture["preprocess"]["mean"] == [0.1, 0.2, 0.3]
    assert (before.is_trained, after.is_trained) == (True, False)
    assert before.weights == after.weights


@pytest.mark.parametrize("source", ["timm:no_such_model@x", f"timm:{NAME}", f"timm:{NAME}@/no/such/folder"])
def test_what_timm_or_the_disk_lacks_is_refused(source):
    with pytest.raises(InvalidInput):
        load_encoder(source, "image")
