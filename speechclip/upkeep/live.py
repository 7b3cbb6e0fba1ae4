"""What is left of the versions that `gc` keeps, once some of what it goes by is lost."""

from collections.abc import Collection
from datetime import datetime, timedelta

from speechclip.store.feature_store import FeatureStore
from speechclip.store.grace import GRACE_SECONDS
from speechclip.store.layout import FEATURES
from speechclip.upkeep.gc import find_rows, named_by_rows, oldest_kept


def advice_on(store: FeatureStore, parts: Collection[str]) -> dict[str, str]:
    """What to do about files of rows that are lost with their copies, by file; about those that no version needs, none.

    Versions, that is, which `gc` keeps: the newest, the tagged ones, and those of the grace period.
    """
    newest, advice, tags = store.catalog.newest(), dict[str, str](), dict[str, list[str]]()
    for entry in store.catalog.history(newest, oldest_kept(store, newest) + 1):
        advice |= {part: _wait(entry.time) for part in entry.removed if part in parts}
    for tag in store.tags.readable(newest):
        for part in store.catalog.paths(tag.version):
            tags.setdefault(part, []).append(tag.name)
    advice |= {part: _untag(names) for part, names in tags.items() if part in parts}
    return advice | {part: _FORGET for part in store.catalog.paths(newest) if part in parts}


def oldest_whole(store: FeatureStore) -> int:
    """The oldest version from which on all that any version named can still be found; some may be damaged.

    For a version that `gc` has freed not all is there, or it names the same as a later one.
    """
    files = set(store.storage.list(FEATURES))
    for entry in store.catalog.history(store.catalog.newest()):
        # What the version before named, and this one no more.
        for part in entry.removed:
            rows = find_rows(store, part)
            if rows is None or not named_by_rows(rows) <= files:
                return entry.version
    return 0


_FORGET = (
    "its copy is lost too; bring one of them back from a backup, or give up what only it names by "
    "`speechclip repair --forget` and run `speechclip featurize` again"
)


def _untag(names: list[str]) -> str:
    commands = ", ".join(f"`speechclip tag --delete {name}`" for name in names)
    return f"its copy is lost too, and a tag names it; bring one of them back from a backup, or give up: {commands}"


def _wait(removed: datetime) -> str:
    until = removed + timedelta(seconds=GRACE_SECONDS)
    return (
        "its copy is lost too, and versions of the last seven days name it; bring one of them back from a backup, or "
        f"wait: until {until:%Y-%m-%d %H:%M} UTC `speechclip gc` frees nothing of its feature set; where no run uses "
        "the store, `speechclip featurize` and then `speechclip gc --now` end that"
    )
