"""`speechclip ingest`: read a corpus and write its manifest."""

from typing import Any

import click

from speechclip.cli.terminal import counted, human_seconds, progress_line, say

SHOWN_PROBLEMS = 10
OUT = click.option("--out", required=True, metavar="FILE", help="Write the Parquet manifest here (path or s3://).")

KARPATHY = click.option(
    "--karpathy",
    metavar="FILE",
    help="Split by this JSON of Karpathy. Default: the corpus's own split files, else such a JSON in DIR.",
)


@click.group()
def ingest() -> None:
    """Read a corpus and write its manifest."""


@ingest.command(name="table")
@click.argument("rows", metavar="FILE")
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="OURS=THEIRS",
    help="Our column is called THEIRS in FILE, as audio=path. Repeatable. Other unknown columns are then ignored.",
)
@click.option("--split", metavar="NAME", help="Split of the rows that name none. Default: train, with a warning.")
@OUT
def ingest_table(rows: str, columns: tuple[str, ...], split: str | None, out: str) -> None:
    """Ingest a CSV, JSONL or Parquet table.

    Columns: audio, image, text (at least one), and split, id, speaker, language, group, start, end (seconds). An empty
    cell means that the row lacks this modality. Relative paths start at the table's folder.
    """
    from speechclip.corpora.table import read_table

    _write(read_table(rows, columns=_mapping(columns), split=split, on_progress=progress_line("files")), out)


@ingest.command(name="webdataset")
@click.argument("tars", nargs=-1, required=True, metavar="TAR...")
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="OURS=THEIRS",
    help="Take our column from the members of this ending or from this json field, as text=sentence. Repeatable.",
)
@click.option(
    "--split",
    "splits",
    multiple=True,
    metavar="NAME[=PATTERN]",
    help="Split of the samples that name none; with a PATTERN, only in tars of such names: dev='val-*'. Repeatable.",
)
@click.option("--tar-in-id", is_flag=True, help="Start each id with the tar's name, for tars that use the same keys.")
@OUT
def ingest_webdataset(
    tars: tuple[str, ...], columns: tuple[str, ...], splits: tuple[str, ...], tar_in_id: bool, out: str
) -> None:
    """Ingest WebDataset tars without unpacking them. TAR may have braces, as s3://b/clips-{000..009}.tar.

    A sample has members such as KEY.wav, KEY.jpg and KEY.txt. KEY.json may hold text, split, group, speaker, language.
    """
    from speechclip.corpora.webdataset import read_webdataset

    show = progress_line("files")
    _write(read_webdataset(tars, columns=_mapping(columns), splits=splits, tar_in_id=tar_in_id, on_progress=show), out)


@ingest.command(name="flickr8k")
@click.argument("folder", metavar="DIR")
@KARPATHY
@OUT
def ingest_flickr8k(folder: str, karpathy: str | None, out: str) -> None:
    """Ingest Flickr8k with its spoken captions. DIR holds pictures, captions and flickr_audio, in any layout."""
    from speechclip.corpora.flickr8k import read_flickr8k

    _write(read_flickr8k(folder, karpathy=karpathy, on_progress=progress_line("files")), out)


@ingest.command(name="spokencoco")
@click.argument("folder", metavar="DIR")
@click.option(
    "--images", metavar="DIR", help="The folder of train2014 and val2014, if it is not DIR or its mscoco_img."
)
@KARPATHY
@OUT
def ingest_spokencoco(folder: str, images: str | None, karpathy: str | None, out: str) -> None:
    """Ingest SpokenCOCO. DIR is the folder in which its archive was unpacked. The published val is called dev here."""
    from speechclip.corpora.spokencoco import read_spokencoco

    _write(read_spokencoco(folder, images=images, karpathy=karpathy, on_progress=progress_line("files")), out)


@ingest.command(name="lhotse")
@click.argument("recordings", metavar="RECORDINGS")
@click.argument("supervisions", metavar="SUPERVISIONS")
@click.option("--split", default="train", show_default=True, metavar="NAME", help="Split of all rows.")
@click.option("--root", metavar="DIR", help="Relative paths start here. Default: the working directory.")
@OUT
def ingest_lhotse(recordings: str, supervisions: str, split: str, root: str | None, out: str) -> None:
    """Ingest lhotse's recordings and supervisions, .jsonl or .jsonl.gz. `custom.image` is the path of a picture."""
    from speechclip.corpora.lhotse import read_lhotse

    _write(read_lhotse(recordings, supervisions, split=split, root=root, on_progress=progress_line("files")), out)


@ingest.command(name="tuxpaint")
@click.argument("folder", required=False, metavar="[DIR]")
@click.option("--fetch", is_flag=True, help="Download the Debian package (161 MB, GPL-2) by apt-get. Needs no root.")
@click.option("--languages", metavar="XX,XX", help="Only these languages, as ca,fr. Default: all.")
@click.option("--limit", type=int, help="About this many utterances, in whole groups chosen by hash.")
@click.option(
    "--split",
    default="concept",
    show_default=True,
    help="concept: 80/10/10 % by group. voice:XX: language XX is the test split.",
)
@OUT
def ingest_tuxpaint(
    folder: str | None, fetch: bool, languages: str | None, limit: int | None, split: str, out: str
) -> None:
    """Ingest Tux Paint's stamps: pictures with their names, written and spoken by people in several languages."""
    from speechclip.corpora.debian import fetch_stamps
    from speechclip.corpora.tuxpaint import read_stamps

    if (folder is None) != fetch:
        raise click.UsageError("give either DIR or --fetch")
    chosen = languages.split(",") if languages else None
    source = folder if folder is not None else str(fetch_stamps())
    _write(read_stamps(source, languages=chosen, limit=limit, split=split, on_progress=progress_line("files")), out)


@ingest.command(name="synthetic")
@click.argument("folder", metavar="DIR")
@click.option("--concepts", default=60, show_default=True, help="Number of pictures, each with a caption.")
@click.option("--voices", default=4, show_default=True, help="Number of voices that read each caption.")
@OUT
def ingest_synthetic(folder: str, concepts: int, voices: int, out: str) -> None:
    """Make a small synthetic corpus in DIR, without any human voice, and ingest it."""
    from speechclip.corpora.synthetic import make_synthetic
    from speechclip.corpora.table import read_table

    corpus = make_synthetic(folder, num_concepts=concepts, num_voices=voices)
    _write(read_table(str(corpus), on_progress=progress_line("files")), out)


def _mapping(columns: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for column in columns:
        ours, is_given, theirs = column.partition("=")
        if not (ours and is_given and theirs):
            raise click.BadParameter(f"{column!r} is not OURS=THEIRS, as audio=path", param_hint="--column")
        if ours in found:
            raise click.BadParameter(f"{ours} is given twice", param_hint="--column")
        found[ours] = theirs
    return found


def _write(manifest: Any, out: str) -> None:
    manifest.write(out)
    seconds = sum(asset.seconds for asset in manifest.assets("speech"))
    counts = ", ".join(f"{len(manifest.assets(kind)):,} {kind}" for kind in ("speech", "image", "text"))
    problems = [problem for kind in ("speech", "image") for problem in manifest.source_problems(kind)]
    splits = ", ".join(
        f"{entry['values']} {entry['counts']:,}" for entry in manifest.table["split"].value_counts().to_pylist()
    )
    say(
        f"{out}: {counted(len(manifest), 'utterance')} ({splits}); assets: {counts}; {human_seconds(seconds)} of speech"
    )
    rows = {name: number for number, name in enumerate(manifest.table["utterance"].to_pylist(), start=1)}
    for problem in problems[:SHOWN_PROBLEMS]:
        first = problem.utterances[0]
        others = f" and {len(problem.utterances) - 1} more" if len(problem.utterances) > 1 else ""
        say(f"row {rows[first]} ({first}){others}: {problem.reason}: {problem.detail}")
    if len(problems) > SHOWN_PROBLEMS:
        say(f"... and {len(problems) - SHOWN_PROBLEMS} more sources; `speechclip rejected` lists them")
