"""Flickr8k with the Flickr 8k Audio Caption Corpus: its five captions of each picture, read aloud by five people.

    Images/<name>.jpg                        or Images/Flicker8k_Dataset/<name>.jpg, as the zip unpacks
    flickr_audio/wavs/<name>_<number>.wav    with flickr_audio/wav2spk.txt: who speaks
    Flickr8k.token.txt                       or Kaggle's captions.txt
    Flickr_8k.{train,dev,test}Images.txt     or Karpathy's dataset_flickr8k.json

Files are found by name, wherever they are below the folder. As in the official code, only the pictures in the lists of
splits count. The captions name 8,092 pictures. 8,000 of them are in a list and were read aloud, and one of the others
(2258277193_586949ec62.jpg.1) is no picture at all.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from speechclip.corpora.captions import Captions, numbered_lines, read_captions_file, read_token_file
from speechclip.corpora.folder import CorpusFolder, show_names
from speechclip.corpora.published import FLICKR8K
from speechclip.corpora.sources import OnProgress
from speechclip.corpora.splits import read_karpathy_names, read_split_lists
from speechclip.corpora.utterances import Utterance, read_manifest
from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest

TOKEN_FILE, CAPTIONS_FILE, SPEAKERS_FILE = "Flickr8k.token.txt", "captions.txt", "wav2spk.txt"
SPLIT_LISTS = {split: f"Flickr_8k.{split}Images.txt" for split in ("train", "dev", "test")}
KARPATHY_FILE = "dataset_flickr8k.json"
_RECORDING = re.compile(r"(?P<stem>.+)_(?P<number>[0-9]{1,3})\.wav")

logger = logging.getLogger(__name__)


def read_flickr8k(folder: str, *, karpathy: str | None = None, on_progress: OnProgress | None = None) -> Manifest:
    """One row for each spoken caption of each picture in a split, in the order of the split's list.

    `folder` is a path or `s3://` address that holds everything. `karpathy` is a `dataset_flickr8k.json` to split by. A
    missing file keeps its row, with the reason. Warnings name what is in no row, and how the copy differs from the
    published corpus.
    """
    files = CorpusFolder(folder)
    captions = _read_captions(files, folder)
    recordings = _find_recordings(files, folder)
    splits = _read_splits(files, karpathy)
    chosen = {name: "train" for name in captions if _stem(name) in recordings} if splits is None else splits
    utterances = list(_utterances(files, captions, recordings, chosen))
    if not utterances:
        raise InvalidInput(
            f"{folder}: no picture of its splits has a caption or a recording", "give the lists of this corpus"
        )
    _warn_of_the_rest(captions, recordings, chosen)
    if without_text := [str(one.id) for one in utterances if not one.text]:
        logger.warning("%d recordings have no caption: %s", len(without_text), show_names(without_text))
    manifest = read_manifest(utterances, on_progress)
    for sentence in FLICKR8K.differences(manifest, is_split=splits is not None):
        logger.warning("%s", sentence)
    return manifest


def _read_captions(files: CorpusFolder, folder: str) -> Captions:
    if uri := files.find(TOKEN_FILE):
        return read_token_file(uri)
    if uri := files.find(CAPTIONS_FILE):
        return read_captions_file(uri)
    raise _not_here(files, folder, f"{TOKEN_FILE} or {CAPTIONS_FILE}")


def _find_recordings(files: CorpusFolder, folder: str) -> dict[str, dict[int, str]]:
    """The names of the recordings, by their picture's name without `.jpg` and by number."""
    recordings: dict[str, dict[int, str]] = defaultdict(dict)
    for name in files.names(".wav"):
        if found := _RECORDING.fullmatch(name):
            recordings[found["stem"]][int(found["number"])] = name
    if not recordings:
        raise _not_here(files, folder, "flickr_audio/wavs/<name>_<number>.wav")
    if not files.names(".jpg"):
        raise _not_here(files, folder, "Images/<name>.jpg")
    return recordings


def _not_here(files: CorpusFolder, folder: str, what: str) -> InvalidInput:
    return InvalidInput(
        f"{folder}: no {what} in it or below it, only {files.describe()}",
        "give the folder that holds the pictures, flickr_audio and the captions of Flickr8k",
    )


def _read_splits(files: CorpusFolder, karpathy: str | None) -> dict[str, str] | None:
    """The split of each picture, or None if no file gives it."""
    if karpathy is not None:
        return read_karpathy_names(karpathy)
    lists = {split: uri for split, name in SPLIT_LISTS.items() if (uri := files.find(name))}
    if lists:
        if without := [name for split, name in SPLIT_LISTS.items() if split not in lists]:
            logger.warning("%s not found: its pictures are left out", show_names(without))
        return read_split_lists(lists)
    if uri := files.find(KARPATHY_FILE):
        return read_karpathy_names(uri)
    logger.warning(
        "neither %s nor %s was found: all pictures are train; for a test split download one of them or give --karpathy",
        SPLIT_LISTS["train"].replace("train", "{train,dev,test}"), KARPATHY_FILE,
    )  # fmt: skip
    return None


def _utterances(
    files: CorpusFolder, captions: Captions, recordings: dict[str, dict[int, str]], splits: dict[str, str]
) -> Iterator[Utterance]:
    """One for each number of a picture that has a caption, a recording or both."""
    images_folder = files.main_folder(files.names(".jpg"))
    audio_folder = files.main_folder(name for numbered in recordings.values() for name in numbered.values())
    speakers = _read_speakers(files)
    for image, split in splits.items():
        stem = _stem(image)
        texts: Mapping[int, str] = captions.get(image, {})
        for number in sorted(texts.keys() | recordings.get(stem, {}).keys()):
            name = recordings.get(stem, {}).get(number, f"{stem}_{number}.wav")
            yield Utterance(
                id=name.removesuffix(".wav"),
                split=split,
                audio=files.find(name) or f"{audio_folder}/{name}",
                image=files.find(image) or f"{images_folder}/{image}",
                text=texts.get(number),
                picture_name=image,
                speaker=speakers.get(name),
                language="en",
            )


def _warn_of_the_rest(captions: Captions, recordings: dict[str, dict[int, str]], splits: dict[str, str]) -> None:
    """Warn of the pictures and recordings that get no row, by name."""
    if rest := [name for name in captions if name not in splits]:
        logger.warning("%d pictures with captions are in no split and left out: %s", len(rest), show_names(rest))
    stems = {_stem(name) for name in splits}
    if stray := [name for stem in recordings if stem not in stems for name in recordings[stem].values()]:
        logger.warning("%d recordings are of no picture in a split and left out: %s", len(stray), show_names(stray))
    if empty := [name for name in splits if not captions.get(name) and _stem(name) not in recordings]:
        logger.warning(
            "%d pictures of the splits have neither caption nor recording: %s", len(empty), show_names(empty)
        )


def _read_speakers(files: CorpusFolder) -> dict[str, str]:
    uri = files.find(SPEAKERS_FILE)
    if uri is None:
        logger.warning("%s not found: the rows name no speaker", SPEAKERS_FILE)
        return {}
    speakers = {}
    for number, line in numbered_lines(uri):
        parts = line.rsplit(maxsplit=1)
        if len(parts) != 2:
            raise InvalidInput(f"{uri}: line {number} is not `<recording>.wav <speaker>`", "download the file again")
        speakers[parts[0].strip()] = parts[1]
    return speakers


def _stem(image: str) -> str:
    return image.removesuffix(".jpg")
