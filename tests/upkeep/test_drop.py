from pathlib import Path

import pytest
from support.stores import IMAGE, SPEECH, TEXT, fill, synthetic

from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest
from speechclip.store import Snapshot
from speechclip.upkeep.drop import keys_to_drop


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return fill(str(tmp_path_factory.mktemp("store") / "s")).snapshot()


def test_a_feature_set_is_found_by_any_of_its_names(snapshot: Snapshot) -> None:
    keys = snapshot.stored_keys(SPEECH)
    assert len(keys) == 18
    assert keys_to_drop(snapshot, [SPEECH]) == keys_to_drop(snapshot, ["toy-untrained-speech"]) == {SPEECH: keys}
    assert keys_to_drop(snapshot, ["toy"], modality="speech") == {SPEECH: keys}


def test_a_manifest_restricts_the_keys_to_its_assets(snapshot: Snapshot) -> None:
    three = Manifest(synthetic().table.slice(0, 3))
    keys = {asset.key for asset in three.assets("speech")}
    assert {name: len(found) for name, found in keys_to_drop(snapshot, [], three).items()} == {
        SPEECH: 3,
        IMAGE: 1,
        TEXT: 1,
    }
    assert (
        keys_to_drop(snapshot, [SPEECH], three)
        == keys_to_drop(snapshot, [], three, modality="speech")
        == {SPEECH: keys}
    )


def test_a_speaker_restricts_the_keys_to_that_speech(snapshot: Snapshot) -> None:
    speaker = synthetic().rows()[0]["speaker"]
    said = {row["speech_key"] for row in synthetic().rows() if row["speaker"] == speaker}
    assert 0 < len(said) < 18
    assert keys_to_drop(snapshot, [], synthetic(), speaker) == {SPEECH: said}


@pytest.mark.parametrize(
    ("names", "speaker", "says"),
    [
        (["toy"], None, r"3 feature sets fit 'toy': .*add --modality"),
        (["clip"], None, "no feature set fits 'clip'"),
        ([], "nobody", "the manifest has no speaker 'nobody'"),
    ],
)
def test_a_name_that_fits_nothing_or_several_sets_is_refused(
    snapshot: Snapshot, names: list[str], speaker: str | None, says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        keys_to_drop(snapshot, names, synthetic(), speaker)


def test_the_manifest_of_another_corpus_drops_nothing(tmp_path: Path, snapshot: Snapshot) -> None:
    empty = Manifest(synthetic().table.slice(0, 0))
    assert keys_to_drop(snapshot, [], empty) == {SPEECH: set(), IMAGE: set(), TEXT: set()}
