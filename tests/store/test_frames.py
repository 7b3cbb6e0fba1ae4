import pickle
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from support.feature_sets import FRAMES_SPEC

from speechclip.errors import Damaged, InvalidInput, NotStored
from speechclip.records import Receipt
from speechclip.store import FeatureStore, Frames
from speechclip.store.layout import sums_path
from speechclip.store.shards import pack_shard, write_shard


def write(store_uri: str, features: list[tuple[str, np.ndarray]]) -> tuple[FeatureStore, str]:
    """A store that holds these features in one committed shard."""
    store = FeatureStore(store_uri)
    store.create()
    store.add_spec(FRAMES_SPEC, "toy")
    tar = pack_shard(FRAMES_SPEC, features, {})
    path, stored = write_shard(store.storage, FRAMES_SPEC, "task-0", tar, [key for key, _ in features])
    receipt = Receipt(
        task="task-0", feature_set=FRAMES_SPEC.fingerprint, shard=path, stored=stored, rejected=(), num_bytes=len(tar),
        seconds=1.0, num_encoded=len(features),
    )  # fmt: skip
    store.commit([receipt], "manifest")
    return store, path


def open_frames(store: FeatureStore) -> Frames:
    frames = store.snapshot().feature_set(FRAMES_SPEC.fingerprint)
    assert isinstance(frames, Frames)
    return frames


def test_what_is_read_is_what_was_written(store_uri: str, features: list[tuple[str, np.ndarray]]) -> None:
    store, _ = write(store_uri, features)
    frames = open_frames(store)
    assert list(frames) == [key for key, _ in features]
    for key, array in features:
        np.testing.assert_array_equal(frames[key], array)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(frames))[key], array)
        assert frames.num_frames(key) == array.shape[1]


def test_a_window_equals_the_slice_of_the_whole(store_uri: str, features: list[tuple[str, np.ndarray]]) -> None:
    store, _ = write(store_uri, features)
    key, array = features[-1]
    window = open_frames(store).window(key, layers=[9, 2], start=10, stop=200)
    np.testing.assert_array_equal(window, array[[9, 2], 10:200])


def test_a_local_read_is_a_view_of_the_mapped_file(tmp_path: Path, features: list[tuple[str, np.ndarray]]) -> None:
    store, _ = write(str(tmp_path / "store"), features)
    array = open_frames(store)[features[0][0]]
    assert not array.flags.owndata
    assert not array.flags.writeable


# The stock reader leaves its file for the garbage collector to close.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_stock_webdataset_streams_the_shard(tmp_path: Path, features: list[tuple[str, np.ndarray]]) -> None:
    store, path = write(str(tmp_path / "store"), features)
    samples = list(webdataset.WebDataset(store.storage.address(path), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [key for key, _ in features]
    for sample, (key, array) in zip(samples, features, strict=True):
        np.testing.assert_array_equal(sample["hidden.npy"], array)
        assert sample["json"]["key"] == key


@pytest.mark.parametrize("where", ["first layer", "last layer", "checksums"])
def test_a_flipped_byte_is_found_by_whole_reads_and_by_window_reads(
    tmp_path: Path, features: list[tuple[str, np.ndarray]], where: str
) -> None:
    store, path = write(str(tmp_path / "store"), features)
    key, array = features[-1]
    place = open_frames(store).locate(key)
    layer = 12 if where == "last layer" else 0
    victim, offset = path, place.offset + layer * array[0].nbytes + 5
    if where == "checksums":
        victim, offset = sums_path(path), place.sums_offset
    flip(Path(store.storage.address(victim)), offset)
    with pytest.raises(Damaged):
        open_frames(store)[key]
    with pytest.raises(Damaged):
        open_frames(store).window(key, layers=[layer], start=0, stop=1)
    np.testing.assert_array_equal(open_frames(store)[features[0][0]], features[0][1])


def test_a_window_beside_the_damage_is_still_read(tmp_path: Path, features: list[tuple[str, np.ndarray]]) -> None:
    store, path = write(str(tmp_path / "store"), features)
    key, array = features[-1]
    flip(Path(store.storage.address(path)), open_frames(store).locate(key).offset + 5)
    window = open_frames(store).window(key, layers=[12], start=0, stop=260)
    np.testing.assert_array_equal(window, array[[12]])


def test_a_truncated_or_missing_shard_is_found(tmp_path: Path, features: list[tuple[str, np.ndarray]]) -> None:
    store, path = write(str(tmp_path / "store"), features)
    file = Path(store.storage.address(path))
    file.write_bytes(file.read_bytes()[:-700_000])
    with pytest.raises(Damaged, match="expected"):
        open_frames(store)[features[-1][0]]
    file.unlink()
    with pytest.raises(Damaged, match="gone"):
        open_frames(store)[features[0][0]]


def test_an_unknown_key_and_a_window_out_of_range_are_named(
    tmp_path: Path, features: list[tuple[str, np.ndarray]]
) -> None:
    frames = open_frames(write(str(tmp_path / "store"), features)[0])
    with pytest.raises(NotStored, match="ffff"):
        frames["ffff"]
    with pytest.raises(InvalidInput, match="42 are stored"):
        frames.window(features[1][0], start=40, stop=43)
    with pytest.raises(InvalidInput, match="not 13"):
        frames.window(features[1][0], layers=[13])


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_window_equals_its_slice(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    num_frames = data.draw(st.integers(1, 300))
    array = np.random.default_rng(num_frames).standard_normal((13, num_frames, 768)).astype("<f2")
    store, _ = write(str(tmp_path_factory.mktemp("store")), [("a" * 64, array)])
    start = data.draw(st.integers(0, num_frames))
    stop = data.draw(st.integers(start, num_frames))
    layers = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=4))
    np.testing.assert_array_equal(
        open_frames(store).window("a" * 64, layers=layers, start=start, stop=stop), array[layers, start:stop]
    )


def flip(file: Path, offset: int) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(data)
