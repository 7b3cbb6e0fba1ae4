import numpy as np
import pytest
import torch

from speechclip.encoders import load_encoder
from speechclip.encoders.frozen import assert_exact, assert_frozen, collect, freeze, use_device
from speechclip.errors import InvalidInput


@pytest.mark.parametrize(
    "source", ["hubert:untrained-tiny", "torchaudio:untrained-tiny", "whisper:untrained-tiny", "clip:untrained-tiny"]
)
def test_every_encoder_refuses_to_work_unfrozen(source, voice):
    encoder = load_encoder(source, "image" if source.startswith("clip") else "speech")
    encoder.encode([])
    next(encoder._model.parameters()).requires_grad_(True)
    with pytest.raises(InvalidInput, match="requires a gradient"):
        encoder.encode([])
    freeze(encoder._model)
    encoder.encode([])
    list(encoder._model.modules())[-1].train()
    with pytest.raises(InvalidInput, match="training mode"):
        encoder.encode([])


def test_a_frozen_module_passes():
    assert_frozen(freeze(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())))


def test_features_carry_no_graph_and_no_global_switch(voice):
    threads = torch.get_num_threads()
    load_encoder("hubert:untrained-tiny", "speech").encode([voice(4_000)])
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_autocast_is_refused_because_the_spec_says_fp32(voice):
    encoder = load_encoder("hubert:untrained-tiny", "speech")
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InvalidInput, match="autocast"):
        encoder.encode([voice(4_000)])


@pytest.mark.parametrize("flags", [torch.backends.cudnn, torch.backends.cuda.matmul])
def test_tf32_is_refused_on_a_gpu(flags):
    gpu, before = torch.device("cuda"), (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        assert_exact(gpu)
        flags.allow_tf32 = True
        with pytest.raises(InvalidInput, match="TF32"):
            assert_exact(gpu)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(InvalidInput, match="no GPU"):
        use_device("cuda")


@pytest.mark.parametrize("source", ["toy", "hubert:untrained-tiny", "whisper:untrained-tiny"])
@pytest.mark.parametrize("num_frames", [1, 10_000])
def test_features_in_half_precision_are_those_of_full_rounded(source, num_frames, voice):
    encoder = load_encoder(source, "speech")
    encoder._max_frames = encoder._max_seconds = num_frames
    waveforms = [voice(9_000), voice(4_000, rms=30.0)]
    for full, half in zip(encoder.encode(waveforms), encoder.encode(waveforms, np.float16), strict=True):
        assert half.dtype == np.float16
        np.testing.assert_array_equal(full.astype(np.float16), half)


def test_what_half_precision_cannot_hold_becomes_infinite():
    (found,) = collect([torch.tensor([[[65_519.0, -65_520.0, np.nan, 1e-9]]])], 1, [1], np.float16)
    np.testing.assert_array_equal(found, np.array([[[65_504, -np.inf, np.nan, 0]]], np.float16))
