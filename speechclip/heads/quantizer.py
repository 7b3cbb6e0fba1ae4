"""The choice of a token for each keyword (docs/model.md, "Cascaded head"), and how varied choices are."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from speechclip.heads.output import Keywords


class Quantizer(nn.Module):
    """The nearest token by cosine; backwards as if the choice were a softmax at the temperature (straight-through).

    The temperature goes by its official name `curr_temp`: a buffer, or where learnable a parameter.
    """

    directions: Float[Tensor, "vocabulary width"]
    barred: Int[Tensor, " barred"]
    curr_temp: Float[Tensor, " 1"]

    def __init__(
        self,
        embeddings: Float[Tensor, "vocabulary width"],
        barred: Int[Tensor, " barred"],
        temperature: float,
        *,
        is_learnable: bool,
    ) -> None:
        super().__init__()
        self.register_buffer("directions", F.normalize(embeddings, dim=-1, eps=1e-8), persistent=False)
        self.register_buffer("barred", barred, persistent=False)
        start = torch.tensor([temperature])
        if is_learnable:
            self.curr_temp = nn.Parameter(start)
        else:
            self.register_buffer("curr_temp", start)

    def cosines(self, queries: Float[Tensor, "*slots width"]) -> Float[Tensor, "*slots vocabulary"]:
        """The cosine of each query to every token, minus infinity for those that no keyword may take."""
        return self._bar(self._compare(queries))

    def forward(
        self, queries: Float[Tensor, "batch slots width"], embeddings: Float[Tensor, "vocabulary width"]
    ) -> tuple[Int[Tensor, "batch slots"], Float[Tensor, "batch slots width"]]:
        """Each query's token and that token's embedding; only in train mode does a gradient reach the queries."""
        scores = self._compare(queries)
        tokens = self._bar(scores).argmax(-1)
        if not self.training:
            return tokens, embeddings[tokens]
        # Barred after the division: minus infinity would make a learnable temperature's gradient NaN, as officially.
        shares = self._bar(scores / self.curr_temp).softmax(-1)
        chosen: Tensor = _Choice.apply(shares, tokens, embeddings)  # type: ignore[no-untyped-call]
        return tokens, chosen

    def _compare(self, queries: Tensor) -> Tensor:
        return F.normalize(queries, dim=-1, eps=1e-8) @ self.directions.T

    def _bar(self, scores: Tensor) -> Tensor:
        return scores.index_fill(-1, self.barred, float("-inf"))


class _Choice(torch.autograd.Function):
    """``(y + p - stopgrad(p)) @ embeddings`` for the one-hot y of the tokens: forward that is just the rows."""

    @staticmethod
    def forward(ctx: Any, shares: Tensor, tokens: Tensor, embeddings: Tensor) -> Tensor:
        ctx.embeddings = embeddings
        return embeddings[tokens]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0] @ ctx.embeddings.T, None, None


@dataclass(frozen=True)
class UsageFigures:
    """How much of the vocabulary is used: `code_perplexity` by the choices, `prob_perplexity` by ``softmax(cosines)``.

    `ent_per_t` is the mean entropy of that softmax in each slot. The names are those of the official logs.
    """

    code_perplexity: float
    prob_perplexity: float
    ent_per_t: tuple[float, ...]


class Usage:
    """Adds up batches of keywords chosen by one quantiser."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer
        size = len(quantizer.directions)
        self._chosen = torch.zeros(size, dtype=torch.float64)
        self._shares = torch.zeros(size, dtype=torch.float64)
        self._entropies = torch.zeros(0, dtype=torch.float64)
        self._rows = torch.zeros(0, dtype=torch.float64)

    @torch.no_grad()
    def add(self, keywords: Keywords) -> None:
        """Count these keywords in; slots past a row's count are left out."""
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
        """The figures of all keywords so far."""
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
