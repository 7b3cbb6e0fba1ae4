"""Flickr8k with the Flickr 8k Audio Caption Corpus: five people read each picture's five captions aloud.

    Images/<name>.jpg                        or Images/Flicker8k_Dataset/<name>.jpg, as the zip unpacks
    flickr_audio/wavs/<name>_<number>.wav    with flickr_audio/wav2spk.txt: who speaks
    Flickr8k.token.txt                       or Kaggle's captions.txt
    Flickr_8k.{train,dev,test}Images.txt     or Karpathy's dataset_flickr8k.json

Files are found by their names, wherever below the folder they lie. The official code goes by the lists of splits, and
so do we: of the 8,092 names in the captions 8,000 are in a list and were read aloud, and one of the others
(2258277193_586949ec62.jpg.1) never had a picture.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from speechclip.corpora.captions import Captions, numbered_lines, read_captions_file, read_token_file
from speechclip.corpora.listing import Listing, show_names
from speechclip.corpora.published import FLICKR8K
from speechclip.corpora.sources import OnProgress, Source, image_columns, read_sources, speech_columns, text_columns
from speechclip.corpora.splits import read_karpathy_names, read_split_lists
from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest

TOKEN_FILE, CAPTIONS_FILE, SPEAKERS_FILE = "Flickr8k.token.txt", "captions.txt", "wav2spk.txt"
SPLIT_LISTS = {split: f"Flickr_8k.{split}Images.txt" for split in ("train", "dev", "test")}
KARPATHY_FILE = "dataset_flickr8k.json"
_RECORDING = re.compile(r"(?P<stem>.+)_(?P<number>[0-9]{1,3})\.wav")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Utterance:
    """One caption of one picture as it was read aloud, and where the two files are or should be."""

    name: str
    split: str
    image: str
    image_uri: str
    audio_uri: str
    text: str | None


def read_flickr8k(folder: str, *, karpathy: str | None = None, progress: OnProgress | None = None) -> Manifest:
    """One row for each spoken caption of each picture in a split, in the order of the split's list.

    `folder`: a path or `s3://` address that holds it all. `karpathy`: a `dataset_flickr8k.json` to split by. A missing
    file stands in its row as such; what is left out, and by what a copy differs from the published corpus, is logged
    by name.
    """
    files = Listing(folder)
    captions = _read_captions(files, folder)
    recordings = _find_recordings(files, folder)
    splits = _read_splits(files, karpathy)
    chosen = {name: "train" for name in captions if _stem(name) in recordings} if splits is None else splits
    utterances = list(_utterances(files, captions, recordings, chosen))
    if not utterances:
        raise InvalidInput(
            f"{folder}: no picture of its splits has caption or recording; give the lists of this corpus"
        )
    _warn_of_the_rest(captions, recordings, chosen)
    if wordless := [one.name for one in utterances if not one.text]:
        logger.warning("%d recordings have no caption: %s", len(wordless), show_names(wordless))
    audio, images = read_sources(
        audio=(one.audio_uri for one in utterances), images=(one.image_uri for one in utterances), progress=progress
    )
    speakers = _read_speakers(files)
    manifest = Manifest.from_rows(
        _row(one, audio[one.audio_uri], images[one.image_uri], speakers) for one in utterances
    )
    for sentence in FLICKR8K.differences(manifest, is_split=splits is not None):
        logger.warning("%s", sentence)
    return manifest


def _read_captions(files: Listing, folder: str) -> Captions:
    if uri := files.find(TOKEN_FILE):
        return read_token_file(uri)
    if uri := files.find(CAPTIONS_FILE):
        return read_captions_file(uri)
    raise _not_here(files, folder, f"{TOKEN_FILE} or {CAPTIONS_FILE}")


def _find_recordings(files: Listing, folder: str) -> dict[str, dict[int, str]]:
    """The names of the recordings by the stem of their picture's name, and by number."""
    recordings: dict[str, dict[int, str]] = defaultdict(dict)
    for name in files.names(".wav"):
        if found := _RECORDING.fullmatch(name):
            recordings[found["stem"]][int(found["number"])] = name
    if not recordings:
        raise _not_here(files, folder, "flickr_audio/wavs/<name>_<number>.wav")
    if not files.names(".jpg"):
        raise _not_here(files, folder, "Images/<name>.jpg")
    return recordings


def _not_here(files: Listing, folder: str, what: str) -> InvalidInput:
    return InvalidInput(
        f"{folder}: no {what} in it or below, there is {files.describe()}; give the folder that holds the pictures, "
        "flickr_audio and the captions of Flickr8k"
    )


def _read_splits(files: Listing, karpathy: str | None) -> dict[str, str] | None:
    """The split of each picture, None where nothing says so."""
    if karpathy is not None:
        return read_karpathy_names(karpathy)
    lists = {split: uri for split, name in SPLIT_LISTS.items() if (uri := files.find(name))}
    if lists:
        if without := [name for split, name in SPLIT_LISTS.items() if split not in lists]:
            logger.warning("there is no %s: its pictures are left out", show_names(without))
        return read_split_lists(lists)
    if uri := files.find(KARPATHY_FILE):
        return read_karpathy_names(uri)
    logger.warning(
        "neither %s nor %s is there: all pictures are train; fetch one, or name Karpathy's file, for a test split",
        SPLIT_LISTS["train"].replace("train", "{train,dev,test}"), KARPATHY_FILE,
    )  # fmt: skip
    return None


def _utterances(
    files: Listing, captions: Captions, recordings: dict[str, dict[int, str]], splits: dict[str, str]
) -> Iterator[_Utterance]:
    """What the splits' pictures have of captions and recordings, whether or not both are there."""
    images_folder = files.main_folder(files.names(".jpg"))
    audio_folder = files.main_folder(name for numbered in recordings.values() for name in numbered.values())
    for image, split in splits.items():
        stem = _stem(image)
        texts = captions.get(image, {})
        for number in sorted(texts.keys() | recordings.get(stem, {}).keys()):
            name = recordings.get(stem, {}).get(number, f"{stem}_{number}.wav")
            yield _Utterance(
                name=name.removesuffix(".wav"),
                split=split,
                image=image,
                image_uri=files.find(image) or f"{images_folder}/{image}",
                audio_uri=files.find(name) or f"{audio_folder}/{name}",
                text=texts.get(number),
            )


def _warn_of_the_rest(captions: Captions, recordings: dict[str, dict[int, str]], splits: dict[str, str]) -> None:
    """Name what is in no row."""
    if rest := [name for name in captions if name not in splits]:
        logger.warning("%d pictures with captions are in no split and left out: %s", len(rest), show_names(rest))
    stems = {_stem(name) for name in splits}
    if silent := [name for stem in recordings if stem not in stems for name in recordings[stem].values()]:
        logger.warning("%d recordings are of no picture in a split and left out: %s", len(silent), show_names(silent))
    if empty := [name for name in splits if not captions.get(name) and _stem(name) not in recordings]:
        logger.warning(
            "%d pictures of the splits have neither caption nor recording: %s", len(empty), show_names(empty)
        )


def _read_speakers(files: Listing) -> dict[str, str]:
    uri = files.find(SPEAKERS_FILE)
    if uri is None:
        logger.warning("there is no %s: the rows name no speaker", SPEAKERS_FILE)
        return {}
    speakers = {}
    for number, line in numbered_lines(uri):
        parts = line.rsplit(maxsplit=1)
        if len(parts) != 2:
            raise InvalidInput(f"{uri}: line {number} is no `<recording>.wav <speaker>`; fetch the file again")
        speakers[parts[0].strip()] = parts[1]
    return speakers


def _row(one: _Utterance, sound: Source, picture: Source, speakers: dict[str, str]) -> dict[str, Any]:
    columns = speech_columns(sound) | image_columns(picture) | text_columns(one.text)
    return columns | {
        "utterance": one.name,
        "split": one.split,
        # Two names of the same bytes are one answer.
        "group": picture.key or one.image,
        "speaker": speakers.get(f"{one.name}.wav"),
        "language": "en",
    }


def _stem(image: str) -> str:
    return image.removesuffix(".jpg")
