"""Chooses a token of the vocabulary for each keyword, and measures how many tokens a head uses.

Source: docs/model.md, "Cascaded head", steps 5 to 7.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from speechclip.heads.output import Keywords


class Quantizer(nn.Module):
    """Chooses the token with the largest cosine to each query.

    For a query z and the token embeddings e_1 ... e_V:

        c_i     = cosine(z, e_i), and minus infinity for excluded tokens
        chosen  = e_j, with j the place of the largest c_i
        p       = softmax(c / temperature)

    A choice has no gradient. So in training the gradient is that of the mean of all token embeddings with the weights
    p (a straight-through estimator). For example, with the cosines 0.9 and 0.7 and the temperature 0.1, the first token
    is chosen and p is 0.88 and 0.12.

    `embeddings` are the token embeddings, `excluded` the places that are never chosen. The temperature has the official
    name `curr_temp`. It is a parameter if it is learned, else a buffer.
    """

    directions: Float[Tensor, "vocabulary width"]
    excluded: Int[Tensor, " excluded"]
    curr_temp: Float[Tensor, " 1"]

    def __init__(
        self,
        embeddings: Float[Tensor, "vocabulary width"],
        excluded: Int[Tensor, " excluded"],
        temperature: float,
        *,
        is_learnable: bool,
    ) -> None:
        super().__init__()
        self.register_buffer("directions", F.normalize(embeddings, dim=-1, eps=1e-8), persistent=False)
        self.register_buffer("excluded", excluded, persistent=False)
        start = torch.tensor([temperature])
        if is_learnable:
            self.curr_temp = nn.Parameter(start)
        else:
            self.register_buffer("curr_temp", start)

    def cosines(self, queries: Float[Tensor, "*slots width"]) -> Float[Tensor, "*slots vocabulary"]:
        """The cosine of each query to every token. Excluded tokens have minus infinity."""
        return self._exclude(self._compare(queries))

    def forward(
        self, queries: Float[Tensor, "batch slots width"], embeddings: Float[Tensor, "vocabulary width"]
    ) -> tuple[Int[Tensor, "batch slots"], Float[Tensor, "batch slots width"]]:
        """The place of the token chosen for each query, and the embedding of that token.

        Only in train mode do the queries get a gradient.
        """
        scores = self._compare(queries)
        tokens = self._exclude(scores).argmax(-1)
        if not self.training:
            return tokens, embeddings[tokens]
        # The tokens are excluded after the division. Minus infinity divided by a learned temperature would give this a
        # NaN as gradient, as in the official code.
        shares = self._exclude(scores / self.curr_temp).softmax(-1)
        chosen: Tensor = _Choice.apply(shares, tokens, embeddings)  # type: ignore[no-untyped-call]
        return tokens, chosen

    def _compare(self, queries: Tensor) -> Tensor:
        return F.normalize(queries, dim=-1, eps=1e-8) @ self.directions.T

    def _exclude(self, scores: Tensor) -> Tensor:
        return scores.index_fill(-1, self.excluded, float("-inf"))


class _Choice(torch.autograd.Function):
    """``(y + p - stopgrad(p)) @ embeddings``, where y is the one-hot row of the chosen token.

    p cancels in the forward pass, so the result is the chosen embedding. p gets the gradient of ``p @ embeddings``.
    """

    @staticmethod
    def forward(ctx: Any, shares: Tensor, tokens: Tensor, embeddings: Tensor) -> Tensor:
        ctx.embeddings = embeddings
        return embeddings[tokens]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0] @ ctx.embeddings.T, None, None


@dataclass(frozen=True)
class UsageFigures:
    """How many different tokens the keywords use. The names are those of the official logs.

    A perplexity is the exponential of an entropy. It is 1 if one token has the whole share and n if n tokens have equal
    shares.

    - `code_perplexity`: the perplexity of the shares of the chosen tokens.
    - `prob_perplexity`: the perplexity of the mean of ``softmax(cosines)`` over all keywords.
    - `ent_per_t`: for each slot, the mean entropy of ``softmax(cosines)``, in nats.
    """

    code_perplexity: float
    prob_perplexity: float
    ent_per_t: tuple[float, ...]


class Usage:
    """Counts the tokens in batches of keywords, for the figures of one quantizer."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer
        size = len(quantizer.directions)
        self._chosen = torch.zeros(size, dtype=torch.float64)
        self._shares = torch.zeros(size, dtype=torch.float64)
        self._entropies = torch.zeros(0, dtype=torch.float64)
        self._rows = torch.zeros(0, dtype=torch.float64)

    @torch.no_grad()
    def add(self, keywords: Keywords) -> None:
        """Add the keywords of a batch. Slots after a row's count are not counted."""
        num_slots = keywords.tokens.shape[1]
        self._widen(num_slots)
        for slot in range(num_slots):
            is_there = slot < keywords.counts
            tokens, queries = keywords.tokens[is_there, slot], keywords.queries[is_there, slot]
            shares = self.quantizer.cosines(queries).softmax(-1)
            self._chosen += torch.bincount(tokens, minlength=len(self._chosen)).cpu()
            self._shares += shares.sum(0, dtype=torch.float64).cpu()
            self._entropies[slot] += -(shares * (shares + 1e-9).log()).sum().double().cpu()
            self._rows[slot] += len(tokens)

    def figures(self) -> UsageFigures:
        """The figures of all keywords that were added."""
        count = self._rows.sum()
        return UsageFigures(
            code_perplexity=_perplexity(self._chosen / count),
            prob_perplexity=_perplexity(self._shares / count),
            ent_per_t=tuple((self._entropies / self._rows)[self._rows > 0].tolist()),
        )

    def _widen(self, num_slots: int) -> None:
        more = max(0, num_slots - len(self._rows))
        self._entropies, self._rows = F.pad(self._entropies, (0, more)), F.pad(self._rows, (0, more))


def _perplexity(shares: Float[Tensor, " vocabulary"]) -> float:
    return float((-(shares * (shares + 1e-7).log()).sum()).exp())
