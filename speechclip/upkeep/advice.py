"""What to do about damage that `repair` can't repair by itself."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from speechclip.store.feature_store import FeatureStore
from speechclip.store.grace import GRACE_SECONDS
from speechclip.upkeep.findings import Finding
from speechclip.upkeep.live import oldest_live_version
from speechclip.upkeep.repair_log import can_be_forgotten

_FORGET = (
    "its copy is lost too; bring one of them back from a backup, or forget what only this file names by "
    "`speechclip repair --forget` and run `speechclip featurize` again"
)


def data_file_of(finding: Finding) -> str:
    """The path, within the catalog's folder, of the data file that a finding is about, or whose copy it is about."""
    return finding.path.partition("/")[2]


def advice_on_lost_data_files(store: FeatureStore, data_files: Collection[str]) -> dict[str, str]:
    """What to do about data files that are lost together with their copies, by file.

    A file that no live version names needs no advice and is left out.
    """
    newest, advice, tags = store.catalog.newest(), dict[str, str](), dict[str, list[str]]()
    for entry in store.catalog.history(newest, oldest_live_version(store, newest) + 1):
        advice |= {path: _wait(entry.time) for path in entry.removed if path in data_files}
    for tag in store.tags.readable(newest):
        for path in store.catalog.paths(tag.version):
            tags.setdefault(path, []).append(tag.name)
    advice |= {path: _untag(names) for path, names in tags.items() if path in data_files}
    return advice | {path: _FORGET for path in store.catalog.paths(newest) if path in data_files}


def problem_with_advice(store: FeatureStore, finding: Finding, lost_data_files: Mapping[str, str]) -> str:
    """The sentence for a file that could not be repaired: its path, what is wrong, what to do.

    `lost_data_files` is the result of `advice_on_lost_data_files`.
    """
    match finding.kind:
        case "log":
            advice = "its copy in the journal is lost too; bring one of them back from a backup"
            if can_be_forgotten(store, finding):
                advice += ", or forget what it committed by `speechclip repair --forget` and run that command again"
            else:
                advice += "; later commits build on it, so it can't be forgotten"
        case "journal":
            advice = "its entry is lost too; bring one of them back from a backup"
        case "catalog" | "copy":
            advice = lost_data_files.get(data_file_of(finding), "")
        case "tag":
            advice = finding.advice
        case "spec":
            advice = "repair again with the option that made it: --speech, --image or --text"
        case "manifest":
            advice = "repair again with --manifest FILE, or delete it if nobody needs it"
        case _:
            advice = "bring it back from a backup"
    return f"{finding.path}: {finding.problem}; {advice}"


def _untag(names: Collection[str]) -> str:
    commands = ", ".join(f"`speechclip tag --delete {name}`" for name in names)
    return (
        "its copy is lost too, and a tagged version needs it; bring one of them back from a backup, or delete the tag: "
        f"{commands}"
    )


def _wait(removed: datetime) -> str:
    until = removed + timedelta(seconds=GRACE_SECONDS)
    return (
        "its copy is lost too, and versions of the last seven days need it; bring one of them back from a backup, or "
        f"wait: until {until:%Y-%m-%d %H:%M} UTC `speechclip gc` deletes nothing of its feature set; if no job uses "
        "the store, `speechclip featurize` and then `speechclip gc --now` end that now"
    )
