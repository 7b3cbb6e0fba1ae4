"""Tux Paint's stamps: pictures, texts and human voices in 14 languages (Debian's tuxpaint-stamps-default, GPL-2).

    <category>/.../<stamp>.png            the picture (stamps that have only an svg are left out)
    <category>/.../<stamp>.txt            line 1 English, then `xx.utf8=...`
    <category>/.../<stamp>_desc_xx.ogg    the spoken description; without `_xx`, English
    <category>/.../<stamp>.ogg            a sound effect: no caption

One reader speaks nearly all of a language, so language and voice are confounded and `speaker` stays empty.
"""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from speechclip.corpora.sources import OnProgress, Source, image_columns, read_sources, speech_columns, text_columns
from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest

DEFAULT_SPLIT = "concept"
SPLIT_SEED = "tuxpaint/1"
# One file of the package ends in `_da.ogg.ogg`; 15 Brazilian ones are wav.
_DESCRIPTION = re.compile(r"(?P<stamp>.+)_desc(?:_(?P<language>[a-z]{2,3}(?:_[A-Z]{2})?))?(?:\.ogg)?\.(?:ogg|wav)")
_TRANSLATION = re.compile(r"(?P<language>[A-Za-z_@]+)\.utf8=(?P<text>.*)")


@dataclass
class Stamp:
    """A picture, its captions and its recordings, both by language."""

    name: str
    picture: str
    texts: dict[str, str] = field(default_factory=dict)
    recordings: dict[str, str] = field(default_factory=dict)

    @property
    def category(self) -> str:
        """The top folder: animals, clothes, food, ... symbols."""
        return self.name.partition("/")[0]


class Spoken(NamedTuple):
    """One stamp described in one language."""

    utterance: str
    stamp: Stamp
    language: str
    group: str

    @property
    def uri(self) -> str:
        """The recording."""
        return self.stamp.recordings[self.language]

    def split(self, rule: str) -> str:
        """The side on which the rule "concept" or "voice:xx" puts it."""
        if rule == "concept":
            share = _share("concept", self.group)
            return "train" if share < 0.8 else "dev" if share < 0.9 else "test"
        if self.language == rule.partition(":")[2]:
            return "test"
        return "dev" if _share("voice", self.utterance) < 0.05 else "train"


def read_stamps(
    folder: str | Path,
    *,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    split: str = DEFAULT_SPLIT,
    include_symbols: bool = False,
    progress: OnProgress | None = None,
) -> Manifest:
    """One row a spoken description, sorted by id, such as `animals/birds/crow-fr`; `folder` may be any parent.

    `languages`: only these (all that speak, by default). `limit`: about so many utterances, whole groups. A `group` is
    one right answer: stamps of equal English caption, equal picture, or equal sound in one language. `split` is
    "concept" (groups 80 : 10 : 10 into train, dev, test) or "voice:ca" (Catalan is "test"; of the rest 5 % "dev").
    Neither depends on languages or limit, so a group never changes sides.
    """
    stamps = find_stamps(stamps_folder(folder))
    chosen = _chosen_languages(Counter(language for stamp in stamps for language in stamp.recordings), languages, split)
    # Groups need the hash of every file, but only recordings that are kept need decoding, the slow part.
    every_uri = [uri for stamp in stamps for uri in (stamp.picture, *stamp.recordings.values())]
    _, files = read_sources(audio=(), images=every_uri)
    groups = group_stamps(stamps, files)
    spoken = [
        Spoken(f"{stamp.name}-{language}", stamp, language, groups[stamp.name])
        for stamp in stamps
        for language in chosen
        if language in stamp.recordings and (include_symbols or stamp.category != "symbols")
    ]
    spoken.sort(key=lambda one: one.utterance)
    if limit is not None:
        spoken = _limited(spoken, limit, split)
    audio, _ = read_sources(audio=(one.uri for one in spoken), images=(), progress=progress)
    return Manifest.from_rows([_row(one, split, audio[one.uri], files[one.stamp.picture]) for one in spoken])


def stamps_folder(folder: str | Path) -> Path:
    """The folder that holds `animals/`, `food/` and so on: `folder` itself or one below it."""
    top = Path(folder).absolute()
    for candidate in (top, top / "stamps", top / "tuxpaint/stamps", top / "share/tuxpaint/stamps"):
        if (candidate / "animals").is_dir():
            return candidate
    for candidate in sorted(top.glob("**/tuxpaint/stamps")):
        if candidate.is_dir():
            return candidate
    raise InvalidInput(f"{folder}: no Tux Paint stamps at or below it; give the folder of an extracted package")


def find_stamps(folder: Path) -> list[Stamp]:
    """All stamps with a png and a recording of their own, by name; so `_mirror` and `_flip` variants fall out."""
    files = sorted(_walk(folder))
    stamps = {}
    for name in files:
        stem, extension = os.path.splitext(name)
        if extension == ".png":
            stamps[stem] = Stamp(stem, str(folder / name))
    for name in files:
        found = _DESCRIPTION.fullmatch(name)
        if found and (stamp := stamps.get(found["stamp"])):
            # In sorted order `_da.ogg` comes before `_da.ogg.ogg` and wins.
            stamp.recordings.setdefault(found["language"] or "en", str(folder / name))
    spoken = [stamp for stamp in stamps.values() if stamp.recordings]
    known = set(files)
    for stamp in spoken:
        if f"{stamp.name}.txt" in known:
            stamp.texts = read_texts((folder / f"{stamp.name}.txt").read_bytes())
    return spoken


def read_texts(data: bytes) -> dict[str, str]:
    """The captions by language; line 1 is "en". Broken UTF-8 becomes U+FFFD, empty captions are left out."""
    english, *others = data.decode("utf-8-sig", errors="replace").splitlines() or [""]
    texts = {"en": english.strip()}
    for line in others:
        if found := _TRANSLATION.fullmatch(line.strip()):
            texts[found["language"]] = found["text"].strip()
    return {language: text for language, text in texts.items() if text}


def group_stamps(stamps: Sequence[Stamp], files: dict[str, Source]) -> dict[str, str]:
    """Each stamp's group: the first English caption (or else name) among all stamps that it can't be told from."""
    sharing: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for stamp in stamps:
        if "en" in stamp.texts:
            sharing["caption", _normalised(stamp.texts["en"])].append(stamp.name)
        if key := files[stamp.picture].key:
            sharing["picture", key].append(stamp.name)
        for language, uri in stamp.recordings.items():
            if key := files[uri].key:
                sharing["sound", language, key].append(stamp.name)
    root = _join([stamp.name for stamp in stamps], sharing.values())
    answers: dict[str, list[str]] = defaultdict(list)
    for stamp in stamps:
        answers[root[stamp.name]].append(_normalised(stamp.texts.get("en", stamp.name)))
    return {stamp.name: min(answers[root[stamp.name]]) for stamp in stamps}


def _join(names: Sequence[str], sharing: Iterable[Sequence[str]]) -> dict[str, str]:
    """Each name's representative, after all names of one list are joined (union-find)."""
    parent = {name: name for name in names}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for members in sharing:
        for other in members[1:]:
            parent[find(other)] = find(members[0])
    return {name: find(name) for name in names}


def _walk(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        relative = os.path.relpath(parent, folder).replace(os.sep, "/")
        yield from (name if relative == "." else f"{relative}/{name}" for name in names)


def _chosen_languages(spoken: Counter[str], languages: Sequence[str] | None, split: str) -> list[str]:
    chosen = sorted(spoken) if languages is None else list(dict.fromkeys(languages))
    kind, _, voice = split.partition(":")
    if split != "concept" and (kind != "voice" or not voice):
        raise InvalidInput(f"split {split!r}: expected 'concept' or 'voice:' and a language, such as 'voice:ca'")
    for language in [*chosen, *([voice] if voice and voice not in chosen else [])]:
        if language not in spoken or language not in chosen:
            had = ", ".join(f"{name} ({spoken[name]})" for name in sorted(spoken))
            raise InvalidInput(f"language {language!r} is not among those read; the stamps speak {had}")
    return chosen


def _row(one: Spoken, split: str, sound: Source, picture: Source) -> dict[str, Any]:
    columns = speech_columns(sound) | image_columns(picture) | text_columns(one.stamp.texts.get(one.language))
    names = {"utterance": one.utterance, "group": one.group, "language": one.language, "speaker": None}
    return columns | names | {"split": one.split(split)}


def _limited(spoken: list[Spoken], limit: int, split: str) -> list[Spoken]:
    """About `limit` of them: whole groups in an order of their hash, so much of each split as it has of all."""
    if limit < 1:
        raise InvalidInput(f"limit is {limit}, expected 1 or more utterances")
    strata: dict[str, Counter[str]] = defaultdict(Counter)
    for one in spoken:
        strata[one.split(split) if split == "concept" else ""][one.group] += 1
    kept: set[str] = set()
    for sizes in strata.values():
        wanted = limit * sizes.total() / len(spoken)
        num_kept = 0
        for group in sorted(sizes, key=lambda group: _share("limit", group)):
            # The first group always: no split may come out empty.
            if num_kept and num_kept + sizes[group] / 2 > wanted:
                break
            kept.add(group)
            num_kept += sizes[group]
    return [one for one in spoken if one.group in kept]


def _share(purpose: str, name: str) -> float:
    """A number from 0 to 1 that depends on the name alone."""
    digest = hashlib.sha256(f"{SPLIT_SEED}\n{purpose}\n{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _normalised(caption: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", caption.casefold()).split())
