import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.feature_sets import FRAMES_SPEC

from speechclip.errors import Damaged
from speechclip.records import Receipt
from speechclip.spec import CodecName, EncoderSpec
from speechclip.store import FeatureStore, Frames
from speechclip.store.codec import CODECS, Codec, Member, Members, codec_of, stored_bytes
from speechclip.store.layout import sums_path
from speechclip.store.shard_layout import member_places, members_at, notes_offset, sums_length
from speechclip.store.shards import describe_shard, entries_in, is_as_packed, pack_shard, write_shard

NAMES: list[CodecName] = ["fp16", "fp32"]


class ScaledCodec(Codec):
    """Small integers and, in a second member, one scale for every eight frames of a layer."""

    def members(self, width: int) -> tuple[Member, ...]:
        return Member("hidden", np.dtype("i1"), width), Member("scale", np.dtype("<f4"), 1, frames_per_row=8)

    def encode(self, frames: np.ndarray) -> Members:
        num_layers, num_frames, _ = frames.shape
        starts = range(0, num_frames, 8)
        scale = np.zeros((num_layers, len(starts), 1), "<f4")
        for row, start in enumerate(starts):
            scale[:, row, 0] = np.abs(frames[:, start : start + 8]).max(axis=(1, 2)) / 127
        scale = np.maximum(scale, np.float32(1e-20))
        return {"hidden": np.round(frames / np.repeat(scale, 8, axis=1)[:, :num_frames]).astype("i1"), "scale": scale}

    def decode(self, members: Members, start: int, stop: int) -> np.ndarray:
        first = start // 8 * 8
        scales = np.repeat(members["scale"], 8, axis=1)[:, start - first : stop - first]
        return (members["hidden"] * scales).astype(self.dtype)

    def bound(self, block: np.ndarray) -> float:
        return float(np.abs(block).max(initial=0.0)) / 127


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> EncoderSpec:
    """A spec whose codec has two members."""
    monkeypatch.setitem(CODECS, "fp32", ScaledCodec("fp32", "<f4"))
    fields = {name: getattr(FRAMES_SPEC, name) for name in FRAMES_SPEC.__struct_fields__}
    return EncoderSpec(**fields | {"codec": "fp32"})


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_no_number_is_further_off_than_the_codec_states(name: CodecName, data: st.DataObject) -> None:
    codec = CODECS[name]
    largest = float(np.finfo(codec.dtype).max)
    numbers = st.floats(-largest, largest, width=64)
    block = data.draw(arrays(np.float64, (2, 3, 4), elements=numbers))
    again = codec.decode(codec.encode(block), 0, 3).astype(np.float64)
    assert np.abs(again - block).max() <= codec.bound(block)


@pytest.mark.parametrize("name", NAMES)
def test_the_stated_bound_is_reached_and_not_loose(name: CodecName) -> None:
    codec = CODECS[name]
    block = np.full((1, 1, 1), 1 + float(np.finfo(codec.dtype).eps) / 2)
    error = abs(float(codec.decode(codec.encode(block), 0, 1)[0, 0, 0]) - float(block[0, 0, 0]))
    assert codec.bound(block) == pytest.approx(error, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_a_number_that_is_not_finite_is_refused_by_name(name: CodecName) -> None:
    codec = CODECS[name]
    feature = np.full((2, 3), np.finfo(codec.dtype).max, codec.dtype)
    assert codec.refuses(feature) is None
    assert codec.refuses(-feature[:, :0]) is None
    for bad, said in ((np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")):
        feature[1, 2] = bad
        assert codec.refuses(feature) == said


@pytest.mark.parametrize("name", NAMES)
def test_only_rows_of_the_fill_value_are_absent(name: CodecName) -> None:
    codec = CODECS[name]
    rows = np.full((3, 4), codec.fill, codec.dtype)
    rows[1], rows[2, 0] = 0, 1
    assert codec.is_absent(rows).tolist() == [True, False, False]


def test_every_codec_is_in_the_table_under_its_own_name() -> None:
    assert {name: codec.name for name, codec in CODECS.items()} == {"fp16": "fp16", "fp32": "fp32"}


def test_a_codec_of_two_members_is_stored_and_read_like_any_other(store_uri: str, scaled: EncoderSpec) -> None:
    store, features = FeatureStore(store_uri), frames_of(scaled)
    frames = commit(store, scaled, features)
    codec = codec_of(scaled)
    for key, array in features:
        again = frames[key]
        assert (again.dtype, again.shape) == (np.float32, array.shape)
        assert np.abs(again - array).max() <= codec.bound(array)
        window = frames.window(key, layers=[scaled.layers[2], scaled.layers[0]], start=3, stop=array.shape[1] - 1)
        np.testing.assert_array_equal(window, again[[2, 0], 3 : array.shape[1] - 1])


def test_the_places_of_two_members_are_those_in_the_tar(scaled: EncoderSpec) -> None:
    features = frames_of(scaled)
    tar = pack_shard(scaled, features, {})
    assert is_as_packed(tar, scaled)
    sums, stored = describe_shard(tar, scaled)
    assert [entry.key for entry in stored] == [key for key, _ in features]
    assert len(sums) == sum(sums_length(scaled, entry.num_frames) for entry in stored) + 8
    for entry, place, (key, array) in zip(entries_in(tar, scaled), stored, features, strict=True):
        members = members_at(tar, scaled, place.offset, place.num_frames)
        assert members is not None
        for name, expected in codec_of(scaled).encode(array).items():
            np.testing.assert_array_equal(members[name], expected)
            np.testing.assert_array_equal(entry.members[name], expected)
        header = notes_offset(scaled, place.offset, place.num_frames)
        assert tar[header:].startswith(f"{key}.json".encode())


def test_a_flipped_byte_of_the_second_member_is_found(store_uri: str, scaled: EncoderSpec) -> None:
    store, features = FeatureStore(store_uri), frames_of(scaled)
    frames = commit(store, scaled, features)
    key = features[0][0]
    location = frames.locate(key)
    scale = member_places(scaled, location.num_frames)[1]
    data = bytearray(store.storage.read(location.shard))
    data[location.offset + scale.offset] ^= 1
    store.storage.replace(location.shard, bytes(data))
    again = store.snapshot().feature_set(scaled.fingerprint)
    for read in (lambda: again[key], lambda: again.window(key, layers=[scaled.layers[0]], stop=1)):
        with pytest.raises(Damaged, match="does not match"):
            read()
    assert store.storage.read(sums_path(location.shard)) != b""


def test_stored_bytes_count_all_members(scaled: EncoderSpec) -> None:
    num_frames = scaled.num_frames(16_000)
    scales = -(-num_frames // 8) * 4
    assert stored_bytes(scaled, 1.0) == len(scaled.layers) * (num_frames * scaled.width + scales)


def frames_of(spec: EncoderSpec) -> list[tuple[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    shape = len(spec.layers), spec.width
    return [
        (f"{number:064x}", generator.standard_normal((shape[0], count, shape[1])).astype(np.float32))
        for number, count in enumerate((100, 9))
    ]


def commit(store: FeatureStore, spec: EncoderSpec, features: list[tuple[str, np.ndarray]]) -> Frames:
    store.create()
    store.add_spec(spec, "toy")
    tar = pack_shard(spec, features, {})
    path, stored = write_shard(store.storage, spec, "task-0", tar, [key for key, _ in features])
    receipt = Receipt(
        task="task-0", feature_set=spec.fingerprint, shard=path, stored=stored, rejected=(), num_bytes=len(tar),
        seconds=1.0, num_encoded=len(features),
    )  # fmt: skip
    store.commit([receipt], "m")
    frames = store.snapshot().feature_set(spec.fingerprint)
    assert isinstance(frames, Frames)
    return frames
