import pytest
from support.paired_corpus import IMAGE, SPEECH, write_corpus

from speechclip.errors import InvalidInput
from speechclip.store import FeatureStore, Snapshot
from speechclip.store.feature_sets import choose_feature_set, find_feature_set, open_pair


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return FeatureStore(
        write_corpus(str(tmp_path_factory.mktemp("corpus") / "store"), num_images=4).store_uri
    ).snapshot()


def test_a_feature_set_is_found_by_its_modality_or_by_the_start_of_its_name(snapshot: Snapshot) -> None:
    assert choose_feature_set(snapshot, "speech").fingerprint == SPEECH.fingerprint
    assert choose_feature_set(snapshot, "image", "toy-image").fingerprint == IMAGE.fingerprint
    assert choose_feature_set(snapshot, "image", "toy").fingerprint == IMAGE.fingerprint
    with pytest.raises(InvalidInput, match=f"0 speech feature sets fit for 'hubert'.*{SPEECH.fingerprint} .full."):
        choose_feature_set(snapshot, "speech", "hubert")
    with pytest.raises(InvalidInput, match=r"0 text feature sets.* holds none; name one"):
        choose_feature_set(snapshot, "text")


def test_a_name_that_fits_several_sets_is_refused_until_the_modality_is_named(snapshot: Snapshot) -> None:
    with pytest.raises(InvalidInput, match=f"2 feature sets fit 'toy': .*{SPEECH.fingerprint}"):
        find_feature_set(snapshot, "toy")
    assert find_feature_set(snapshot, "toy", "speech").fingerprint == SPEECH.fingerprint
    assert find_feature_set(snapshot, IMAGE.fingerprint).fingerprint == IMAGE.fingerprint
    with pytest.raises(
        InvalidInput, match=f"no feature set fits 'clip'; name one that is stored: .*{SPEECH.fingerprint}"
    ):
        find_feature_set(snapshot, "clip")


def test_frames_and_vectors_are_not_opened_as_each_other(snapshot: Snapshot) -> None:
    with pytest.raises(InvalidInput, match=f"{IMAGE.fingerprint} holds vectors, needed are frames"):
        open_pair(snapshot, IMAGE.fingerprint, IMAGE.fingerprint)
    with pytest.raises(InvalidInput, match=f"{SPEECH.fingerprint} holds frames, needed are vectors"):
        open_pair(snapshot, SPEECH.fingerprint, SPEECH.fingerprint)
