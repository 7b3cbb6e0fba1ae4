import numpy as np
import pytest
import torch

from speechclip.evaluation.token_space import TokenSpace, top_positions


def falling(scores: torch.Tensor, count: int) -> list[list[int]]:
    return [
        sorted(range(len(row)), key=lambda place: (-row[place], place))[:count] for row in scores.tolist()
    ]  # fmt: skip


@pytest.mark.parametrize("num_levels", [2, 3, 100])
def test_the_top_positions_are_sorted_and_of_equal_scores_the_first_wins(num_levels: int) -> None:
    # With few levels almost every row has equal scores among its top five, and also at their end.
    scores = torch.from_numpy(np.random.default_rng(0).integers(0, num_levels, (200, 13)).astype(np.float32))
    assert top_positions(scores, 5).tolist() == falling(scores, 5)
    assert top_positions(scores, 13).tolist() == falling(scores, 13)
    assert top_positions(scores[:0], 5).shape == (0, 5)


def test_equal_tokens_have_equal_scores_at_every_position() -> None:
    generator = torch.Generator().manual_seed(0)
    token = torch.randn(1, 512, generator=generator)
    space = TokenSpace(token.repeat(41, 1))
    queries = torch.randn(33, 512, generator=generator)
    assert top_positions(space.scores(queries), 5).tolist() == [[0, 1, 2, 3, 4]] * 33


def test_cosines_ignore_lengths_and_a_token_is_nearest_to_itself() -> None:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(30, 8, generator=generator) * torch.arange(1, 31)[:, None]
    space = TokenSpace(tokens)
    cosines = space.cosines(tokens * 3)
    for row in range(30):
        for column in range(30):
            a, b = tokens[row].double(), tokens[column].double()
            assert cosines[row, column].item() == pytest.approx((a @ b / (a.norm() * b.norm())).item(), abs=1e-6)
    assert top_positions(space.scores(tokens), 1)[:, 0].tolist() == list(range(30))
    assert not space.cosines(torch.zeros(1, 8)).isnan().any()


def test_the_pseudo_inverse_gives_the_coefficients_on_the_tokens() -> None:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(5, 16, generator=generator)
    # With fewer tokens than dimensions, a mixture of them has only one set of coefficients.
    shares = torch.randn(7, 5, generator=generator)
    found = TokenSpace(tokens, "pseudo-inverse").scores(shares @ tokens)
    torch.testing.assert_close(found, shares, atol=1e-5, rtol=0)
