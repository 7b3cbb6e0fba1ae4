import subprocess
import sys

import numpy as np
import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from speechclip.encoders import load_encoder, prepare
from speechclip.encoders.prepare import crop_image
from speechclip.errors import BrokenImage, EmptyText, InvalidInput, NotFinite, TooLong, TooShort


def speech_check():
    return prepare(load_encoder("toy", "speech").spec)


def test_a_waveform_passes_unchanged():
    waveform = np.linspace(-1, 1, 400, dtype=np.float32)
    assert speech_check()(waveform) is waveform


@pytest.mark.parametrize(
    ("waveform", "error"),
    [
        (np.zeros(0, np.float32), TooShort),
        (np.zeros(399, np.float32), TooShort),
        (np.zeros(120 * 16_000 + 1, np.float32), TooLong),
        (np.array([0.0, np.nan] * 300, np.float32), NotFinite),
        (np.array([0.0, np.inf] * 300, np.float32), NotFinite),
        (np.zeros(400, np.float64), InvalidInput),
        (np.zeros((2, 400), np.float32), InvalidInput),
    ],
)
def test_a_waveform_that_can_become_no_feature_is_refused(waveform, error):
    with pytest.raises(error):
        speech_check()(waveform)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(9, 500),
    height=st.integers(9, 500),
    size=st.sampled_from([8, 31, 224]),
    seed=st.integers(0, 9),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
def test_crops_are_those_of_open_clip_to_the_last_bit(width, height, size, seed, interpolation):
    picture = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    whole = image_transform(size, is_train=False, interpolation=interpolation)
    before_tensor = Compose([step for step in whole.transforms if isinstance(step, Resize | CenterCrop)])
    assert len(before_tensor.transforms) == 2
    crop = crop_image(picture, resize=size, size=size, interpolation=interpolation)
    np.testing.assert_array_equal(crop, np.array(before_tensor(picture)))


def test_a_crop_smaller_than_the_resize_is_torchvisions():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (301, 222, 3), dtype=np.uint8))
    expected = Compose([Resize(256), CenterCrop(225)])
    crop = crop_image(picture, resize=256, size=225, interpolation="bilinear")
    np.testing.assert_array_equal(crop, np.array(expected(picture)))


@pytest.mark.parametrize("text", ["A dog &amp; a café  runs.", "x", "very " * 200, "naïve 日本 🐕"])
def test_tokens_are_those_of_open_clip(text):
    tokens = prepare(load_encoder("clip:untrained-tiny", "text").spec)(text)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, open_clip.get_tokenizer("ViT-B-32")([text])[0])


@pytest.mark.parametrize("source", ["toy", "clip:untrained-tiny"])
@pytest.mark.parametrize("text", ["", " \n\t"])
def test_blank_text_is_refused(source, text):
    with pytest.raises(EmptyText):
        prepare(load_encoder(source, "text").spec)(text)


def test_a_text_without_a_token_is_refused():
    with pytest.raises(EmptyText):
        prepare(load_encoder("clip:untrained-tiny", "text").spec)("&nbsp;")


def test_preparing_speech_and_images_loads_no_torch():
    code = """
import sys
import numpy as np
from PIL import Image
from speechclip.encoders import load_encoder, prepare
prepare(load_encoder("toy", "speech").spec)(np.zeros(400, np.float32))
prepare(load_encoder("toy", "image").spec)(Image.new("RGB", (9, 9)))
sys.exit(sorted({"torch", "transformers", "open_clip", "timm", "ray"} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("size", [(79_999_999, 1), (1, 1_600_000)])
def test_a_strip_that_would_grow_without_bound_is_refused(size):
    with pytest.raises(BrokenImage, match="would become"):
        crop_image(Image.new("L", size), resize=224, size=224, interpolation="bicubic")
    assert crop_image(Image.new("L", (1, 1_000)), resize=224, size=224, interpolation="bicubic").shape == (224, 224, 3)
