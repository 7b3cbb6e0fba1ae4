"""The split of each picture, from the authors' lists or from Karpathy's JSON, which most of the literature uses."""

import logging
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from speechclip.corpora.captions import file_name, numbered_lines
from speechclip.corpora.folder import show_names
from speechclip.errors import InvalidInput
from speechclip.records import explain
from speechclip.storage import read_uri

# Karpathy's split to ours. "restval" is the part of COCO's val2014 that is used for training.
KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "dev", "test": "test"}

_Kind = TypeVar("_Kind")

logger = logging.getLogger(__name__)


class KarpathyImage(msgspec.Struct):
    """The fields that we read of one picture in `dataset_flickr8k.json` or `dataset_coco.json`."""

    filename: str
    split: str
    cocoid: int | None = None


class _Karpathy(msgspec.Struct):
    images: list[KarpathyImage]


def read_split_lists(lists: dict[str, str]) -> dict[str, str]:
    """The split of each picture by file name; `lists` maps a split to the address of its list of file names."""
    return one_split_each(
        (file_name(line, f"{uri}: line {number}"), split, uri)
        for split, uri in lists.items()
        for number, line in numbered_lines(uri)
    )


def read_karpathy(uri: str) -> list[KarpathyImage]:
    """The pictures in Karpathy's JSON, with our names of the splits: train (with restval), dev and test."""
    images = read_json(uri, _Karpathy, 'Karpathy\'s {"images": [{"filename": ..., "split": ...}, ...]}').images
    for image in images:
        if image.split not in KARPATHY_SPLITS:
            raise InvalidInput(
                f"{uri}: {image.filename} is in split {image.split!r}, expected one of {', '.join(KARPATHY_SPLITS)}",
                "give Karpathy's own file",
            )
        image.split = KARPATHY_SPLITS[image.split]
    return images


def read_karpathy_names(uri: str) -> dict[str, str]:
    """The split of each picture by file name, from Karpathy's JSON."""
    return one_split_each((file_name(image.filename, uri), image.split, uri) for image in read_karpathy(uri))


def read_karpathy_ids(uri: str) -> dict[int, str]:
    """The split of each picture by COCO id, from Karpathy's JSON.

    Warns if the file puts pictures of train2014 into dev or test: then it isn't the split of the published results.
    neuraltalk2 has such a file.
    """
    images = read_karpathy(uri)
    strange = [image.filename for image in images if image.split != "train" and "train2014" in image.filename]
    if strange:
        logger.warning(
            "%s: puts %d pictures of train2014 into dev or test, so it is not the split of the published results: %s",
            uri, len(strange), show_names(strange),
        )  # fmt: skip
    if without := [image.filename for image in images if image.cocoid is None]:
        raise InvalidInput(f"{uri}: {without[0]} has no cocoid", "give Karpathy's dataset_coco.json")
    splits = one_split_each((str(image.cocoid), image.split, uri) for image in images)
    return {int(number): split for number, split in splits.items()}


def read_json(uri: str, kind: type[_Kind], shape: str) -> _Kind:
    """The JSON at an address as a record of `kind`; `InvalidInput` says that it must be a `shape`."""
    try:
        return msgspec.json.decode(read_uri(uri), type=kind)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{uri}: is not {shape}: {explain(error)}", "give the published file") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{uri}: can't be read as JSON ({error})", "download the file again") from None


def one_split_each(entries: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """The split of each name, from (name, split, address of the list).

    A name in two splits is `InvalidInput`: training would see an answer of the test.
    """
    found: dict[str, str] = {}
    twice: list[str] = []
    for name, split, uri in entries:
        if found.get(name, split) != split:
            raise InvalidInput(f"{uri}: {name} is in {found[name]} and in {split}", "leave it in one split")
        if name in found:
            twice.append(name)
        found[name] = split
    if twice:
        logger.warning("%d pictures are listed twice in their split: %s", len(twice), show_names(twice))
    return found
