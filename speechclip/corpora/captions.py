"""Flickr8k's captions in the two files that go round, cleaned as SpeechCLIP does."""

import csv
import io
import re
from collections import defaultdict

from speechclip.errors import InvalidInput
from speechclip.storage import read_uri

# By picture, then by number.
Captions = dict[str, dict[int, str]]

_TOKEN_LINE = re.compile(r"(?P<image>[^\t]+)#(?P<number>[0-9]{1,3})\t(?P<caption>.*)")


def clean_caption(text: str) -> str:
    """Without white space around it and without one full stop at its end.

    The official code leaves the space before that full stop; CLIP's tokenizer drops it, so the tokens are the same.
    """
    return text.strip().removesuffix(".").strip()


def read_token_file(uri: str) -> Captions:
    """The authors' `Flickr8k.token.txt`: `<image>.jpg#<number><tab><caption>`."""
    captions: Captions = defaultdict(dict)
    for number, line in numbered_lines(uri):
        found = _TOKEN_LINE.fullmatch(line)
        if found is None:
            raise InvalidInput(f"{uri}: line {number} is no `<image>.jpg#<number><tab><caption>`; fetch the file again")
        of_image = captions[file_name(found["image"], f"{uri}: line {number}")]
        if int(found["number"]) in of_image:
            raise InvalidInput(
                f"{uri}: line {number} gives {found['image']}#{found['number']} a second caption; drop one"
            )
        of_image[int(found["number"])] = clean_caption(found["caption"])
    return captions


def read_captions_file(uri: str) -> Captions:
    """Kaggle's `captions.txt`: CSV with the header `image,caption`; the order of a picture's lines numbers them.

    In lower case, as the official code reads this file alone.
    """
    captions: Captions = defaultdict(dict)
    reader = csv.reader(io.StringIO(read_text(uri), newline=""), strict=True)
    try:
        if [cell.strip().lower() for cell in next(reader, [])] != ["image", "caption"]:
            raise InvalidInput(f"{uri}: the first line is not `image,caption`; fetch the file again")
        for cells in reader:
            if len(cells) not in (0, 2):
                raise InvalidInput(
                    f"{uri}: line {reader.line_num} has {len(cells)} cells, not an image and its caption"
                )
            if cells:
                of_image = captions[file_name(cells[0], f"{uri}: line {reader.line_num}")]
                of_image[len(of_image)] = clean_caption(cells[1]).lower()
    except csv.Error as error:
        raise InvalidInput(f"{uri}: line {reader.line_num} is no CSV ({error}); fetch the file again") from None
    return captions


def read_text(uri: str) -> str:
    """The file's text, which must be UTF-8."""
    try:
        return read_uri(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{uri}: not UTF-8 ({error}); fetch the file again") from None


def numbered_lines(uri: str) -> list[tuple[int, str]]:
    """The lines that are not blank, by number from 1; no letter but a newline ends one."""
    lines = enumerate(read_text(uri).split("\n"), start=1)
    return [(number, line.removesuffix("\r")) for number, line in lines if line.strip()]


def file_name(name: str, where: str) -> str:
    """The name, if it is one and leads nowhere else."""
    stripped = name.strip()
    if stripped in ("", ".", "..") or "/" in stripped or "\0" in stripped:
        raise InvalidInput(f"{where}: {name!r} is not the name of a file; mend the line")
    return stripped
