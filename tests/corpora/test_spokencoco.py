import json
import os
from pathlib import Path

import boto3
import pytest
from support.miniatures import SpokenCOCO, picture, put, without

from speechclip.corpora import spokencoco
from speechclip.corpora.published import PublishedCounts
from speechclip.corpora.spokencoco import read_spokencoco
from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest
from speechclip.media.content import content_key, fetch

ADDRESSES = ("audio_uri", "image_uri", "image_error")


@pytest.fixture
def corpus(tmp_path: Path) -> SpokenCOCO:
    return SpokenCOCO(tmp_path / "coco").write()


def splits_of(manifest: Manifest) -> dict[str, str]:
    """The split of each picture by its COCO id."""
    return {row["image_uri"][-10:-4].lstrip("0"): row["split"] for row in manifest.rows()}


def test_every_spoken_caption_becomes_a_row(corpus: SpokenCOCO, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[tuple[int, int]] = []
    manifest = read_spokencoco(str(corpus.root), on_progress=lambda done, total: calls.append((done, total)))
    assert len(manifest) == 12
    assert calls[-1] == (17, 17)
    assert "there is no test split" in caplog.text
    assert "published" not in caplog.text
    assert splits_of(manifest) == {
        "57870": "train",
        "384029": "train",
        "522418": "dev",
        "184613": "dev",
        "391895": "dev",
    }
    assert without(manifest.rows()[3:4], "speech_key", "text_key")[0] == {
        "utterance": "m11-3AQN9REUTFGUZWJWNMPO4O4RBEPYDA_384029_11",
        "split": "train",
        "group": content_key(picture(2)),
        "speaker": "m11",
        "language": "en",
        "audio_uri": str(corpus.inner / "wavs/train/0/m11-3AQN_384029_11.wav"),
        "start_sample": None,
        "end_sample": None,
        "num_samples": 1_600,
        "sample_rate": 16_000,
        "audio_error": None,
        "image_key": content_key(picture(2)),
        "image_uri": str(corpus.images / "train2014/COCO_train2014_000000384029.jpg"),
        "image_error": None,
        "text": "a man number 1 rides 384029 waves",
    }


def karpathy_splits(corpus: SpokenCOCO) -> dict[str, str]:
    ours = {"train": "train", "restval": "train", "val": "dev", "test": "test"}
    return {str(coco_id): ours[split] for coco_id, _, split in corpus.pictures}


@pytest.mark.parametrize("folder", ["", "ksplit"])
def test_the_authors_split_files_come_first(folder: str, corpus: SpokenCOCO) -> None:
    corpus.write_ksplits(folder)
    put(corpus.root / "dataset_coco.json", "{")
    manifest = read_spokencoco(str(corpus.root))
    assert splits_of(manifest) == karpathy_splits(corpus)
    assert manifest.table["split"].unique().to_pylist() == ["train", "dev", "test"]


@pytest.mark.parametrize("place", ["dataset_coco.json", "SpokenCOCO/dataset_coco.json", "elsewhere/k.json"])
def test_karpathys_file_splits_the_plain_files(
    place: str, corpus: SpokenCOCO, caplog: pytest.LogCaptureFixture
) -> None:
    path = corpus.write_karpathy(corpus.root / place)
    manifest = read_spokencoco(str(corpus.root), karpathy=str(path) if "elsewhere" in place else None)
    assert splits_of(manifest) == karpathy_splits(corpus)
    assert caplog.text == ""
    corpus.write_ksplits()
    assert sorted(map(str, read_spokencoco(str(corpus.root)).rows())) == sorted(map(str, manifest.rows()))


@pytest.mark.parametrize(
    ("inner", "images"), [("SpokenCOCO", "mscoco_img"), ("", "mscoco_img"), ("", "."), ("SpokenCOCO", "SpokenCOCO")]
)
def test_every_layout_says_the_same(inner: str, images: str, corpus: SpokenCOCO, tmp_path: Path) -> None:
    other = SpokenCOCO(tmp_path / "other", inner=inner, images=images).write()
    found = read_spokencoco(str(other.root))
    assert without(found.rows(), *ADDRESSES) == without(read_spokencoco(str(corpus.root)).rows(), *ADDRESSES)
    assert all(os.path.isfile(str(row[name])) for row in found.rows() for name in ("audio_uri", "image_uri"))


def test_pictures_are_found_beside_the_folder_or_where_they_are_said_to_be(corpus: SpokenCOCO, tmp_path: Path) -> None:
    expected = read_spokencoco(str(corpus.root)).digest
    assert read_spokencoco(str(corpus.inner)).digest == expected
    corpus.images.rename(tmp_path / "coco2014")
    with pytest.raises(InvalidInput, match=r"no train2014 or val2014 in it or in mscoco_img; give .* by --images"):
        read_spokencoco(str(corpus.root))
    moved = read_spokencoco(str(corpus.root), images=str(tmp_path / "coco2014"))
    assert moved.source_problems("image") == []
    with pytest.raises(InvalidInput, match=f"{tmp_path}: no train2014 or val2014 in it; give"):
        read_spokencoco(str(corpus.root), images=str(tmp_path))


def test_missing_files_keep_their_rows(corpus: SpokenCOCO) -> None:
    first = corpus.entries("train2014")[0]
    (corpus.images / first["image"]).unlink()
    (corpus.inner / first["captions"][0]["wav"]).unlink()
    manifest = read_spokencoco(str(corpus.root))
    assert len(manifest) == 12
    (image,), (audio,) = manifest.source_problems("image"), manifest.source_problems("speech")
    assert (image.reason, len(image.utterances)) == (audio.reason, 2 * len(audio.utterances)) == ("source-missing", 2)
    assert manifest.rows()[0]["group"] == manifest.rows()[1]["group"] == first["image"]


def test_what_karpathys_file_does_not_name_is_left_out_by_name(
    corpus: SpokenCOCO, caplog: pytest.LogCaptureFixture
) -> None:
    path = corpus.write_karpathy(corpus.root / "dataset_coco.json")
    known = json.loads(path.read_text())
    known["images"][0]["cocoid"] = 999
    path.write_text(json.dumps(known))
    assert "57870" not in splits_of(read_spokencoco(str(corpus.root)))
    assert "1 pictures are in no split" in caplog.text
    assert "train2014/COCO_train2014_000000057870.jpg" in caplog.text
    assert "have no spoken caption: 999" in caplog.text


def test_a_split_that_tests_on_train2014_gives_a_warning(corpus: SpokenCOCO, caplog: pytest.LogCaptureFixture) -> None:
    """neuraltalk2 has such a file."""
    path = corpus.write_karpathy(corpus.root / "dataset_coco.json")
    path.write_text(path.read_text().replace('"split": "train"', '"split": "test"', 1))
    read_spokencoco(str(corpus.root))
    assert "puts 1 pictures of train2014 into dev or test, so it is not the split of the published" in caplog.text


def test_missing_split_files_are_named(corpus: SpokenCOCO, caplog: pytest.LogCaptureFixture) -> None:
    corpus.write_ksplits()
    (corpus.inner / "SpokenCOCO_ksplit_val.json").unlink()
    assert set(splits_of(read_spokencoco(str(corpus.root))).values()) == {"train", "test"}
    assert "SpokenCOCO_ksplit_val.json not found: its pictures are left out" in caplog.text


def test_a_copy_that_is_nearly_whole_names_what_it_lacks(
    corpus: SpokenCOCO, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = PublishedCounts(
        name="SpokenCOCO",
        num_utterances=12,
        images={"train": 3, "dev": 1, "test": 1},
        utterances={"train": (6, 8), "dev": (3, 3), "test": (2, 2)},
    )
    monkeypatch.setattr(spokencoco, "SPOKENCOCO", small)
    plain = corpus.root / "SpokenCOCO"
    read_spokencoco(str(plain))
    corpus.write_ksplits()
    read_spokencoco(str(plain))
    assert "the published corpus has" not in caplog.text
    wavs = [caption["wav"] for entry in corpus.entries("train") for caption in entry["captions"]]
    (plain / wavs[0]).unlink()
    read_spokencoco(str(plain))
    name = wavs[0].rpartition("/")[2]
    assert f"SpokenCOCO, in all: 11 utterances, the published corpus has 12; missing: {name}" in caplog.text
    (plain / wavs[1]).unlink()
    for split in ("train", "test"):
        (corpus.images / corpus.entries(split)[0]["image"]).unlink()
    caplog.clear()
    read_spokencoco(str(plain))
    assert "SpokenCOCO, train: 5 utterances, the published corpus has 6 to 8; missing: m00-3AQN" in caplog.text
    assert (
        "SpokenCOCO, test: 0 pictures, the published corpus has 1; missing: COCO_val2014_000000391895.jpg"
        in caplog.text
    )
    caplog.clear()
    for name in ("ksplit_train", "ksplit_val", "ksplit_test", "train"):
        (plain / f"SpokenCOCO_{name}.json").unlink()
    read_spokencoco(str(plain))
    assert "SpokenCOCO, in all: 7 utterances, the published corpus has 12; no file that its lists name" in caplog.text


def test_a_corpus_on_s3_is_read_there(corpus: SpokenCOCO, s3_uri: str) -> None:
    bucket = s3_uri.split("/")[2]
    client = boto3.client("s3")
    corpus.write_ksplits()
    (corpus.images / corpus.entries("test")[0]["image"]).unlink()
    for path in corpus.root.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), bucket, str(path.relative_to(corpus.root)))
    manifest, local = read_spokencoco(f"s3://{bucket}"), read_spokencoco(str(corpus.root))
    assert without(manifest.rows(), *ADDRESSES) == without(local.rows(), *ADDRESSES)
    for asset in manifest.assets("speech") + manifest.assets("image"):
        fetch(asset)
    assert read_spokencoco(f"s3://{bucket}/SpokenCOCO").digest == manifest.digest


def entry(**changes: object) -> str:
    caption = {"text": "a", "speaker": "s", "uttid": "u", "wav": "wavs/u.wav"} | {
        name: value for name, value in changes.items() if name != "image"
    }
    return json.dumps({"data": [{"image": changes.get("image", "val2014/1.jpg"), "captions": [caption]}]})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "can't be read as JSON"),
        (b'{"data": "\xff"}', "can't be read as JSON|must be a list"),
        ("[]", "is not SpokenCOCO's"),
        ('{"data": {"image": []}}', "data must be a list"),
        ('{"data": [{"image": "a.jpg"}]}', "captions"),
        (entry(text=5), "text must be a text, not a whole number"),
        (entry(wav="/etc/passwd"), "'/etc/passwd' leads out of the corpus"),
        (entry(wav="wavs/../../../etc/passwd"), "leads out of the corpus"),
        (entry(wav="s3://other/secret.wav"), "leads out of the corpus"),
        (entry(image="../secret.jpg"), "'../secret.jpg' leads out of the corpus"),
        (entry(image="a\0.jpg"), "leads out of the corpus"),
        ('{"data": []}', "no picture with a spoken caption"),
        (
            json.dumps({"data": json.loads(entry())["data"] * 2}),
            "1 utterance ids occur twice, first 'u' in rows 1 and 2",
        ),
    ],
)
def test_a_file_of_another_shape_is_refused(data: str | bytes, message: str, corpus: SpokenCOCO) -> None:
    (corpus.inner / "SpokenCOCO_train.json").unlink()
    put(corpus.inner / "SpokenCOCO_val.json", data)
    with pytest.raises(InvalidInput, match=message):
        read_spokencoco(str(corpus.root))


def test_a_picture_in_two_splits_is_refused(corpus: SpokenCOCO) -> None:
    corpus.write_ksplits()
    corpus.write_json("SpokenCOCO_ksplit_test.json", "test", "val")
    with pytest.raises(InvalidInput, match=r"COCO_val2014_000000184613.jpg is in dev and in test; leave it in one"):
        read_spokencoco(str(corpus.root))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cocoid": None}, "has no cocoid; give Karpathy's dataset_coco.json"),
        ({"cocoid": "x"}, "cocoid must be"),
        ({"split": "validation"}, "is in split 'validation', expected one of train, restval, val, test"),
        ({"cocoid": 384029, "split": "val"}, "384029 is in dev and in train"),
    ],
)
def test_a_karpathy_file_of_another_shape_is_refused(
    changes: dict[str, object], message: str, corpus: SpokenCOCO
) -> None:
    path = corpus.write_karpathy(corpus.root / "dataset_coco.json")
    known = json.loads(path.read_text())
    known["images"][0] |= changes
    path.write_text(json.dumps(known))
    with pytest.raises(InvalidInput, match=message):
        read_spokencoco(str(corpus.root))


def test_a_picture_without_a_coco_id_can_not_be_split(corpus: SpokenCOCO) -> None:
    corpus.write_karpathy(corpus.root / "dataset_coco.json")
    put(corpus.inner / "SpokenCOCO_val.json", entry(image="val2014/dog.jpg"))
    with pytest.raises(InvalidInput, match=r"'val2014/dog.jpg' has no COCO id"):
        read_spokencoco(str(corpus.root))


def test_a_wrong_folder_says_what_was_looked_for(corpus: SpokenCOCO, tmp_path: Path) -> None:
    for folder in (tmp_path / "none", corpus.images):
        with pytest.raises(InvalidInput, match=r"no SpokenCOCO_train.json, .*in it.*; give the folder in"):
            read_spokencoco(str(folder))
    (corpus.inner / "wavs").rename(tmp_path / "wavs")
    with pytest.raises(InvalidInput, match="no wavs folder in it"):
        read_spokencoco(str(corpus.root))
