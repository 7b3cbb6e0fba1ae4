"""The asset's key determines where crops begin, and each crop's feature depends on its own samples alone."""

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechclip.encoders import load_encoder, prepare
from speechclip.encoders.hubert import HubertEncoder
from speechclip.encoders.windows import crop_offsets
from speechclip.errors import InvalidInput, TooLong
from speechclip.featurization.tasks import EncoderRequest
from speechclip.spec import CROP_SAMPLES
from speechclip.store.codec import stored_bytes

KEY = "ab" * 32
TINY = ("hubert:untrained-tiny", "hubert:untrained-tiny-large")
LONG = CROP_SAMPLES + 30_000


def test_a_spec_without_crops_keeps_the_fingerprint_that_it_had_before_there_were_windows():
    assert load_encoder("toy", "speech").spec.fingerprint == "toy-untrained-speech-c9ffdad377d0"
    assert load_encoder("hubert:untrained-tiny", "speech").spec.fingerprint == "hubert-untrained-tiny-957a9e060cfb"
    assert load_encoder("toy", "speech", window="full").spec.rules["window"] == "full/1"


def test_crops_are_a_rule_of_the_spec_and_the_spec_gives_its_words_back():
    spec = load_encoder("toy", "speech", window="crops=4").spec
    assert spec.rules["window"] == "crops-4-6.4s/1"
    assert (spec.num_crops, spec.window, spec.frames_per_crop) == (4, "crops=4", 319)
    assert EncoderRequest.again(spec, "toy").build().spec == spec
    full = load_encoder("toy", "speech").spec
    assert (full.num_crops, full.window) == (0, "full")
    assert (
        len({spec.fingerprint, full.fingerprint, load_encoder("toy", "speech", window="crops=5").spec.fingerprint}) == 3
    )


def test_offsets_are_those_recorded_for_key_number_and_length():
    assert crop_offsets(KEY, 3, LONG) == [13425, 12665, 18726]
    assert crop_offsets(KEY, 4, LONG)[:3] != crop_offsets(KEY, 3, LONG)
    assert crop_offsets("cd" * 32, 3, LONG) != crop_offsets(KEY, 3, LONG)


@given(key=st.text("0123456789abcdef", min_size=1), num_samples=st.integers(CROP_SAMPLES + 1, 120 * 16_000))
def test_offsets_leave_out_the_last_possible_as_the_official_crop_does(key, num_samples):
    assert all(0 <= offset < num_samples - CROP_SAMPLES for offset in crop_offsets(key, 8, num_samples))


def test_every_offset_but_the_last_occurs():
    found = set(itertools.chain.from_iterable(crop_offsets(str(n), 8, CROP_SAMPLES + 5) for n in range(40)))
    assert found == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("source", ["toy", *TINY])
def test_each_crop_is_what_its_samples_give_alone(source, voice):
    full, cropped = load_encoder(source, "speech"), load_encoder(source, "speech", window="crops=2")
    # It is louder at its end, so that normalising it before the crop would be noticed.
    waveform = voice(LONG) * np.linspace(0.2, 3, LONG, dtype=np.float32)
    (feature,) = cropped.encode([prepare(cropped.spec, KEY)(waveform)])
    assert feature.shape == (len(full.spec.layers), 2 * 319, full.spec.width)
    assert feature.shape[1] == cropped.spec.num_frames(LONG)
    for number, offset in enumerate(crop_offsets(KEY, 2, LONG)):
        (alone,) = full.encode([np.ascontiguousarray(waveform[offset : offset + CROP_SAMPLES])])
        np.testing.assert_array_equal(feature[:, number * 319 : (number + 1) * 319], alone)


def test_slicing_the_states_of_the_whole_is_not_the_same(voice):
    full, cropped = (load_encoder(TINY[0], "speech", window=window) for window in ("full", "crops=1"))
    waveform = voice(LONG)
    whole = full.encode([waveform])[0]
    crop = cropped.encode([prepare(cropped.spec, KEY)(waveform)])[0]
    start = crop_offsets(KEY, 1, LONG)[0] // 320
    nearest = min(np.abs(whole[:, at : at + 319] - crop).max() for at in (start, start + 1))
    assert nearest > 0.1


@pytest.mark.parametrize("source", ["toy", *TINY])
@pytest.mark.parametrize("num_samples", [400, 20_000, CROP_SAMPLES])
def test_what_is_no_longer_than_a_crop_is_encoded_whole(source, num_samples, voice):
    full, cropped = (load_encoder(source, "speech", window=window) for window in ("full", "crops=3"))
    waveform = voice(num_samples)
    assert prepare(cropped.spec, KEY)(waveform) is waveform
    assert cropped.spec.num_frames(num_samples) == full.spec.num_frames(num_samples)
    np.testing.assert_array_equal(cropped.encode([waveform])[0], full.encode([waveform])[0])


@pytest.mark.parametrize("source", TINY)
@settings(max_examples=4, deadline=None)
@given(lengths=st.lists(st.sampled_from([700, 9_000, CROP_SAMPLES + 1, LONG]), min_size=2, max_size=3))
def test_crops_are_the_same_alone_and_in_any_batch(source, lengths, voice):
    encoder = load_encoder(source, "speech", window="crops=2")
    wide = HubertEncoder(encoder._model, encoder.spec, encoder.encoder_name, max_frames=10_000)
    inputs = [prepare(encoder.spec, f"{n:064x}")(voice(length, seed=n)) for n, length in enumerate(lengths)]
    for feature, prepared, length in zip(wide.encode(inputs), inputs, lengths, strict=True):
        assert feature.shape[1] == encoder.spec.num_frames(length) == encoder.spec.num_frames(len(prepared))
        np.testing.assert_allclose(feature, encoder.encode([prepared])[0], rtol=0, atol=1e-5)


def test_the_plan_counts_what_is_encoded_and_stored():
    spec = load_encoder("toy", "speech", window="crops=4").spec
    assert stored_bytes(spec, 6.4) == stored_bytes(load_encoder("toy", "speech").spec, 6.4)
    assert stored_bytes(spec, 7.0) == stored_bytes(spec, 100.0) == 4 * 319 * 3 * 16 * 2
    assert (spec.encoded_seconds(6.4), spec.encoded_seconds(7.0)) == (6.4, 4 * 6.4)
    assert load_encoder("toy", "speech").spec.encoded_seconds(7.0) == 7.0


def test_crops_without_a_key_or_not_cut_at_all_are_refused(voice):
    encoder = load_encoder("toy", "speech", window="crops=2")
    with pytest.raises(InvalidInput, match="give the key"):
        prepare(encoder.spec)(voice(LONG))
    with pytest.raises(InvalidInput, match="cut them by prepare"):
        encoder.encode([voice(LONG)])
    with pytest.raises(TooLong):
        prepare(encoder.spec, KEY)(voice(120 * 16_000 + 1))


@pytest.mark.parametrize("window", ["crops", "crops=0", "crops=65", "crops=1.5", "whole", "", "crops=-1"])
@pytest.mark.parametrize("source", ["toy", TINY[0]])
def test_a_window_outside_the_words_is_refused(source, window):
    with pytest.raises(InvalidInput, match="write full, or crops=K"):
        load_encoder(source, "speech", window=window)


def test_what_has_no_window_of_crops_says_so():
    with pytest.raises(InvalidInput, match="whisper:untrained-tiny has a window of its own"):
        load_encoder("whisper:untrained-tiny", "speech", window="crops=2")
    with pytest.raises(InvalidInput, match="encodes image, so it has no window"):
        load_encoder("toy", "image", window="crops=2")


def test_specs_that_differ_by_window_and_codec_alone_serve_the_same_head():
    crops = load_encoder("toy", "speech", window="crops=2", codec="fp32").spec
    full = load_encoder("toy", "speech").spec
    assert crops.is_same_but_window(full)
    assert full.is_same_but_window(crops)
    for other in (
        load_encoder("toy", "speech", layers=[0, 1]).spec,
        load_encoder("hubert:untrained-tiny", "speech").spec,
        msgspec.structs.replace(full, weights="0"),
        msgspec.structs.replace(full, rules=full.rules | {"resample": "soxr-hq/2"}),
    ):
        assert not crops.is_same_but_window(other)
