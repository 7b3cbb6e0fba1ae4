"""Published figures on Flickr8k and SpokenCOCO, in percent, which reports show beside a run's own.

Source: docs/model.md, "Published results".
"""

from typing import Literal

from speechclip.records import Record

CorpusName = Literal["flickr8k", "spokencoco"]
Measure = Literal["speech-image", "speech-text", "keywords", "dev"]

SPEECHCLIP = "SpeechCLIP (SLT 2022, arXiv 2210.00705), its tables"
QUOTED = f"quoted in {SPEECHCLIP}"
RELEASED = "the name of the released checkpoint"

# How many utterances ask and how many images compete on the test split. As many captions compete as utterances ask.
TEST_POOLS: dict[CorpusName, tuple[int, int]] = {"flickr8k": (5_000, 1_000), "spokencoco": (25_031, 5_000)}


class PublishedScores(Record, frozen=True):
    """One row of a published table: what `model` reaches on `corpus`, in percent.

    What `figures` holds depends on `measure`. `speech-image` and `speech-text`: R@1, R@5, R@10 from speech, then the
    same to speech. `keywords`: the hit rates of the slots 1 to 8, then their mean. `dev`: one figure, the mean recall
    of both directions at `cutoff` on the dev split.
    """

    corpus: CorpusName
    measure: Measure
    model: str
    figures: tuple[float, ...]
    source: str
    cutoff: int = 0


def published_rows(recipe_name: str) -> tuple[PublishedScores, ...]:
    """The published rows on a recipe's corpus; none for a recipe that is not SpeechCLIP's."""
    corpus = corpus_of(recipe_name)
    return tuple(row for row in PUBLISHED if row.corpus == corpus)


def corpus_of(recipe_name: str) -> CorpusName | None:
    """The corpus in a recipe's name: ``flickr8k`` for ``base-parallel-flickr8k``; None for names of another form."""
    corpora: tuple[CorpusName, ...] = ("flickr8k", "spokencoco")
    if not recipe_name.startswith(("base-", "large-")):
        return None
    return next((corpus for corpus in corpora if recipe_name.endswith(f"-{corpus}")), None)


def _rows(
    corpus: CorpusName,
    measure: Measure,
    table: dict[str, tuple[float, ...]],
    source: str = SPEECHCLIP,
    *,
    cutoff: int = 0,
) -> list[PublishedScores]:
    return [
        PublishedScores(corpus=corpus, measure=measure, model=model, figures=figures, source=source, cutoff=cutoff)
        for model, figures in table.items()
    ]


PUBLISHED: tuple[PublishedScores, ...] = (
    *_rows(
        "flickr8k",
        "speech-image",
        {
            "FaST-VGS CO": (26.6, 56.4, 68.8, 36.2, 66.1, 76.5),
            "FaST-VGS CTF": (29.3, 58.6, 71.0, 37.9, 68.5, 79.9),
            "MILAN": (33.2, 62.7, 73.9, 49.6, 79.2, 87.5),
        },
        QUOTED,
    ),
    *_rows(
        "flickr8k",
        "speech-image",
        {
            "Parallel Base": (26.7, 57.1, 70.0, 41.3, 73.9, 84.2),
            "Cascaded Base": (8.2, 25.7, 37.2, 14.1, 34.5, 49.2),
            "Parallel Large": (39.1, 72.0, 83.0, 54.5, 84.5, 93.2),
            "Cascaded Large": (14.7, 41.2, 55.1, 21.8, 52.0, 67.7),
        },
    ),
    *_rows(
        "spokencoco",
        "speech-image",
        {
            "ResDAVEnet": (17.3, 41.9, 55.0, 22.0, 50.6, 65.2),
            "FaST-VGS CO": (31.8, 62.5, 75.0, 42.5, 73.7, 84.9),
            "FaST-VGS CTF": (35.9, 66.3, 77.9, 48.8, 78.2, 87.0),
        },
        QUOTED,
    ),
    *_rows(
        "spokencoco",
        "speech-image",
        {
            "Parallel Large": (35.8, 66.5, 78.0, 50.6, 80.9, 89.1),
            "Cascaded Large": (6.4, 20.7, 31.0, 9.6, 27.7, 39.7),
        },
    ),
    *_rows(
        "flickr8k",
        "speech-text",
        {
            "Random": (0.10, 0.50, 0.99, 0.10, 0.50, 0.99),
            "Parallel Large": (19.56, 44.06, 58.46, 22.50, 44.14, 54.54),
            "Parallel Large, trained on texts": (97.06, 99.24, 99.46, 97.88, 99.76, 99.90),
        },
    ),
    *_rows(
        "spokencoco",
        "speech-text",
        {
            "Random": (0.02, 0.10, 0.20, 0.02, 0.10, 0.20),
            "Parallel Large": (60.32, 81.81, 88.18, 65.45, 85.82, 91.27),
            "Parallel Large, trained on texts": (95.02, 99.46, 99.78, 95.35, 99.68, 99.93),
        },
    ),
    *_rows(
        "flickr8k",
        "keywords",
        {
            "Cascaded Base": (57.0, 25.6, 20.2, 5.0, 20.0, 26.5, 10.5, 16.6, 22.7),
            "Cascaded Large": (56.5, 19.6, 20.5, 37.5, 21.7, 34.6, 26.4, 44.7, 32.7),
        },
    ),
    *_rows("spokencoco", "keywords", {"Cascaded Large": (27.5, 22.4, 35.8, 61.0, 21.6, 54.2, 60.1, 22.9, 38.2)}),
    *_rows(
        "flickr8k",
        "dev",
        {"Parallel Base, epoch 131": (36.01,), "Cascaded Base, epoch 58": (7.77,)},
        RELEASED,
        cutoff=1,
    ),
    *_rows(
        "flickr8k",
        "dev",
        {
            "Parallel Large, epoch 56": (89.00,),
            "Cascaded Large, epoch 187": (62.77,),
            "SpeechCLIP+ Cascaded+ Base": (42.11,),
            "SpeechCLIP+ Hybrid Base": (80.01,),
            "SpeechCLIP+ Hybrid+ Base": (81.03,),
            "SpeechCLIP+ Cascaded+ Large": (60.05,),
            "SpeechCLIP+ Hybrid Large": (90.10,),
            "SpeechCLIP+ Hybrid+ Large": (89.35,),
        },
        RELEASED,
        cutoff=10,
    ),
    *_rows(
        "spokencoco",
        "dev",
        {
            "Parallel Large, epoch 14": (84.01,),
            "Cascaded Large, epoch 12": (36.15,),
            "SpeechCLIP+ Cascaded+ Large": (31.30,),
            "SpeechCLIP+ Hybrid Large": (79.30,),
            "SpeechCLIP+ Hybrid+ Large": (83.54,),
        },
        RELEASED,
        cutoff=10,
    ),
)
