"""Flickr8k's captions, from either of the two files in use, cleaned as the official SpeechCLIP code does."""

import csv
import io
import re
from collections import defaultdict

from speechclip.errors import InvalidInput
from speechclip.storage import read_uri

# captions["1000268201_693b08cb0e.jpg"][0] is the first caption of that picture.
Captions = dict[str, dict[int, str]]

_TOKEN_LINE = re.compile(r"(?P<image>[^\t]+)#(?P<number>[0-9]{1,3})\t(?P<caption>.*)")


def clean_caption(text: str) -> str:
    """The caption without white space around it and without one full stop at its end.

    The official code keeps the space before that full stop. CLIP's tokenizer drops it, so the tokens are equal.
    """
    return text.strip().removesuffix(".").strip()


def read_token_file(uri: str) -> Captions:
    """The captions in the authors' `Flickr8k.token.txt`, whose lines are `<image>.jpg#<number><tab><caption>`."""
    captions: Captions = defaultdict(dict)
    for number, line in numbered_lines(uri):
        found = _TOKEN_LINE.fullmatch(line)
        if found is None:
            raise InvalidInput(
                f"{uri}: line {number} is not `<image>.jpg#<number><tab><caption>`", "download the file again"
            )
        of_image = captions[file_name(found["image"], f"{uri}: line {number}")]
        if int(found["number"]) in of_image:
            raise InvalidInput(
                f"{uri}: line {number} is a second caption {found['image']}#{found['number']}", "delete one of the two"
            )
        of_image[int(found["number"])] = clean_caption(found["caption"])
    return captions


def read_captions_file(uri: str) -> Captions:
    """The captions in Kaggle's `captions.txt`, in lower case.

    The file is CSV with the header `image,caption`; the order of a picture's lines numbers its captions. The official
    code lower-cases this file and not the authors'.
    """
    captions: Captions = defaultdict(dict)
    reader = csv.reader(io.StringIO(read_text(uri), newline=""), strict=True)
    try:
        if [cell.strip().lower() for cell in next(reader, [])] != ["image", "caption"]:
            raise InvalidInput(f"{uri}: the first line is not `image,caption`", "download the file again")
        for cells in reader:
            if len(cells) not in (0, 2):
                raise InvalidInput(
                    f"{uri}: line {reader.line_num} has {len(cells)} cells, expected an image and its caption",
                    "download the file again",
                )
            if cells:
                of_image = captions[file_name(cells[0], f"{uri}: line {reader.line_num}")]
                of_image[len(of_image)] = clean_caption(cells[1]).lower()
    except csv.Error as error:
        raise InvalidInput(f"{uri}: line {reader.line_num} is not CSV ({error})", "download the file again") from None
    return captions


def read_text(uri: str) -> str:
    """The text of a file, which must be UTF-8."""
    try:
        return read_uri(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{uri}: not UTF-8 ({error})", "download the file again") from None


def numbered_lines(uri: str) -> list[tuple[int, str]]:
    """The lines that are not blank, each with its number from 1. Only a newline ends a line."""
    lines = enumerate(read_text(uri).split("\n"), start=1)
    return [(number, line.removesuffix("\r")) for number, line in lines if line.strip()]


def file_name(name: str, where: str) -> str:
    """The name without white space around it; `InvalidInput` if it could lead to another folder."""
    stripped = name.strip()
    if stripped in ("", ".", "..") or "/" in stripped or "\0" in stripped:
        raise InvalidInput(f"{where}: {name!r} is not the name of a file", "fix the line")
    return stripped
