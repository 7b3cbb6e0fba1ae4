import pytest

from speechclip.evaluation.published import PUBLISHED, TEST_POOLS, corpus_of, published_rows


@pytest.mark.parametrize(
    ("recipe", "corpus"),
    [
        ("base-parallel-flickr8k", "flickr8k"),
        ("large-cascaded-spokencoco", "spokencoco"),
        ("demo-parallel", None),
        ("my-base-parallel-flickr8k", None),
        ("base-parallel-flickr8k-2", None),
        ("base-parallel-places", None),
    ],
)
def test_only_a_recipe_of_the_paper_has_published_rows(recipe: str, corpus: str | None) -> None:
    assert corpus_of(recipe) == corpus
    rows = published_rows(recipe)
    assert {row.corpus for row in rows} == ({corpus} if corpus else set())


def test_rows_are_as_long_as_their_measure_and_rise_with_k() -> None:
    length = {"speech-image": 6, "speech-text": 6, "keywords": 9, "dev": 1}
    for row in PUBLISHED:
        assert len(row.figures) == length[row.measure], row.model
        assert all(0 < figure < 100 for figure in row.figures)
        if length[row.measure] == 6:
            for side in (row.figures[:3], row.figures[3:]):
                assert list(side) == sorted(side), row.model
        assert (row.cutoff in (1, 10)) == (row.measure == "dev")
    assert len({(row.corpus, row.measure, row.model) for row in PUBLISHED}) == len(PUBLISHED)


def test_published_averages_and_random_rows_are_consistent() -> None:
    for row in PUBLISHED:
        if row.measure == "keywords":
            assert sum(row.figures[:8]) / 8 == pytest.approx(row.figures[8], abs=0.051)
        if row.measure == "speech-text" and row.model == "Random":
            # Five captions are right. There are as many candidates as test utterances.
            most = TEST_POOLS[row.corpus][0]
            chance = [100 * (1 - ((1 - k / most) ** 5)) for k in (1, 5, 10)]
            assert row.figures[:3] == pytest.approx(chance, abs=0.011)


def test_the_figures_of_the_competitors_are_there() -> None:
    flickr = {
        row.model: row.figures for row in published_rows("base-parallel-flickr8k") if row.measure == "speech-image"
    }
    assert flickr["FaST-VGS CO"] == (26.6, 56.4, 68.8, 36.2, 66.1, 76.5)
    assert flickr["MILAN"][0] == 33.2
    assert flickr["Parallel Large"] == (39.1, 72.0, 83.0, 54.5, 84.5, 93.2)
    coco = {
        row.model: row.figures for row in published_rows("large-parallel-spokencoco") if row.measure == "speech-image"
    }
    assert coco["FaST-VGS CTF"] == (35.9, 66.3, 77.9, 48.8, 78.2, 87.0)
    assert "MILAN" not in coco
