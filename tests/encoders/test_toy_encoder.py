import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from speechclip.encoders import load_encoder, prepare


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(400, 20_000), min_size=1, max_size=5))
def test_toy_speech_is_equal_to_the_last_bit_in_any_batch(voice, lengths):
    encoder = load_encoder("toy", "speech")
    waveforms = [voice(length, seed=seed) for seed, length in enumerate(lengths)]
    for feature, waveform in zip(encoder.encode(waveforms), waveforms, strict=True):
        assert feature.shape == (3, encoder.spec.num_frames(len(waveform)), 16)
        assert feature.dtype == np.float32
        np.testing.assert_array_equal(feature, encoder.encode([waveform])[0])


def test_toy_speech_tells_frames_and_utterances_apart(voice):
    first, second = load_encoder("toy", "speech").encode([voice(16_000, seed=1), voice(16_000, seed=2)])
    assert (first.std(axis=1).mean(axis=1) > 0.02).all()
    assert np.abs(first - second).mean() > 0.02


def test_toy_images_and_texts_share_one_width_and_differ():
    image, text = load_encoder("toy", "image"), load_encoder("toy", "text")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    pictures = [prepare(image.spec)(Image.fromarray(picture)) for picture in (pixels, 255 - pixels)]
    texts = [prepare(text.spec)(words) for words in ("a dog runs", "two cats sleep")]
    for encoder, inputs in ((image, pictures), (text, texts)):
        first, second = encoder.encode(inputs)
        assert first.shape == (16,) == (encoder.spec.width,)
        assert np.abs(first - second).max() > 0.01
        assert not encoder.spec.is_frames


def test_toy_layers_are_those_rows(voice):
    waveform = voice(4_000)
    all_states = load_encoder("toy", "speech").encode([waveform])[0]
    np.testing.assert_array_equal(load_encoder("toy", "speech", layers=[2]).encode([waveform])[0], all_states[[2]])
