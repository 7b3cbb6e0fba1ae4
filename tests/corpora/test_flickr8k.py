import logging
import os
import struct
from pathlib import Path

import boto3
import pytest
from support.miniatures import FLICKR_SPLITS, UNSPLIT, Flickr8k, picture, put, recording, without

from speechclip.corpora import flickr8k
from speechclip.corpora.flickr8k import read_flickr8k
from speechclip.corpora.folder import walk
from speechclip.corpora.published import PublishedCounts
from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest
from speechclip.media.content import content_key, fetch
from speechclip.media.decode import decode_audio
from speechclip.storage import Storage

FIRST = FLICKR_SPLITS["train"][0]


def by_name(manifest: Manifest) -> dict[str, dict[str, object]]:
    return {row["utterance"]: row for row in manifest.rows()}


@pytest.fixture
def corpus(tmp_path: Path) -> Flickr8k:
    return Flickr8k(tmp_path / "flickr8k").write()


def test_every_spoken_caption_becomes_a_row(corpus: Flickr8k, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[tuple[int, int]] = []
    manifest = read_flickr8k(str(corpus.root), on_progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (24, 24)
    assert "published" not in caplog.text
    names = [f"{name[:-4]}_{k}" for split in FLICKR_SPLITS for name in FLICKR_SPLITS[split] for k in range(5)]
    assert manifest.table["utterance"].to_pylist() == names
    row = manifest.rows()[7]
    stem = FLICKR_SPLITS["train"][1][:-4]
    assert without([row], "speech_key", "image_key", "text_key")[0] == {
        "utterance": f"{stem}_2",
        "split": "train",
        "group": content_key(picture(1)),
        "speaker": "2",
        "language": "en",
        "audio_uri": str(corpus.root / f"flickr_audio/wavs/{stem}_2.wav"),
        "start_sample": None,
        "end_sample": None,
        "num_samples": 1_600,
        "sample_rate": 16_000,
        "audio_error": None,
        "image_uri": str(corpus.root / f"Images/{stem}.jpg"),
        "image_error": None,
        "text": "A Dog number 2 runs over 1001",
    }
    assert [row["split"] for row in manifest.rows()] == ["train"] * 10 + ["dev"] * 5 + ["test"] * 5
    for asset in manifest.assets("speech"):
        decode_audio(fetch(asset), name="x")


LAYOUTS = {
    "as the zips unpack": {"images": "Images/Flicker8k_Dataset", "texts": "Flickr8k_text", "splits": "Flickr8k_text"},
    "as the zips unpack, side by side": {"images": "Flicker8k_Dataset"},
    "as Kaggle's archive of the sound unpacks": {"audio": "flickr_audio/flickr_audio"},
    "lists in a folder of their own": {"texts": "text", "splits": "text/splits"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_says_the_same(layout: str, corpus: Flickr8k, tmp_path: Path) -> None:
    other = Flickr8k(tmp_path / "other", **LAYOUTS[layout]).write()
    paths = ("audio_uri", "image_uri")
    found, expected = read_flickr8k(str(other.root)), read_flickr8k(str(corpus.root))
    assert without(found.rows(), *paths) == without(expected.rows(), *paths)
    assert all(os.path.isfile(str(row[name])) for row in found.rows() for name in paths)


def test_linked_folders_are_followed_and_loops_end(corpus: Flickr8k, tmp_path: Path) -> None:
    """The official layout is one folder of links to the unpacked archives."""
    root = tmp_path / "links"
    root.mkdir()
    for name in ("Images", "flickr_audio", "Flickr8k.token.txt", *(f"Flickr_8k.{x}Images.txt" for x in FLICKR_SPLITS)):
        (root / name).symlink_to(corpus.root / name)
    (corpus.root / "flickr_audio" / "up").symlink_to(root)
    assert len(read_flickr8k(str(root))) == 20
    paths = list(walk(Storage(str(root))))
    assert len(paths) == len({os.path.realpath(root / path) for path in paths}) == 30


def test_the_file_nearest_to_the_top_counts_if_two_have_one_name(corpus: Flickr8k) -> None:
    put(corpus.root / "A/copy" / FIRST, picture(77))
    assert by_name(read_flickr8k(str(corpus.root)))[f"{FIRST[:-4]}_0"]["image_key"] == content_key(picture(0))


def test_the_extra_files_of_macos_archives_are_left_out(corpus: Flickr8k) -> None:
    put(corpus.root / "__MACOSX/Flicker8k_Dataset" / FIRST, b"\0\5\x16\7")
    put(corpus.root / "AAA/._Flickr8k.token.txt", b"\0\5\x16\7")
    put(corpus.root / "__MACOSX/Flickr8k.token.txt", b"\0\5\x16\7")
    (corpus.root / "Images" / FIRST).unlink()
    assert by_name(read_flickr8k(str(corpus.root)))[f"{FIRST[:-4]}_0"]["image_key"] is None


def test_kaggles_captions_are_numbered_by_their_order_and_lower_case(tmp_path: Path) -> None:
    corpus = Flickr8k(tmp_path / "kaggle")
    corpus.write_media()
    corpus.write_captions()
    corpus.write_lists()
    rows = by_name(read_flickr8k(str(corpus.root)))
    assert len(rows) == 20
    assert rows[f"{FIRST[:-4]}_3"]["text"] == 'a dog, number 3, says "hi"'


def test_karpathys_file_splits_if_there_are_no_lists(
    corpus: Flickr8k, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = read_flickr8k(str(corpus.root))
    for path in corpus.root.glob("Flickr_8k.*Images.txt"):
        path.unlink()
    elsewhere = corpus.write_karpathy(tmp_path / "k.json")
    assert read_flickr8k(str(corpus.root), karpathy=str(elsewhere)).digest == expected.digest
    corpus.write_karpathy(corpus.root / "dataset_flickr8k.json")
    caplog.clear()
    assert read_flickr8k(str(corpus.root)).digest == expected.digest
    assert "all pictures are train" not in caplog.text


def test_without_any_split_all_recordings_are_train(corpus: Flickr8k, caplog: pytest.LogCaptureFixture) -> None:
    for path in corpus.root.glob("Flickr_8k.*Images.txt"):
        path.unlink()
    manifest = read_flickr8k(str(corpus.root))
    assert set(manifest.table["split"].to_pylist()) == {"train"}
    assert len(manifest) == 20
    assert "all pictures are train" in caplog.text


def test_one_list_alone_gives_its_split_and_a_warning_about_the_others(
    corpus: Flickr8k, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "dev"):
        (corpus.root / f"Flickr_8k.{split}Images.txt").unlink()
    assert set(read_flickr8k(str(corpus.root)).table["split"].to_pylist()) == {"test"}
    assert "Flickr_8k.trainImages.txt, Flickr_8k.devImages.txt" in caplog.text
    assert "15 recordings are of no picture in a split and left out: 1000268201_693b08cb0e_0.wav" in caplog.text


def test_what_is_left_out_is_named(corpus: Flickr8k, caplog: pytest.LogCaptureFixture) -> None:
    put(corpus.audio / "wavs/9_x_0.wav", recording(90))
    with (corpus.root / "Flickr_8k.testImages.txt").open("a") as file:
        file.write("77_nothing.jpg\n")
    assert len(read_flickr8k(str(corpus.root))) == 20
    assert f"1 pictures with captions are in no split and left out: {UNSPLIT}" in caplog.text
    assert "1 recordings are of no picture in a split and left out: 9_x_0.wav" in caplog.text
    assert "1 pictures of the splits have neither caption nor recording: 77_nothing.jpg" in caplog.text


def test_missing_files_keep_their_rows(corpus: Flickr8k, caplog: pytest.LogCaptureFixture) -> None:
    (corpus.images / FIRST).unlink()
    (corpus.audio / "wavs" / f"{FIRST[:-4]}_1.wav").unlink()
    put(corpus.audio / "wavs" / f"{FIRST[:-4]}_7.wav", recording(91))
    (corpus.audio / "wav2spk.txt").unlink()
    manifest = read_flickr8k(str(corpus.root))
    rows = by_name(manifest)
    assert len(rows) == 21
    assert {rows[f"{FIRST[:-4]}_{k}"]["group"] for k in range(5)} == {FIRST}
    (image,) = manifest.source_problems("image")
    (audio,) = manifest.source_problems("speech")
    assert (image.uri, image.reason, len(image.utterances)) == (str(corpus.images / FIRST), "source-missing", 6)
    assert audio.uri == str(corpus.audio / "wavs" / f"{FIRST[:-4]}_1.wav")
    assert rows[f"{FIRST[:-4]}_1"]["text"] is not None
    assert rows[f"{FIRST[:-4]}_7"]["text"] is rows[f"{FIRST[:-4]}_7"]["speaker"] is None
    assert f"1 recordings have no caption: {FIRST[:-4]}_7" in caplog.text
    assert "wav2spk.txt" in caplog.text


def test_two_names_of_the_same_picture_are_one_group(corpus: Flickr8k) -> None:
    second = FLICKR_SPLITS["train"][1]
    (corpus.images / second).write_bytes((corpus.images / FIRST).read_bytes())
    assert len({row["group"] for row in read_flickr8k(str(corpus.root)).rows()}) == 3


def test_a_recording_whose_header_states_a_wrong_length_has_its_true_one(corpus: Flickr8k) -> None:
    path = corpus.audio / "wavs" / f"{FIRST[:-4]}_0.wav"
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"data") + 4, 9_999)
    path.write_bytes(data)
    manifest = read_flickr8k(str(corpus.root))
    row = by_name(manifest)[path.stem]
    assert (row["num_samples"], row["sample_rate"]) == (1_600, 16_000)
    (asset,) = [asset for asset in manifest.assets("speech") if asset.uri == str(path)]
    assert len(decode_audio(fetch(asset), name="x")) == 1_600


def test_a_corpus_on_s3_is_read_there(corpus: Flickr8k, s3_uri: str) -> None:
    bucket = s3_uri.split("/")[2]
    client = boto3.client("s3")
    (corpus.images / FIRST).unlink()
    for path in corpus.root.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), bucket, f"data/flickr8k/{path.relative_to(corpus.root)}")
    root = f"s3://{bucket}/data/flickr8k"
    manifest, local = read_flickr8k(root), read_flickr8k(str(corpus.root))
    paths = ("audio_uri", "image_uri", "image_error")
    assert without(manifest.rows(), *paths) == without(local.rows(), *paths)
    assert manifest.rows()[0]["image_error"].startswith(f"source-missing: {root}/Images/{FIRST}")
    for asset in manifest.assets("speech"):
        assert (asset.uri or "").startswith(root)
        fetch(asset)


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("Flickr8k.token.txt", "a.jpg#0 A dog\n", "line 1 is not `<image>.jpg#<number><tab><caption>`"),
        ("Flickr8k.token.txt", "a.jpg#0\tA dog\na.jpg\tA cat\n", "line 2 is no"),
        ("Flickr8k.token.txt", "a.jpg#0\tA dog\na.jpg#0\tA cat\n", "line 2 is a second caption a.jpg#0"),
        ("Flickr8k.token.txt", "../../a.jpg#0\tA dog\n", "is not the name of a file"),
        ("Flickr8k.token.txt", b"\xff\xfe\n", "not UTF-8"),
        ("Flickr_8k.trainImages.txt", "sub/a.jpg\n", "'sub/a.jpg' is not the name of a file"),
        (
            "Flickr_8k.trainImages.txt",
            f"{FLICKR_SPLITS['test'][0]}\n",
            "is in train and in test; leave it in one split",
        ),
        ("flickr_audio/wav2spk.txt", "nobody\n", "line 1 is not `<recording>.wav <speaker>`"),
    ],
)
def test_lists_that_can_not_be_understood_are_refused(
    file: str, data: str | bytes, message: str, corpus: Flickr8k
) -> None:
    put(corpus.root / file, data)
    with pytest.raises(InvalidInput, match=message) as caught:
        read_flickr8k(str(corpus.root))
    assert os.path.basename(file) in str(caught.value) or "testImages" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("image|caption\na.jpg|A dog\n", "not `image,caption`"),
        ("", "not `image,caption`"),
        ("image,caption\na.jpg,A dog, a cat\n", "line 2 has 3 cells"),
        ('image,caption\na.jpg,"A dog\n', "is not CSV"),
        ("image,caption\n/etc/passwd,A dog\n", "'/etc/passwd' is not the name of a file"),
    ],
)
def test_a_captions_file_of_another_shape_is_refused(data: str, message: str, corpus: Flickr8k) -> None:
    (corpus.root / "Flickr8k.token.txt").unlink()
    put(corpus.root / "captions.txt", data)
    with pytest.raises(InvalidInput, match=message):
        read_flickr8k(str(corpus.root))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "can't be read as JSON"),
        (b"\xff", "can't be read as JSON"),
        ('{"x": ' + "[" * 100_000, "can't be read as JSON"),
        ('["a"]', "is not Karpathy's"),
        ('{"images": [{"file_name": "a.jpg"}]}', "is not Karpathy's.*filename"),
        ('{"images": [{"filename": "a.jpg", "split": "dev"}]}', "a.jpg is in split 'dev', expected one of train, rest"),
        ('{"images": [{"filename": "a/b.jpg", "split": "val"}]}', "'a/b.jpg' is not the name of a file"),
        ('{"images": [{"filename": "other.jpg", "split": "val"}]}', "no picture of its splits has a caption"),
        ('{"images": []}', "no picture of its splits has a caption"),
    ],
)
def test_a_karpathy_file_of_another_shape_is_refused(
    data: str | bytes, message: str, corpus: Flickr8k, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_flickr8k(str(corpus.root), karpathy=str(put(tmp_path / "k.json", data)))


def test_a_picture_that_is_listed_twice_counts_once_and_is_named(
    corpus: Flickr8k, caplog: pytest.LogCaptureFixture
) -> None:
    with (corpus.root / "Flickr_8k.trainImages.txt").open("a") as file:
        file.write(f"\r\n{FIRST}\r\n")
    assert len(read_flickr8k(str(corpus.root))) == 20
    assert f"1 pictures are listed twice in their split: {FIRST}" in caplog.text


def test_names_may_have_spaces_quotes_and_other_scripts(tmp_path: Path) -> None:
    corpus = Flickr8k(tmp_path / "ein Ordner; 'x' 🐧")
    corpus.names = ["a b.jpg", "Übung 日本.jpg", 'it\'s "5#5".jpg', "%20.jpg"]
    corpus.write_media()
    corpus.write_tokens()
    put(corpus.root / "Flickr_8k.testImages.txt", "\ufeff" + "\n".join(corpus.names))
    manifest = read_flickr8k(str(corpus.root))
    assert [row["utterance"] for row in manifest.rows()][::5] == [f"{name[:-4]}_0" for name in corpus.names]
    assert manifest.source_problems("speech") == manifest.source_problems("image") == []
    assert {row["speaker"] for row in manifest.rows()} == {"1", "2"}


@pytest.mark.parametrize(
    ("lacks", "message"),
    [
        (
            "Flickr8k.token.txt",
            r"no Flickr8k.token.txt or captions.txt in it or below it, only Flickr8k.lemma.token.txt, .*give the",
        ),
        ("flickr_audio/wavs", r"no flickr_audio/wavs/<name>_<number>.wav in it or below"),
        ("Images", r"no Images/<name>.jpg in it or below"),
    ],
)
def test_an_incomplete_folder_is_refused_with_the_missing_part(lacks: str, message: str, corpus: Flickr8k) -> None:
    (corpus.root / lacks).rename(corpus.root.parent / "away")
    with pytest.raises(InvalidInput, match=message):
        read_flickr8k(str(corpus.root))


def test_a_wrong_folder_ends_with_one_sentence(corpus: Flickr8k, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(InvalidInput, match="no such folder, or no file in it; give the folder of the unpacked"):
            read_flickr8k(str(folder))
    with pytest.raises(InvalidInput, match="is a file, expected a folder; unpack it"):
        read_flickr8k(str(corpus.root / "Flickr8k.token.txt"))
    with pytest.raises(InvalidInput, match="not valid Unicode"):
        read_flickr8k(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))


def test_a_copy_that_is_nearly_whole_names_what_it_lacks(
    corpus: Flickr8k, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = PublishedCounts(
        name="Flickr8k",
        num_utterances=20,
        images={"train": 2, "dev": 1, "test": 1},
        utterances={"train": (10, 10), "dev": (5, 5), "test": (5, 5)},
    )
    monkeypatch.setattr(flickr8k, "FLICKR8K", small)
    read_flickr8k(str(corpus.root))
    assert "the published corpus has" not in caplog.text
    (corpus.images / FLICKR_SPLITS["dev"][0]).unlink()
    (corpus.audio / "wavs" / f"{FIRST[:-4]}_1.wav").unlink()
    with caplog.at_level(logging.WARNING):
        read_flickr8k(str(corpus.root))
    assert f"Flickr8k, train: 9 utterances, the published corpus has 10; missing: {FIRST[:-4]}_1.wav" in caplog.text
    lost = f"Flickr8k, dev: 0 pictures, the published corpus has 1; missing: {FLICKR_SPLITS['dev'][0]}"
    assert lost in caplog.text
    assert caplog.text.count("the published corpus has") == 2
