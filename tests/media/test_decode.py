import io
import random
import struct
from collections.abc import Callable

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from speechclip.errors import (
    BrokenImage,
    DecoderMissing,
    EmptyAudio,
    MachineFailed,
    NotFinite,
    Rejected,
    Silent,
    TooLong,
    Truncated,
    Undecodable,
)
from speechclip.media import decode as media
from speechclip.media.decode import decode_audio, decode_image, probe_audio
from speechclip.spec import RESAMPLE_RULE

LOSSLESS = [("WAV", "PCM_U8"), ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16")]
LOSSY = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]


def tone(num_samples: int = 12_000, rate: int = 24_000, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(num_samples) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 24)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    image = decode_image(data, name="picture")
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(("kind", "subtype"), LOSSLESS + LOSSY)
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("num_channels", [1, 2])
def test_every_format_keeps_a_tone_and_its_length(kind: str, subtype: str, rate: int, num_channels: int) -> None:
    if subtype == "OPUS" and rate == 44_100:
        rate = 24_000
    data = encoded(np.stack([tone(rate // 2, rate)] * num_channels, 1), rate, kind, subtype)
    waveform = decode_audio(data, name="tone")
    assert (waveform.dtype, len(waveform)) == (np.float32, 8_000)
    assert np.abs(np.fft.rfft(waveform)).argmax() == 220
    assert np.abs(waveform[1_000:-1_000]).max() == pytest.approx(0.5, abs=0.05)
    info = probe_audio(data, "tone")
    assert (info.num_samples, info.sample_rate, info.num_channels) == (rate // 2, rate, num_channels)


@pytest.mark.parametrize(
    ("subtype", "error"), [("PCM_U8", 2**-6), ("PCM_16", 2**-15), ("PCM_24", 2**-23), ("FLOAT", 0)]
)
def test_at_16_khz_the_samples_are_those_of_the_file(subtype: str, error: float) -> None:
    samples = tone(rate=16_000)
    assert np.abs(decode_audio(encoded(samples, 16_000, "WAV", subtype), name="x") - samples).max() <= error


def test_channels_are_averaged() -> None:
    stereo = np.stack([tone(rate=16_000), np.zeros(12_000, np.float32)], 1)
    mono = decode_audio(encoded(stereo, 16_000, "WAV", "FLOAT"), name="x")
    assert np.array_equal(mono, stereo.mean(axis=1))


def test_the_resampling_rule_is_soxr_hq() -> None:
    samples = tone(rate=44_100, num_samples=4_411)
    expected = soxr.resample(samples, 44_100, 16_000, quality="HQ")
    assert RESAMPLE_RULE == "soxr-hq/1"
    assert np.array_equal(decode_audio(encoded(samples, 44_100, "WAV", "FLOAT"), name="x"), expected)


@settings(max_examples=40, deadline=None)
@given(num_samples=st.integers(3, 30_000), rate=st.sampled_from([5_000, 8_000, 11_025, 22_254, 44_100, 48_000]))
def test_the_resampled_length_is_right_to_one_sample(num_samples: int, rate: int) -> None:
    waveform = decode_audio(encoded(tone(num_samples, rate), rate), name="x")
    assert abs(len(waveform) - num_samples * 16_000 / rate) < 1


@settings(max_examples=60, deadline=None)
@given(bounds=st.tuples(st.integers(0, 11_999), st.integers(1, 12_000)).filter(lambda pair: pair[0] < pair[1]),
       form=st.sampled_from(LOSSLESS + LOSSY))  # fmt: skip
def test_a_segment_equals_a_file_of_those_samples(bounds: tuple[int, int], form: tuple[str, str]) -> None:
    # Long enough to contain some of the tone, because a constant is silence.
    start, end = min(bounds[0], 11_900), max(bounds[1], min(bounds[0], 11_900) + 100)
    data = encoded(tone(), 24_000, *form)
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        whole = file.read(dtype="float32")
    cut = decode_audio(encoded(whole[start:end], 24_000, "WAV", "FLOAT"), name="x")
    assert np.array_equal(decode_audio(data, name="x", start_sample=start, end_sample=end), cut)


def test_the_name_does_not_decide_the_format() -> None:
    data = encoded(tone(), 24_000, "FLAC")
    assert probe_audio(data, "really.wav").format == "flac"
    assert np.array_equal(decode_audio(data, name="a.mp3"), decode_audio(data, name="b.txt"))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EmptyAudio),
        (encoded(np.zeros(0, np.float32), 16_000), EmptyAudio),
        (b"A text file that calls itself a wav.\n" * 20, Undecodable),
        ("Ein Text in UTF-16\n".encode("utf-16") * 20, Undecodable),
        (b"\xff\xfb\x90\x00" + bytes(413) + b"noise" * 100, Undecodable),
        (bytes(5_000), Undecodable),
        (b"OggS" + bytes(5_000), Undecodable),
        (b"RIFF", Truncated),
        (b"ID3\x04\x00\x00\x00\x00\x00\x05hello", Truncated),
        (encoded(np.array([0, np.nan, 0], np.float32), 16_000, "WAV", "FLOAT"), NotFinite),
        (encoded(np.array([[np.inf, -np.inf]] * 9, np.float32), 16_000, "WAV", "FLOAT"), NotFinite),
        (encoded(np.zeros(9, np.float32), 40), Undecodable),
        (encoded(np.zeros(1, np.float32), 48_000), EmptyAudio),
    ],
)
def test_what_is_no_sound_gets_its_own_reason(data: bytes, error: type[Rejected]) -> None:
    with pytest.raises(error) as caught:
        decode_audio(data, name="hostile.wav")
    assert str(caught.value).startswith("hostile.wav: ")


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT", "ALAW", "ULAW"])
@pytest.mark.parametrize("constant", [0.0, 0.25, -0.5])
def test_a_constant_is_silence_in_every_wav(subtype: str, constant: float) -> None:
    with pytest.raises(Silent, match="4000 samples"):
        decode_audio(encoded(np.full(4_000, constant), 8_000, "WAV", subtype), name="x")


@pytest.mark.parametrize(("swing", "is_silent"), [(0.0, True), (2**-16 * 0.99, True), (2**-16, False), (2**-15, False)])
@pytest.mark.parametrize("level", [0.0, 0.25])
def test_silence_ends_at_half_a_16_bit_step_at_any_level(swing: float, is_silent: bool, level: float) -> None:
    samples = np.full(600, level)
    samples[300] += swing
    data = encoded(samples, 16_000, "WAV", "FLOAT")
    if is_silent:
        with pytest.raises(Silent):
            decode_audio(data, name="x")
    else:
        assert len(decode_audio(data, name="x")) == 600


@pytest.mark.parametrize(("kind", "subtype"), LOSSLESS + LOSSY)
def test_what_is_too_long_is_not_decoded_to_its_end(kind: str, subtype: str) -> None:
    data = encoded(tone(48_000), 24_000, kind, subtype)
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        whole = file.frames / 24_000
    assert len(decode_audio(data, name="x", max_seconds=whole)) == round(whole * 16_000)
    with pytest.raises(TooLong, match=rf"at 24000 Hz, more than the {whole - 1 / 24_000:g} s"):
        decode_audio(data, name="x", max_seconds=whole - 1 / 24_000)
    part = decode_audio(data, name="x", start_sample=12_000, end_sample=36_000, max_seconds=1)
    assert np.array_equal(part, decode_audio(data, name="x", start_sample=12_000, end_sample=36_000))
    with pytest.raises(TooLong, match="24001 samples"):
        decode_audio(data, name="x", start_sample=12_000, end_sample=36_001, max_seconds=1)


@pytest.mark.parametrize(
    "error",
    [soundfile.LibsndfileError(17), OSError("out of memory when reading image file")],
    ids=["libsndfile", "Pillow"],
)
def test_a_decoder_without_memory_says_nothing_of_the_file(error: Exception) -> None:
    with pytest.raises(MachineFailed, match="run again"):
        media._check_memory(error, "x")


@pytest.mark.parametrize(("kind", "subtype"), [*LOSSLESS, *LOSSY, ("RF64", "PCM_16"), ("WAV", "MS_ADPCM")])
def test_a_cut_file_is_never_taken_for_a_shorter_one(kind: str, subtype: str) -> None:
    data = encoded(tone(), 24_000, kind, subtype)
    expected = Undecodable if kind == "FLAC" else Truncated
    for length in {*range(100, len(data), 97), *range(len(data) - 5, len(data))}:
        with pytest.raises(expected):
            decode_audio(data[:length], name="cut")


@pytest.mark.parametrize(("kind", "subtype"), LOSSY)
def test_a_file_with_a_zeroed_middle_is_refused(kind: str, subtype: str) -> None:
    data = encoded(tone(96_000), 24_000, kind, subtype)
    third = len(data) // 3
    with pytest.raises((Truncated, Undecodable)):
        decode_audio(data[:third] + bytes(third) + data[2 * third :], name="zeroed")


def test_a_flac_whose_header_states_more_samples_is_truncated() -> None:
    data = bytearray(encoded(tone(), 24_000, "FLAC"))
    data[23:26] = bytes([0xFF, 0xFF, 0xFF])
    with pytest.raises((Truncated, Undecodable)):
        decode_audio(bytes(data), name="liar")
    data[21:26] = bytes([data[21] & 0xF0 | 0xF, 0xFF, 0xFF, 0xFF, 0xFF])
    with pytest.raises(Undecodable, match="68719476735 samples in 1 channels"):
        decode_audio(bytes(data), name="liar")


def test_a_streamed_wav_of_unknown_size_is_read_to_its_end() -> None:
    data = encoded(tone(), 24_000)
    at = data.index(b"data") + 4
    streamed = data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :]
    assert np.array_equal(decode_audio(streamed, name="x"), decode_audio(data, name="x"))


def stating(data: bytes, num_bytes: int, riff_bytes: int | None = None) -> bytes:
    """The wav with other lengths in its header: of the samples, and of the file after its first eight bytes."""
    at = data.index(b"data") + 4
    first = data[4:8] if riff_bytes is None else struct.pack("<I", riff_bytes)
    return data[:4] + first + data[8:at] + struct.pack("<I", num_bytes) + data[at + 4 :]


@pytest.mark.parametrize("excess", [1, 2, 36, 44, 5_000, 1_000_000])
def test_a_whole_wav_whose_header_overstates_its_samples_has_the_length_that_is_there(excess: int) -> None:
    data = encoded(tone(), 24_000)
    for wrong in (stating(data, 24_000 + excess), stating(data + b"\0", 24_000 + excess)):
        assert np.array_equal(decode_audio(wrong, name="x"), decode_audio(data, name="x"))
        assert probe_audio(wrong, "x") == probe_audio(data, "x")


@pytest.mark.parametrize("num_lost", [1, 2, 8, 36, 44, 400, 23_000])
def test_a_wav_with_two_wrong_lengths_is_cut(num_lost: int) -> None:
    with pytest.raises(Truncated, match="states 24000 bytes"):
        probe_audio(encoded(tone(), 24_000)[:-num_lost], "cut")


@pytest.mark.parametrize("riff_bytes", [0, 1_000, 99_999_999, 0xFFFFFFFF])
def test_a_wavs_length_of_the_whole_file_may_be_anything_if_its_samples_are_there(riff_bytes: int) -> None:
    data = encoded(tone(), 24_000)
    assert probe_audio(stating(data, 24_000, riff_bytes), "x") == probe_audio(data, "x")


def test_a_wav_that_states_fewer_samples_than_follow_has_those_that_it_states() -> None:
    """As in librosa: the bytes that follow may be tags."""
    data = encoded(tone(), 24_000)
    fewer = stating(data, 20_000)
    assert probe_audio(fewer, "x").num_samples == 10_000
    assert np.array_equal(decode_audio(fewer, name="x"), decode_audio(encoded(tone()[:10_000], 24_000), name="x"))


def test_tags_around_an_mp3_change_nothing() -> None:
    data = encoded(tone(), 24_000, "MP3", "MPEG_LAYER_III")
    before = b"ID3\x03\x00\x00\x00\x00\x01\x00" + bytes(128) + bytes(10)
    tagged = decode_audio(before + data + b"TAG" + bytes(125), name="x")
    assert np.array_equal(tagged, decode_audio(data, name="x"))


@pytest.mark.parametrize("magic", [b"\x00\x00\x00\x18ftypM4A ", b"\x1aE\xdf\xa3\x80\x18S\x80g\x80"])
def test_m4a_and_webm_need_ffmpeg_and_say_so(magic: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DecoderMissing, match="ffmpeg"):
        decode_audio(magic + bytes(24 - len(magic) % 24), name="clip")


def test_a_cut_m4a_is_truncated_with_or_without_ffmpeg() -> None:
    with pytest.raises(Truncated, match="mdat"):
        decode_audio(struct.pack(">I4s4sI", 16, b"ftyp", b"M4A ", 0) + struct.pack(">I4s", 99, b"mdat"), name="clip")


def test_a_segment_outside_the_recording_is_refused() -> None:
    data = encoded(tone(), 24_000)
    with pytest.raises(Truncated, match="12001"):
        decode_audio(data, name="x", start_sample=10, end_sample=12_001)
    with pytest.raises(EmptyAudio):
        decode_audio(data, name="x", start_sample=50, end_sample=50)


def test_no_mutation_of_a_file_escapes_the_error_tree() -> None:
    chance = random.Random(0)
    files = [encoded(tone(3_000), 24_000, *form) for form in [*LOSSLESS, *LOSSY]]
    files += [saved(picture("RGB"), kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM")]
    outcomes = set()
    for _ in range(600):
        data = bytearray(chance.choice(files))
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(min(len(data), 120))] = chance.randrange(256)
        for decode in (decode_audio, decode_image):
            try:
                decode(bytes(data), name="mutant")
            except Rejected as error:
                outcomes.add(error.reason)
    assert {"undecodable", "broken-image", "truncated"} <= outcomes


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_a_lossless_picture_keeps_its_pixels(kind: str) -> None:
    assert np.array_equal(pixels_of(saved(picture(), kind)), np.asarray(picture()))


def test_cmyk_becomes_the_rgb_it_shows() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(pixels_of(saved(red, "TIFF")).astype(int) - [255, 0, 0]).max() <= 2
    assert np.abs(pixels_of(saved(red, "JPEG")).astype(int) - [255, 0, 0]).max() <= 4


def test_sixteen_bits_become_their_high_byte() -> None:
    values = np.linspace(0, 65_535, 32 * 8).reshape(8, 32).astype(np.uint16)
    assert np.array_equal(pixels_of(saved(Image.fromarray(values), "PNG"))[..., 1], values >> 8)
    assert np.array_equal(pixels_of(saved(Image.fromarray(values), "TIFF"))[..., 1], values >> 8)


def test_transparent_pixels_become_white() -> None:
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 128)])
    assert pixels_of(saved(rgba, "PNG"))[0].tolist() == [[10, 20, 30], [255, 255, 255], [127, 127, 127]]
    grey = Image.new("LA", (2, 1))
    grey.putdata([(9, 255), (9, 0)])
    assert pixels_of(saved(grey, "PNG"))[0].tolist() == [[9, 9, 9], [255, 255, 255]]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_a_palette_with_transparency_becomes_white(transparency: int | bytes) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 200, 0])
    palette.putdata([0, 1])
    data = saved(palette, "PNG", transparency=transparency)
    assert pixels_of(data)[0].tolist() == [[200, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("mode", ["RGB", "P", "LA"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, mode: str) -> None:
    # EXIF 2.3, tag 0x0112: at which side of the scene row 0 and column 0 of the stored pixels are.
    turns = {1: (0, False), 2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True)}
    quarter_turns, is_mirrored = turns.get(orientation, (1, False))
    stored = pixels_of(saved(picture(mode), "PNG"))
    expected = np.rot90(stored, quarter_turns)
    if is_mirrored:
        expected = expected[:, ::-1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels_of(saved(picture(mode), "PNG", exif=exif)), expected)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("P", (8, 8), colour) for colour in (0, 1)]
    for frame in frames:
        frame.putpalette([255, 0, 0, 0, 0, 255])
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels_of(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_a_cut_picture_is_broken_unless_nothing_of_it_is_lost(kind: str) -> None:
    data = saved(picture(), kind)
    whole = pixels_of(data)
    num_broken = 0
    for length in range(0, len(data), 61):
        try:
            assert np.array_equal(pixels_of(data[:length]), whole)
        except BrokenImage:
            num_broken += 1
    assert num_broken > 0.9 * len(data) / 61


@pytest.mark.parametrize("data", [b"", b"<svg/>", b"%!PS-Adobe", saved(Image.new("F", (2, 2)), "TIFF"), bytes(99)])
def test_what_is_no_picture_is_broken(data: bytes) -> None:
    with pytest.raises(BrokenImage, match="page: "):
        decode_image(data, name="page")


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    bomb = saved(Image.new("1", (12_000, 7_000)), "PNG")
    assert len(bomb) < 20_000
    with pytest.raises(BrokenImage, match="12000 x 7000"):
        decode_image(bomb, name="bomb")


def test_a_picture_with_broken_exif_is_decoded() -> None:
    data = saved(picture(), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff broken")
    assert pixels_of(data).shape == (24, 40, 3)


@pytest.mark.parametrize("decode", [decode_image, decode_audio])
def test_a_rejection_says_the_same_in_every_run(decode: Callable[..., object]) -> None:
    data = b"RIFF\x10\x00\x00\x00WAVEdata\x04\x00\x00\x00abcd"
    with pytest.raises(Rejected) as found:
        decode(data, name="x")
    assert "0x" not in str(found.value)
