"""A WebDataset: tars whose members `<key>.wav`, `<key>.jpg`, `<key>.txt` and `<key>.json` make up one sample.

Each sample becomes a row. The tars are not unpacked: the manifest names the range of bytes of each recording and
picture. A sample's key is its name up to the first dot, with its folder, as in the WebDataset library.
"""

import fnmatch
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext, group_by_keys

from speechclip.corpora.folder import show_names
from speechclip.corpora.rows import check_columns, read_rows
from speechclip.corpora.sources import OnProgress
from speechclip.corpora.tar import Member, read_members
from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest
from speechclip.media.source import range_address

# What a member holds, by the last part of its ending: `left.wav` is audio.
ENDINGS = {
    "audio": ("wav", "flac", "ogg", "oga", "opus", "mp3", "m4a", "webm"),
    "image": ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm"),
    "text": ("txt", "text", "transcript"),
}
# The fields of a sample's json that are taken without --column. `id`, `start` and `end` are not: they often tell of
# the recording from which the sample was cut.
JSON_FIELDS = ("text", "split", "group", "speaker", "language")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Sample:
    """The members of one sample by ending, in lower case, and the fields of its json."""

    tar: str
    key: str
    members: dict[str, Member]
    fields: dict[str, Any]

    @property
    def where(self) -> str:
        return f"{self.tar}: sample {self.key}"


@dataclass
class _Unused:
    """What ends up in no row, counted for one warning each."""

    members: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)


def read_webdataset(
    tars: Sequence[str],
    *,
    columns: dict[str, str] | None = None,
    splits: Sequence[str] = (),
    tar_in_id: bool = False,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """The manifest of these tars, one row for each sample, in order. Paths and `s3://` addresses may have braces.

        read_webdataset(["clips-{000..009}.tar"], columns={"text": "sentence"}, splits=["dev=clips-009*", "train"])

    `columns` gives for one of our columns an ending of the members or a field of their json. `splits` are for samples
    whose json names none: "NAME" for all, "NAME=PATTERN" for the tars whose file name matches. The id of a row is the
    sample's key, with `tar_in_id` after the name of its tar.

    `InvalidInput`, and no manifest, if a tar is cut or damaged, if two samples have one id, or if a sample has several
    members of one kind and `columns` chooses none.
    """
    columns = columns or {}
    check_columns(columns)
    paths = _expand(tars)
    default, patterns = _parse_splits(splits, paths)
    samples = [sample for path in paths for sample in _read_samples(path, columns)]
    _check_given(samples, columns)
    unused = _Unused()
    rows = list(_rows(samples, columns, patterns, tar_in_id, unused))
    _check_ids(rows, tar_in_id)
    name = paths[0] if len(paths) == 1 else f"{len(paths)} tars"
    if not rows:
        raise InvalidInput(
            f"{name}: no sample has a recording, a picture or a text, only {show_names(sorted(unused.members))}",
            "name the endings that hold them, as --column audio=ENDING",
        )
    _warn_of(unused, name)
    return read_rows(
        ((sample.where, row) for sample, row in rows), name=name, folder="/", split=default, on_progress=on_progress
    )


def _expand(tars: Sequence[str]) -> list[str]:
    """The full addresses; `{000..009}` is expanded by the rule of the WebDataset library."""
    paths = []
    for given in tars:
        try:
            names = [given] if os.path.exists(given) else expand_urls(given)
        except (ValueError, AssertionError) as error:
            raise InvalidInput(f"{given}: can't be expanded ({error})", "write it as tars-{000..009}.tar") from None
        for name in names:
            if "://" in name and not name.startswith("s3://"):
                raise InvalidInput(f"{name}: only local paths and s3:// addresses can be read", "download the tar")
            paths.append(name if "://" in name else os.path.abspath(name))
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise InvalidInput(f"{twice[0]}: is given twice", "name each tar once")
    return paths


def _parse_splits(splits: Sequence[str], paths: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """The split of all tars, and the split of each tar that a pattern matches."""
    default = None
    chosen: dict[str, str] = {}
    for given in splits:
        split, has_pattern, pattern = given.partition("=")
        if not split or (has_pattern and not pattern):
            raise InvalidInput(f"--split {given}: is not NAME or NAME=PATTERN", "write it as --split dev='dev-*'")
        if not has_pattern:
            default = split
            continue
        matching = [path for path in paths if fnmatch.fnmatchcase(path.rpartition("/")[2], pattern)]
        if not matching:
            raise InvalidInput(f"--split {given}: no tar has a name like that", "give a pattern of the file names")
        for path in matching:
            if chosen.setdefault(path, split) != split:
                raise InvalidInput(f"{path}: is in split {chosen[path]} and in {split}", "let one pattern match it")
    return default, chosen


def _read_samples(path: str, columns: dict[str, str]) -> Iterator[_Sample]:
    def is_text(name: str) -> bool:
        ending = (base_plus_ext(name)[1] or "").lower()
        kind = ending.rpartition(".")[2]
        is_media = kind in ENDINGS["audio"] or kind in ENDINGS["image"]
        return kind == "json" or kind in ENDINGS["text"] or (ending in columns.values() and not is_media)

    # The library looks only at the names, so "data" can be our record of a member.
    files = ({"fname": member.name, "data": member, "__url__": path} for member in read_members(path, is_text=is_text))
    try:
        for sample in group_by_keys(files):
            key = sample.pop("__key__")
            del sample["__url__"]
            yield _Sample(path, key, sample, _json_of(sample, f"{path}: sample {key}"))
    except ValueError as error:
        raise InvalidInput(f"{path}: {error.args[0]}", "give each member of a sample an ending of its own") from None


def _json_of(members: dict[str, Member], where: str) -> dict[str, Any]:
    if "json" not in members:
        return {}
    try:
        fields = json.loads(members["json"].data or b"")
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: its json can't be read ({error})", "write the tar again") from None
    if not isinstance(fields, dict):
        raise InvalidInput(f"{where}: its json is not an object", "write the tar again")
    return fields


def _check_given(samples: Iterable[_Sample], columns: dict[str, str]) -> None:
    """`InvalidInput` if --column names what no sample has; a recording or picture must be a member of the tar."""
    endings = {ending for sample in samples for ending in sample.members}
    fields = {name for sample in samples for name in sample.fields}
    for ours, theirs in columns.items():
        there = endings if ours in ("audio", "image") else endings | fields
        if theirs not in there:
            raise InvalidInput(
                f"--column {ours}={theirs}: no sample has that, only {show_names(sorted(there))}", "choose one of these"
            )


def _rows(
    samples: Iterable[_Sample], columns: dict[str, str], splits: dict[str, str], tar_in_id: bool, unused: _Unused
) -> Iterator[tuple[_Sample, dict[str, Any]]]:
    for sample in samples:
        taken = _sources_of(sample, columns)
        row = {ours: _value(sample, ours, theirs) for ours, theirs in taken.items()}
        unused.members.update(sample.members.keys() - taken.values() - {"json"})
        unused.fields.update(sample.fields.keys() - taken.values())
        if any(row.get(kind) for kind in ENDINGS):
            stem = sample.tar.rpartition("/")[2].removesuffix(".tar")
            row.setdefault("id", f"{stem}/{sample.key}" if tar_in_id else sample.key)
            if row.get("split") is None:
                row.pop("split", None)
                row |= {"split": splits[sample.tar]} if sample.tar in splits else {}
            yield sample, row
        else:
            unused.samples.append(sample.key)


def _sources_of(sample: _Sample, columns: dict[str, str]) -> dict[str, str]:
    """For each of our columns that the sample has: the ending of a member, or a field of the json."""
    taken = {
        ours: theirs
        for ours, theirs in columns.items()
        if theirs in sample.members or (theirs in sample.fields and ours not in ("audio", "image"))
    }
    for kind, endings in ENDINGS.items():
        matching = [ending for ending in sample.members if ending.rpartition(".")[2] in endings]
        if kind not in columns and len(matching) > 1:
            raise InvalidInput(
                f"{sample.where}: has several members of the kind {kind}: {', '.join(sorted(matching))}",
                f"choose one by --column {kind}={sorted(matching)[0]}",
            )
        if kind not in columns and matching:
            taken[kind] = matching[0]
    for name in JSON_FIELDS:
        if name not in columns and name not in taken and name in sample.fields:
            taken[name] = name
    return taken


def _value(sample: _Sample, ours: str, theirs: str) -> Any:
    member = sample.members.get(theirs)
    if member is None:
        return sample.fields[theirs]
    if ours in ("audio", "image"):
        return range_address(sample.tar, member.offset, member.size)
    if member.data is None:
        raise InvalidInput(f"{sample.where}: {theirs} is a recording or a picture, not {ours}", "correct --column")
    try:
        text = member.data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{sample.where}: its {theirs} is not UTF-8 ({error})", "write the tar again") from None
    # The line break at the end of a text file is not part of the text.
    return text.removesuffix("\n").removesuffix("\r")


def _check_ids(rows: Iterable[tuple[_Sample, dict[str, Any]]], tar_in_id: bool) -> None:
    seen: dict[Any, str] = {}
    for sample, row in rows:
        if row["id"] in seen:
            is_one_tar = seen[row["id"]] == sample.tar
            raise InvalidInput(
                f"{sample.tar}: the id {row['id']!r} occurs twice, first in {seen[row['id']]}",
                "keep the members of a sample together and give each sample a key of its own"
                if is_one_tar or tar_in_id
                else "begin the ids with the tar's name by --tar-in-id",
            )
        seen[row["id"]] = sample.tar


def _warn_of(unused: _Unused, name: str) -> None:
    if unused.members:
        logger.warning("%s: members with these endings are ignored: %s", name, show_names(sorted(unused.members)))
    if unused.fields:
        logger.warning("%s: these fields of the json are ignored: %s", name, show_names(sorted(unused.fields)))
    if unused.samples:
        logger.warning(
            "%s: %d samples have no recording, picture or text and are left out: %s",
            name, len(unused.samples), show_names(unused.samples),
        )  # fmt: skip
