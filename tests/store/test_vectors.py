import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zarr
from support.feature_sets import VECTORS_SPEC

from speechclip.errors import Damaged, NotStored
from speechclip.records import Asset, Receipt, Task
from speechclip.store import FeatureStore, Vectors
from speechclip.store.checksums import digest_of
from speechclip.store.layout import matrix_path
from speechclip.store.matrices import ARRAYS, chunk_path, create_matrix
from speechclip.store.vectors import find_chunk, write_chunk

MATRIX = "p-6x4"
PATH = matrix_path(VECTORS_SPEC.fingerprint, MATRIX)
KEYS = [f"{n:064x}" for n in range(6)]


def tasks() -> list[Task]:
    assets = [Asset(key=key, modality="image") for key in KEYS]
    return [
        Task(
            id=f"t{n}",
            feature_set=VECTORS_SPEC.fingerprint,
            assets=tuple(assets[first : first + 4]),
            matrix=MATRIX,
            first_row=first,
        )
        for n, first in enumerate((0, 4))
    ]


def vectors_of(keys: list[str]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {key: generator.standard_normal(16).astype("<f2") for key in keys}


def write(store_uri: str, features: dict[str, np.ndarray]) -> FeatureStore:
    store = FeatureStore(store_uri)
    store.create()
    store.add_spec(VECTORS_SPEC, "toy")
    create_matrix(store.storage, VECTORS_SPEC, MATRIX)
    for task in tasks():
        path, stored, num_bytes = write_chunk(store.storage, VECTORS_SPEC, task, features)
        receipt = Receipt(
            task=task.id, feature_set=task.feature_set, shard=path, stored=stored, rejected=(), num_bytes=num_bytes,
            seconds=1.0, num_encoded=len(stored),
        )  # fmt: skip
        store.commit([receipt], "m")
    return store


def open_vectors(store: FeatureStore) -> Vectors:
    vectors = store.snapshot().feature_set(VECTORS_SPEC.fingerprint)
    assert isinstance(vectors, Vectors)
    return vectors


def test_what_is_read_is_what_was_written_in_any_order(store_uri: str) -> None:
    features = vectors_of(KEYS)
    vectors = open_vectors(write(store_uri, features))
    wanted = [KEYS[5], KEYS[0], KEYS[3], KEYS[0]]
    np.testing.assert_array_equal(vectors.read(wanted), np.stack([features[key] for key in wanted]))
    np.testing.assert_array_equal(vectors[KEYS[2]], features[KEYS[2]])


def test_a_rejected_asset_leaves_its_row_empty(store_uri: str) -> None:
    features = vectors_of(KEYS)
    del features[KEYS[1]]
    vectors = open_vectors(write(store_uri, features))
    assert len(vectors) == 5
    with pytest.raises(NotStored):
        vectors[KEYS[1]]


def test_plain_zarr_opens_the_matrix(tmp_path: Path) -> None:
    features = vectors_of(KEYS)
    store = write(str(tmp_path / "store"), features)
    group = zarr.open(store.storage.address(PATH), mode="r")
    assert group["vectors"].shape == (6, 16)
    np.testing.assert_array_equal(group["vectors"][:], np.stack([features[key] for key in KEYS]))
    assert [key.decode() for key in group["keys"][:].view("S88")[:, 0]] == KEYS


def test_a_chunk_is_to_the_byte_what_zarr_writes(tmp_path: Path) -> None:
    features = vectors_of(KEYS)
    store = write(str(tmp_path / "store"), features)
    create_matrix(store.storage, VECTORS_SPEC, "by-zarr-6x4")
    group = zarr.open(f"{store.storage.root}/{PATH.replace(MATRIX, 'by-zarr-6x4')}", mode="r+")
    group["vectors"][:] = np.stack([features[key] for key in KEYS])
    group["keys"][:] = np.array([list(key.encode().ljust(88, b"\0")) for key in KEYS], np.uint8)
    ours = {path.partition(".zarr/")[2]: store.storage.read(path) for path in store.storage.list(PATH)}
    assert sum("/c/" in name for name in ours) == 4
    for name, data in ours.items():
        assert store.storage.read(f"{PATH.replace(MATRIX, 'by-zarr-6x4')}/{name}") == data


def test_a_chunk_that_is_there_is_reused_and_not_overwritten(store_uri: str) -> None:
    features = vectors_of(KEYS)
    store = write(store_uri, features)
    other = {key: vector + 1 for key, vector in features.items()}
    _, stored, num_bytes = write_chunk(store.storage, VECTORS_SPEC, tasks()[0], other)
    assert num_bytes == 0
    assert stored == find_chunk(store.storage, VECTORS_SPEC, tasks()[0], PATH)
    np.testing.assert_array_equal(open_vectors(store)[KEYS[0]], features[KEYS[0]])


def test_an_unwritten_chunk_holds_nothing(store_uri: str) -> None:
    store = FeatureStore(store_uri)
    store.create()
    create_matrix(store.storage, VECTORS_SPEC, MATRIX)
    assert find_chunk(store.storage, VECTORS_SPEC, tasks()[0], PATH) == ()


@pytest.mark.parametrize("repair_crc", [False, True])
def test_a_flipped_byte_is_found(tmp_path: Path, repair_crc: bool) -> None:
    """By Zarr's own checksum, or by the catalog's if somebody rewrote the whole chunk."""
    store = write(str(tmp_path / "store"), vectors_of(KEYS))
    folder = store.storage.address(PATH)
    if repair_crc:
        group = zarr.open(folder, mode="r+")
        group["vectors"][0, 0] += 1
    else:
        chunk = Path(folder) / "vectors/c/0/0"
        data = bytearray(chunk.read_bytes())
        data[3] ^= 1
        chunk.write_bytes(data)
    with pytest.raises(Damaged):
        open_vectors(store)[KEYS[0]]


@pytest.mark.parametrize("damage", ["a flipped byte", "a feature that it lacks"])
def test_a_chunk_that_cannot_be_reused_stays_and_ours_takes_the_next_generation(tmp_path: Path, damage: str) -> None:
    features = vectors_of(KEYS)
    store = FeatureStore(str(tmp_path / "store"))
    store.create()
    create_matrix(store.storage, VECTORS_SPEC, MATRIX)
    task = tasks()[0]
    partial = {key: vector for key, vector in features.items() if key != KEYS[1]}
    write_chunk(store.storage, VECTORS_SPEC, task, features if damage == "a flipped byte" else partial)
    chunk = Path(store.storage.address(PATH)) / "vectors/c/0/0"
    if damage == "a flipped byte":
        data = bytearray(chunk.read_bytes())
        data[3] ^= 1
        chunk.write_bytes(data)
    before = chunk.read_bytes()
    path, stored, _ = write_chunk(store.storage, VECTORS_SPEC, task, features)
    assert path.endswith(f"{MATRIX}-g1.zarr")
    assert [entry.key for entry in stored] == KEYS[:4]
    assert chunk.read_bytes() == before


@pytest.mark.parametrize("half", ["vectors", "keys"])
def test_one_file_of_a_chunk_is_not_completed_by_a_file_of_other_rows(tmp_path: Path, half: str) -> None:
    """A killed `drop --erase` left one file with [b, c]. Our other file beside it would give b's vector to a."""
    features, spec, task = vectors_of(KEYS), VECTORS_SPEC, tasks()[0]
    store = FeatureStore(str(tmp_path / "store"))
    store.create()
    storage, left = store.storage, f"{MATRIX}-g1"
    for matrix, there in ((MATRIX, task.assets), (left, task.assets[1:3])):
        create_matrix(storage, spec, matrix)
        write_chunk(storage, spec, msgspec.structs.replace(task, matrix=matrix, assets=there), features)
    for name in ARRAYS:
        aged = Path(storage.address(chunk_path(PATH, name, 0)))
        os.utime(aged, (0, 0))
    other = next(name for name in ARRAYS if name != half)
    storage.delete([chunk_path(matrix_path(spec.fingerprint, left), other, 0)])
    for wanted in ([KEYS[0], KEYS[1]], KEYS[:4], [KEYS[0], KEYS[1]]):
        path, stored, _ = write_chunk(storage, spec, task, {key: features[key] for key in wanted})
        assert {entry.key: entry.checksum for entry in stored}.items() >= {
            key: digest_of(features[key]) for key in wanted
        }.items()
        assert path not in (PATH, matrix_path(spec.fingerprint, left))
    assert not storage.exists(chunk_path(matrix_path(spec.fingerprint, left), other, 0))
