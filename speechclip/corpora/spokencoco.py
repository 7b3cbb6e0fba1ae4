"""SpokenCOCO: the captions of COCO's pictures, read aloud.

    SpokenCOCO/SpokenCOCO_{train,val}.json           {"data": [{"image", "captions": [{text, speaker, uttid, wav}]}]}
    SpokenCOCO/SpokenCOCO_ksplit_{train,val,test}.json   optional: the same, in Karpathy's splits, by the authors
    SpokenCOCO/wavs/{train,val}/...wav
    mscoco_img/{train2014,val2014}/COCO_...jpg
    dataset_coco.json                                optional: Karpathy's, to split by if there are no ksplit files

Give this folder or its SpokenCOCO. The authors number the pictures by `reassign_id` to tell which captions share one.
We need no such number: pictures with equal bytes are one group.
"""

import logging
import re
from collections.abc import Iterable, Iterator

import msgspec

from speechclip.corpora.captions import clean_caption
from speechclip.corpora.folder import folder_storage, show_names
from speechclip.corpora.published import SPOKENCOCO
from speechclip.corpora.sources import OnProgress
from speechclip.corpora.splits import one_split_each, read_json, read_karpathy_ids
from speechclip.corpora.utterances import Utterance, read_manifest
from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest
from speechclip.storage import Storage

PLAIN_FILES = {"train": "SpokenCOCO_train.json", "dev": "SpokenCOCO_val.json"}
KSPLIT_FILES = {split: f"SpokenCOCO_ksplit_{name}.json" for split, name in
                (("train", "train"), ("dev", "val"), ("test", "test"))}  # fmt: skip
KARPATHY_FILE = "dataset_coco.json"
SHAPE = 'SpokenCOCO\'s {"data": [{"image": ..., "captions": [{"text", "speaker", "uttid", "wav"}, ...]}, ...]}'
_JSON_FOLDERS = ("", "SpokenCOCO", "ksplit", "SpokenCOCO/ksplit")
_IMAGE_FOLDERS = ("mscoco_img", "SpokenCOCO/mscoco_img", "", "SpokenCOCO")
_COCO_ID = re.compile(r"([0-9]+)\.jpg")

logger = logging.getLogger(__name__)


class _Caption(msgspec.Struct):
    text: str
    uttid: str
    wav: str
    speaker: str | None = None


class _Image(msgspec.Struct):
    image: str
    captions: list[_Caption]


class _Corpus(msgspec.Struct):
    data: list[_Image]


def read_spokencoco(
    folder: str, *, images: str | None = None, karpathy: str | None = None, on_progress: OnProgress | None = None
) -> Manifest:
    """One row for each spoken caption, in the files' order. The published val is our dev.

    `folder` is a path or `s3://` address. `images` is the folder of train2014 and val2014, if it is elsewhere.

    The splits come from `karpathy` (a `dataset_coco.json`), else from the authors' ksplit files, else from a
    `dataset_coco.json` in the folder, else from the plain train and val files, which have no test split. A missing
    file keeps its row, with the reason. Warnings name what is in no row, and how the copy differs from the published
    corpus.
    """
    storage = folder_storage(folder)
    places, is_split = _read_images(storage, folder, karpathy)
    one_split_each((image.image, split, uri) for image, split, uri in places)
    utterances = list(_utterances(places, _audio_root(storage, folder), _image_root(storage, folder, images)))
    if not utterances:
        raise InvalidInput(
            f"{folder}: no picture with a spoken caption is in a split", "give files that belong together"
        )
    manifest = read_manifest(utterances, on_progress)
    for sentence in SPOKENCOCO.differences(manifest, is_split=is_split):
        logger.warning("%s", sentence)
    return manifest


def _read_images(storage: Storage, folder: str, karpathy: str | None) -> tuple[list[tuple[_Image, str, str]], bool]:
    """Each picture with its split and the file that gives the split; and whether the splits are Karpathy's."""
    plain, ksplit = (_find_files(storage, files) for files in (PLAIN_FILES, KSPLIT_FILES))
    if not plain and not ksplit:
        raise InvalidInput(
            f"{folder}: no {PLAIN_FILES['train']}, {PLAIN_FILES['dev']} or {KSPLIT_FILES['train']} in it, in its "
            "SpokenCOCO or ksplit",
            "give the folder in which SpokenCOCO.tar.gz was unpacked",
        )
    if ksplit and karpathy is None:
        return list(_read_files(ksplit, KSPLIT_FILES)), True
    karpathy = karpathy or _find(storage, ("", "SpokenCOCO", "mscoco_img"), KARPATHY_FILE)
    everything = _read_files(plain or ksplit, PLAIN_FILES if plain else KSPLIT_FILES)
    if karpathy is None:
        logger.warning(
            "neither %s nor %s was found: the plain train and val files are train and dev, and there is no test split",
            KSPLIT_FILES["test"], KARPATHY_FILE,
        )  # fmt: skip
        return list(everything), False
    return list(_split_by(karpathy, everything)), True


def _find(storage: Storage, folders: Iterable[str], name: str) -> str | None:
    paths = (f"{inner}/{name}" if inner else name for inner in folders)
    return next((storage.address(path) for path in paths if storage.exists(path)), None)


def _find_files(storage: Storage, files: dict[str, str]) -> dict[str, str]:
    return {split: uri for split, name in files.items() if (uri := _find(storage, _JSON_FOLDERS, name))}


def _read_files(found: dict[str, str], files: dict[str, str]) -> Iterator[tuple[_Image, str, str]]:
    if without := [name for split, name in files.items() if split not in found]:
        logger.warning("%s not found: its pictures are left out", show_names(without))
    for split, uri in found.items():
        for image in read_json(uri, _Corpus, SHAPE).data:
            for path in (image.image, *(caption.wav for caption in image.captions)):
                _check_path(path, uri)
            yield image, split, uri


def _check_path(path: str, uri: str) -> None:
    """`InvalidInput` if a path leads out of the corpus: it could bring any file of this machine into the store."""
    if path.startswith("/") or "://" in path or "\0" in path or ".." in path.split("/"):
        raise InvalidInput(
            f"{uri}: {path!r} leads out of the corpus", "give paths within its folder, or use `ingest table`"
        )


def _split_by(karpathy: str, images: Iterable[tuple[_Image, str, str]]) -> Iterator[tuple[_Image, str, str]]:
    splits = read_karpathy_ids(karpathy)
    rest, seen = [], set()
    for image, _, uri in images:
        found = _COCO_ID.search(image.image)
        if found is None:
            raise InvalidInput(
                f"{uri}: {image.image!r} has no COCO id, as in COCO_val2014_000000391895.jpg", "give the published file"
            )
        number = int(found[1])
        if number in splits:
            seen.add(number)
            yield image, splits[number], karpathy
        else:
            rest.append(image.image)
    if rest:
        logger.warning("%d pictures are in no split of %s and left out: %s", len(rest), karpathy, show_names(rest))
    if unspoken := [str(number) for number in splits if number not in seen]:
        logger.warning("%d pictures of %s have no spoken caption: %s", len(unspoken), karpathy, show_names(unspoken))


def _audio_root(storage: Storage, folder: str) -> str:
    for inner in ("SpokenCOCO/wavs", "wavs"):
        if storage.exists(inner):
            return storage.address(inner).removesuffix("/wavs")
    raise InvalidInput(f"{folder}: no wavs folder in it or in its SpokenCOCO", "unpack SpokenCOCO.tar.gz there")


def _image_root(storage: Storage, folder: str, images: str | None) -> str:
    """The folder of train2014 and val2014."""
    roots = [storage.address(inner) for inner in _IMAGE_FOLDERS]
    parent = storage.root.rpartition("/")[0]
    if parent != "s3:/":
        roots.append(f"{parent}/mscoco_img")
    for root in roots if images is None else [folder_storage(images).root]:
        if any(Storage(root).exists(part) for part in ("train2014", "val2014")):
            return root
    raise InvalidInput(
        f"{images or folder}: no train2014 or val2014 in it{'' if images else ' or in mscoco_img'}",
        "give the folder of COCO's pictures by --images",
    )


def _utterances(places: Iterable[tuple[_Image, str, str]], audio_root: str, image_root: str) -> Iterator[Utterance]:
    for image, split, _ in places:
        image_uri = f"{image_root}/{image.image}"
        for caption in image.captions:
            yield Utterance(
                id=caption.uttid,
                split=split,
                audio=f"{audio_root}/{caption.wav}",
                image=image_uri,
                text=clean_caption(caption.text).lower(),
                picture_name=image.image,
                speaker=caption.speaker,
                language="en",
            )
