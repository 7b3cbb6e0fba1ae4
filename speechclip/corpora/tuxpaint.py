"""Tux Paint's stamps: pictures, texts and human voices in 14 languages (Debian's tuxpaint-stamps-default, GPL-2).

    <category>/.../<stamp>.png            the picture; a stamp with only an svg is left out
    <category>/.../<stamp>.txt            the captions: line 1 in English, then lines `xx.utf8=...`
    <category>/.../<stamp>_desc_xx.ogg    the spoken caption in language xx; without `_xx`, English
    <category>/.../<stamp>.ogg            a sound effect, not used

One person speaks nearly all of a language, so language and voice can't be told apart. `speaker` stays empty.
"""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from speechclip.corpora.sources import OnProgress, Source, read_sources
from speechclip.corpora.utterances import Utterance, row_of
from speechclip.errors import InvalidInput
from speechclip.manifest import Manifest

DEFAULT_SPLIT = "concept"
SPLIT_SEED = "tuxpaint/1"
# One file of the package ends in `_da.ogg.ogg`, and 15 Brazilian ones are wav.
_DESCRIPTION = re.compile(r"(?P<stamp>.+)_desc(?:_(?P<language>[a-z]{2,3}(?:_[A-Z]{2})?))?(?:\.ogg)?\.(?:ogg|wav)")
_TRANSLATION = re.compile(r"(?P<language>[A-Za-z_@]+)\.utf8=(?P<text>.*)")


@dataclass
class Stamp:
    """A picture with its captions and recordings by language."""

    name: str
    picture: str
    texts: dict[str, str] = field(default_factory=dict)
    recordings: dict[str, str] = field(default_factory=dict)

    @property
    def category(self) -> str:
        """The top folder of its name: animals, clothes, food, ... symbols."""
        return self.name.partition("/")[0]


class Spoken(NamedTuple):
    """One stamp as spoken in one language: an utterance."""

    id: str
    stamp: Stamp
    language: str
    group: str

    @property
    def uri(self) -> str:
        """The path of the recording."""
        return self.stamp.recordings[self.language]

    def split(self, rule: str) -> str:
        """The split into which the rule "concept" or "voice:xx" puts it."""
        if rule == "concept":
            share = _share("concept", self.group)
            return "train" if share < 0.8 else "dev" if share < 0.9 else "test"
        if self.language == rule.partition(":")[2]:
            return "test"
        return "dev" if _share("voice", self.id) < 0.05 else "train"


def read_stamps(
    folder: str | Path,
    *,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    split: str = DEFAULT_SPLIT,
    include_symbols: bool = False,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """One row for each spoken caption, sorted by id, such as `animals/birds/crow-fr`. `folder` may be any parent.

    `languages`: only these; by default all that have recordings. `limit`: about this many utterances, in whole groups.
    A group holds the stamps that can't be told apart: those of equal English caption, of equal picture, or of equal
    recording in one language.

    `split` is "concept" (80 % of the groups are train, 10 % dev, 10 % test) or "voice:ca" (Catalan is test, 5 % of the
    rest dev). The split of a group depends on neither `languages` nor `limit`.
    """
    stamps = find_stamps(stamps_folder(folder))
    chosen = _chosen_languages(Counter(language for stamp in stamps for language in stamp.recordings), languages, split)
    # Groups need the hash of every file. Decoding is slow, so only the recordings that are kept are decoded.
    every_uri = [uri for stamp in stamps for uri in (stamp.picture, *stamp.recordings.values())]
    _, files = read_sources(audio=(), images=every_uri)
    groups = group_stamps(stamps, files)
    spoken = [
        Spoken(f"{stamp.name}-{language}", stamp, language, groups[stamp.name])
        for stamp in stamps
        for language in chosen
        if language in stamp.recordings and (include_symbols or stamp.category != "symbols")
    ]
    spoken.sort(key=lambda one: one.id)
    if limit is not None:
        spoken = _limited(spoken, limit, split)
    audio, _ = read_sources(audio=(one.uri for one in spoken), images=(), on_progress=on_progress)
    return Manifest.from_rows(
        [row_of(_utterance(one, split), audio[one.uri], files[one.stamp.picture]) for one in spoken]
    )


def stamps_folder(folder: str | Path) -> Path:
    """The folder that holds `animals/`, `food/` and so on: `folder` itself or one below it."""
    top = Path(folder).absolute()
    for candidate in (top, top / "stamps", top / "tuxpaint/stamps", top / "share/tuxpaint/stamps"):
        if (candidate / "animals").is_dir():
            return candidate
    for candidate in sorted(top.glob("**/tuxpaint/stamps")):
        if candidate.is_dir():
            return candidate
    raise InvalidInput(f"{folder}: no Tux Paint stamps in it or below it", "give the folder of an extracted package")


def find_stamps(folder: Path) -> list[Stamp]:
    """All stamps with a png and a recording of their own, sorted by name. `_mirror` and `_flip` variants have none."""
    files = sorted(_walk(folder))
    stamps = {}
    for name in files:
        stem, extension = os.path.splitext(name)
        if extension == ".png":
            stamps[stem] = Stamp(stem, str(folder / name))
    for name in files:
        found = _DESCRIPTION.fullmatch(name)
        if found and (stamp := stamps.get(found["stamp"])):
            # The names are sorted, so `_da.ogg` comes before `_da.ogg.ogg` and is kept.
            stamp.recordings.setdefault(found["language"] or "en", str(folder / name))
    spoken = [stamp for stamp in stamps.values() if stamp.recordings]
    known = set(files)
    for stamp in spoken:
        if f"{stamp.name}.txt" in known:
            stamp.texts = read_texts((folder / f"{stamp.name}.txt").read_bytes())
    return spoken


def read_texts(data: bytes) -> dict[str, str]:
    """The captions by language. Line 1 is English ("en"); invalid UTF-8 becomes U+FFFD; empty ones are left out."""
    english, *others = data.decode("utf-8-sig", errors="replace").splitlines() or [""]
    texts = {"en": english.strip()}
    for line in others:
        if found := _TRANSLATION.fullmatch(line.strip()):
            texts[found["language"]] = found["text"].strip()
    return {language: text for language, text in texts.items() if text}


def group_stamps(stamps: Sequence[Stamp], files: dict[str, Source]) -> dict[str, str]:
    """Each stamp's group, named by the alphabetically first English caption (or name) among its stamps."""
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
    """One name for each set of names that share a list, directly or through others (union-find)."""
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
        raise InvalidInput(f"split {split!r}: unknown", "give 'concept' or 'voice:' and a language, such as 'voice:ca'")
    for language in [*chosen, *([voice] if voice and voice not in chosen else [])]:
        if language not in spoken or language not in chosen:
            had = ", ".join(f"{name} ({spoken[name]})" for name in sorted(spoken))
            raise InvalidInput(f"language {language!r} is not among those that are read", f"the stamps have {had}")
    return chosen


def _utterance(one: Spoken, split: str) -> Utterance:
    text = one.stamp.texts.get(one.language)
    return Utterance(id=one.id, split=one.split(split), text=text, group=one.group, language=one.language)


def _limited(spoken: list[Spoken], limit: int, split: str) -> list[Spoken]:
    """About `limit` of them, in whole groups ordered by hash. Each split keeps its share of the whole."""
    if limit < 1:
        raise InvalidInput(f"limit is {limit}", "give 1 utterance or more")
    strata: dict[str, Counter[str]] = defaultdict(Counter)
    for one in spoken:
        strata[one.split(split) if split == "concept" else ""][one.group] += 1
    kept: set[str] = set()
    for sizes in strata.values():
        wanted = limit * sizes.total() / len(spoken)
        num_kept = 0
        for group in sorted(sizes, key=lambda group: _share("limit", group)):
            # The first group is always kept, so that no split is empty.
            if num_kept and num_kept + sizes[group] / 2 > wanted:
                break
            kept.add(group)
            num_kept += sizes[group]
    return [one for one in spoken if one.group in kept]


def _share(purpose: str, name: str) -> float:
    """A number from 0 to 1 that depends only on the purpose and the name."""
    digest = hashlib.sha256(f"{SPLIT_SEED}\n{purpose}\n{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _normalised(caption: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", caption.casefold()).split())
