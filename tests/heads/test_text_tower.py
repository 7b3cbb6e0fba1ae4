import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor, nn

from speechclip.encoders.clip import _TINY, load_text_weights
from speechclip.encoders.prepare import clip_tokens
from speechclip.encoders.untrained import fill_untrained
from speechclip.errors import InvalidInput
from speechclip.heads import TextTower

CAPTIONS = ["a dog runs", "two children with umbrellas watch an old train", "snow"]
TOKENS = torch.tensor(np.stack([clip_tokens(caption) for caption in CAPTIONS])).long()
# Not sorted by id, as an official vocabulary is not.
VOCABULARY = sorted(set(TOKENS.flatten().tolist()), key=lambda token: token * 7919 % 49409)


def clip(**options: object) -> open_clip.CLIP:
    text = _TINY["text_cfg"] | {name: value for name, value in options.items() if name != "quick_gelu"}
    config = _TINY | {"text_cfg": text, "quick_gelu": bool(options.get("quick_gelu"))}
    model = fill_untrained(open_clip.CLIP(**config)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # Untrained biases are zero and untrained norms change nothing. A tower that forgets them would pass.
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def tower(model: open_clip.CLIP, *, is_quick_gelu: bool = False) -> TextTower:
    return TextTower(model.state_dict(), num_heads=2, is_quick_gelu=is_quick_gelu, vocabulary=VOCABULARY)


def keywords(of: TextTower) -> tuple[Tensor, Tensor]:
    """The tokens of the captions as keywords, and the number of keywords of each caption."""
    counts = (TOKENS == 49407).int().argmax(1) - 1
    places = torch.tensor([[VOCABULARY.index(token) for token in row] for row in TOKENS[:, 1:-1].tolist()])
    return of.embeddings[places], counts


@pytest.mark.parametrize("options", [{}, {"quick_gelu": True}, {"proj_type": "none"}, {"proj_bias": True}])
def test_a_captions_own_tokens_as_keywords_give_what_open_clip_gives_for_the_caption(options):
    model = clip(**options)
    made = tower(model, is_quick_gelu=bool(options.get("quick_gelu")))
    with torch.no_grad():
        expected = model.encode_text(TOKENS)
    assert made.joint_width == expected.shape[1]
    torch.testing.assert_close(made(*keywords(made)), expected, atol=1e-5, rtol=0)


def test_the_kind_of_gelu_matters():
    model = clip(quick_gelu=True)
    made = tower(model)
    assert (made(*keywords(made)) - model.encode_text(TOKENS)).abs().max() > 1e-3


def test_the_weights_of_a_named_clip_make_a_tower():
    weights = load_text_weights("clip:untrained-tiny")
    made = TextTower(
        weights.tensors, num_heads=weights.num_heads, is_quick_gelu=weights.is_quick_gelu, vocabulary=VOCABULARY
    )
    expected = fill_untrained(open_clip.CLIP(**_TINY)).eval().encode_text(TOKENS)
    torch.testing.assert_close(made(*keywords(made)), expected.detach(), atol=1e-5, rtol=0)


def test_rows_depend_neither_on_each_other_nor_on_slots_past_their_count():
    made = tower(clip())
    chosen, counts = keywords(made)
    together = made(chosen, counts)
    for row, count in enumerate(counts):
        alone = made(chosen[row : row + 1, :count], counts[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-6, rtol=0)
    spoilt = torch.where((torch.arange(75) < counts[:, None])[:, :, None], chosen, 1e4)
    torch.testing.assert_close(made(spoilt, counts), together, atol=0, rtol=0)


def test_only_the_positions_that_a_row_needs_are_computed():
    made = tower(clip())
    seen = []
    made.blocks[0].register_forward_hook(lambda block, inputs, output: seen.append(output.shape[1]))
    made(torch.zeros(2, 75, 64), torch.tensor([3, 8]))
    assert seen == [10]


def test_a_gradient_reaches_the_keywords_and_nothing_of_the_tower_is_trained_or_stored():
    made = tower(clip())
    chosen, counts = keywords(made)
    chosen.requires_grad_()
    made(chosen, counts).sum().backward()
    is_read = torch.arange(75) < counts[:, None]
    assert (chosen.grad[is_read].abs().sum(-1) > 0).all()
    assert (chosen.grad[~is_read] == 0).all()
    holder = nn.Sequential(made)
    assert not list(holder.named_parameters())
    assert not holder.state_dict()
    assert {buffer.device.type for buffer in holder.to("meta").buffers()} == {"meta"}


def test_the_vocabularys_order_is_kept_and_padding_start_and_end_are_excluded():
    model = clip()
    made = tower(model)
    assert torch.equal(made.embeddings, model.token_embedding.weight[VOCABULARY].detach())
    assert sorted(VOCABULARY[place] for place in made.excluded.tolist()) == [0, 49406, 49407]
    with torch.no_grad():
        model.token_embedding.weight.zero_()
    assert made.embeddings.abs().sum() > 0


def test_a_tower_that_is_not_clips_own_is_refused():
    weights = dict(clip().state_dict())
    with pytest.raises(InvalidInput, match="ls_1"):
        TextTower(
            weights | {"transformer.resblocks.1.ls_1.gamma": torch.ones(64)},
            num_heads=2,
            is_quick_gelu=False,
            vocabulary=VOCABULARY,
        )
    weights.pop("positional_embedding")
    with pytest.raises(InvalidInput, match="positional_embedding missing"):
        TextTower(weights, num_heads=2, is_quick_gelu=False, vocabulary=VOCABULARY)
