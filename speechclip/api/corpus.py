"""Ingest: read a corpus into a manifest. Each function is one `speechclip ingest` command."""

from collections.abc import Callable, Mapping, Sequence

from speechclip.manifest import Manifest

# Called with the number of files that were read and the number of all files.
OnProgress = Callable[[int, int], None]


def ingest_table(
    path: str,
    out: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """Read a CSV, JSONL or Parquet table with a row for each utterance.

    The table's columns are `audio`, `image`, `text`, `split`, and optionally `id`, `speaker`, `language`, `group`,
    `start` and `end` in seconds. `columns` maps our names to others, as in `{"audio": "path"}`. `split` is the split
    of rows that name none. With `out` the manifest is also written there (a path or s3://).

    Raises `InvalidInput` where the table cannot be read. A recording or picture that cannot be read is recorded in the
    manifest with its reason; `rejected` lists it.
    """
    from speechclip.corpora.table import read_table

    mapping = None if columns is None else dict(columns)
    return _written(read_table(path, columns=mapping, split=split, on_progress=on_progress), out)


def ingest_flickr8k(
    folder: str, out: str | None = None, *, karpathy: str | None = None, on_progress: OnProgress | None = None
) -> Manifest:
    """Read Flickr8k with its spoken captions. `karpathy` is the path of Karpathy's JSON, for its splits."""
    from speechclip.corpora.flickr8k import read_flickr8k

    return _written(read_flickr8k(folder, karpathy=karpathy, on_progress=on_progress), out)


def ingest_spokencoco(
    folder: str,
    out: str | None = None,
    *,
    images: str | None = None,
    karpathy: str | None = None,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """Read SpokenCOCO from the folder of its archive. `images` is the folder with train2014 and val2014."""
    from speechclip.corpora.spokencoco import read_spokencoco

    return _written(read_spokencoco(folder, images=images, karpathy=karpathy, on_progress=on_progress), out)


def ingest_lhotse(
    recordings: str,
    supervisions: str,
    out: str | None = None,
    *,
    split: str = "train",
    root: str | None = None,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """Read lhotse's manifests of recordings and supervisions. Relative paths start at `root`."""
    from speechclip.corpora.lhotse import read_lhotse

    return _written(read_lhotse(recordings, supervisions, split=split, root=root, on_progress=on_progress), out)


def ingest_webdataset(
    tars: Sequence[str],
    out: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    splits: Sequence[str] = (),
    tar_in_id: bool = False,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """Read WebDataset tars without unpacking them. An address may have braces, as in `clips-{000..009}.tar`.

    `columns` maps our names to endings of the members or fields of their json, as in `{"text": "sentence"}`. `splits`
    are for samples that name none: `"train"` for all, `"dev=val-*"` for tars of such names. With `tar_in_id` each id
    starts with the tar's name.

    Raises `InvalidInput` if a tar is damaged or cut.
    """
    from speechclip.corpora.webdataset import read_webdataset

    mapping = None if columns is None else dict(columns)
    manifest = read_webdataset(tars, columns=mapping, splits=splits, tar_in_id=tar_in_id, on_progress=on_progress)
    return _written(manifest, out)


def ingest_tuxpaint(
    folder: str | None = None,
    out: str | None = None,
    *,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    split: str = "concept",
    on_progress: OnProgress | None = None,
) -> Manifest:
    """Read Tux Paint's stamps: pictures with spoken and written names in eleven languages.

    Without `folder` Debian's package is downloaded (161 MB, GPL-2). `split` is "concept" (80/10/10 by caption) or
    "voice:XX", which keeps language XX for the test.
    """
    from speechclip.corpora.debian import fetch_stamps
    from speechclip.corpora.tuxpaint import read_stamps

    source = str(fetch_stamps()) if folder is None else folder
    return _written(read_stamps(source, languages=languages, limit=limit, split=split, on_progress=on_progress), out)


def ingest_synthetic(
    folder: str,
    out: str | None = None,
    *,
    concepts: int = 60,
    voices: int = 4,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """Make a small synthetic corpus in `folder` and read it: drawn shapes, named by `voices` artificial voices."""
    from speechclip.corpora.synthetic import make_synthetic

    table = make_synthetic(folder, num_concepts=concepts, num_voices=voices)
    return ingest_table(str(table), out, on_progress=on_progress)


def _written(manifest: Manifest, out: str | None) -> Manifest:
    if out is not None:
        manifest.write(out)
    return manifest
