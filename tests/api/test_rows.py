"""`iter_features`: every stored utterance with its frames, times and the row of the manifest."""

import msgspec
import numpy as np
import pytest
from support.feature_sets import FRAMES_SPEC
from support.stores import SPEECH, fill, synthetic

from speechclip.api.rows import iter_features
from speechclip.errors import InvalidInput
from speechclip.spec import crops_rule
from speechclip.store import FeatureStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return fill(str(tmp_path_factory.mktemp("rows") / "store"))


def test_every_stored_utterance_comes_once_in_the_manifests_order(store: FeatureStore) -> None:
    frames, rows = store.snapshot().feature_set(SPEECH), synthetic().rows()
    found = list(iter_features(synthetic(), store))
    assert [one.row for one in found] == rows
    for one in found:
        assert np.array_equal(one.frames, frames[one.key])
        assert one.times.shape == (one.frames.shape[1], 2)


def test_a_row_without_stored_frames_is_left_out(store: FeatureStore) -> None:
    key = synthetic().rows()[0]["speech_key"]
    store.drop({SPEECH: {key}})
    try:
        assert key not in {one.key for one in iter_features(synthetic(), store)}
        assert key in {one.key for one in iter_features(synthetic(), store, version=store.snapshot().version - 1)}
    finally:
        fill(store.storage.root)


def test_frame_times_are_those_of_the_convolutions() -> None:
    times = FRAMES_SPEC.frame_times(3)
    assert np.allclose(times, [[0, 0.025], [0.02, 0.045], [0.04, 0.065]])


def test_times_within_crops_count_from_each_crop_and_take_no_window() -> None:
    spec = msgspec.structs.replace(FRAMES_SPEC, rules={"window": crops_rule(2)})
    times = spec.frame_times(2 * spec.frames_per_crop)
    assert times[spec.frames_per_crop, 0] == 0


def test_layers_and_window_choose_what_is_read(store: FeatureStore) -> None:
    whole = next(iter_features(synthetic(), store))
    cut = next(iter_features(synthetic(), store, layers=[2], window=(0.2, None)))
    assert np.array_equal(cut.frames, whole.frames[[2], 10:])
    assert np.array_equal(cut.times, whole.times[10:])


def test_a_feature_set_that_is_not_there_is_one_sentence(store: FeatureStore) -> None:
    with pytest.raises(InvalidInput, match="fit"):
        next(iter_features(synthetic(), store, speech="hubert:facebook/hubert-base-ls960"))
