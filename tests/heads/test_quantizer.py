import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from speechclip.heads import Keywords
from speechclip.heads.quantizer import Quantizer, Usage

EXCLUDED = torch.tensor([0, 2, 3])


def quantizer(*, is_learnable: bool = False) -> tuple[Quantizer, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(40, 6, generator=generator)
    made = Quantizer(embeddings, EXCLUDED, 0.1, is_learnable=is_learnable)
    return made, embeddings, torch.randn(4, 3, 6, generator=generator)


def test_the_nearest_token_by_cosine_is_taken_and_never_an_excluded_one():
    made, embeddings, queries = quantizer()
    made.eval()
    cosines = F.cosine_similarity(queries[:, :, None], embeddings, dim=-1, eps=1e-8)
    torch.testing.assert_close(made.cosines(queries)[..., 4:], cosines[..., 4:], atol=1e-6, rtol=0)
    tokens, chosen = made(queries, embeddings)
    cosines[..., EXCLUDED] = -torch.inf
    assert torch.equal(tokens, cosines.argmax(-1))
    assert torch.equal(chosen, embeddings[tokens])
    assert not made(queries.clone().requires_grad_(), embeddings)[1].requires_grad
    own, _ = made(3 * embeddings[None], embeddings)
    is_excluded = torch.isin(torch.arange(40), EXCLUDED)
    assert torch.equal(own[0][~is_excluded], torch.arange(40)[~is_excluded])
    assert not torch.isin(own[0], EXCLUDED).any()


@pytest.mark.parametrize("is_learnable", [False, True])
def test_training_is_straight_through_a_softmax_at_the_temperature(is_learnable):
    made, embeddings, queries = quantizer(is_learnable=is_learnable)
    weights = torch.randn(queries.shape)
    mine, other = (queries.clone().requires_grad_() for _ in range(2))
    tokens, chosen = made(mine, embeddings)
    assert torch.equal(chosen, embeddings[tokens])
    (chosen * weights).sum().backward()
    temperature = torch.tensor([0.1], requires_grad=True)
    cosines = F.cosine_similarity(other[:, :, None], embeddings, dim=-1, eps=1e-8)
    shares = (cosines / temperature).index_fill(-1, EXCLUDED, -torch.inf).softmax(-1)
    hard = F.one_hot(tokens, 40)
    ((hard + shares - shares.detach()) @ embeddings * weights).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-5)
    assert [name for name, _ in made.named_parameters()] == (["curr_temp"] if is_learnable else [])
    assert list(made.state_dict()) == ["curr_temp"]
    if is_learnable:
        torch.testing.assert_close(made.curr_temp.grad, temperature.grad, atol=1e-5, rtol=1e-5)


def test_usage_of_batches_is_that_of_all_their_rows_and_ignores_empty_slots():
    made, embeddings, queries = quantizer()
    whole, parts = Usage(made), Usage(made)
    whole.add(keywords(made, embeddings, queries, [3, 3, 2, 3]))
    parts.add(keywords(made, embeddings, queries[:2], [3, 3]))
    parts.add(keywords(made, embeddings, torch.cat([queries[2:], torch.randn(2, 2, 6)], 1), [2, 3]))
    found, expected = parts.figures(), whole.figures()
    assert found.code_perplexity == pytest.approx(expected.code_perplexity, rel=1e-6)
    assert found.prob_perplexity == pytest.approx(expected.prob_perplexity, rel=1e-6)
    assert found.ent_per_t == pytest.approx(expected.ent_per_t, rel=1e-6)
    tokens = made.eval()(queries, embeddings)[0].flatten()[[*range(8), 9, 10, 11]]
    shares = torch.bincount(tokens).double() / 11
    entropy = -(shares * shares.clamp(min=1e-30).log()).sum()
    assert found.code_perplexity == pytest.approx(entropy.exp().item(), rel=1e-4)


def keywords(made: Quantizer, embeddings: Tensor, queries: Tensor, counts: list[int]) -> Keywords:
    tokens, chosen = made(queries, embeddings)
    return Keywords(tokens=tokens, queries=queries, chosen=chosen, counts=torch.tensor(counts))
