from pathlib import Path

import msgspec
import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from speechclip.errors import InvalidInput
from speechclip.heads import ParallelConfig, ParallelHead
from speechclip.training.losses import ContrastiveLoss

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def tiny(**options: object) -> ParallelHead:
    torch.manual_seed(0)
    config = ParallelConfig(
        num_layers=3, width=16, image_width=12, embedding_width=12, feed_forward_width=32, num_heads=4
    )
    return msgspec.structs.replace(config, **options).build()


def tiny_frames(rows: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([9, 1, 4, 7, 3, 8][:rows])
    return torch.randn(rows, 3, 9, 16, generator=generator), lengths


def official(name: str) -> tuple[ParallelHead, dict[str, object]]:
    case = torch.load(GOLDEN / name, weights_only=True)
    layers, _, _, width = case["hidden_states"].shape
    embedding = case["image_feat"].shape[1]
    head = ParallelConfig(
        num_layers=layers,
        width=width,
        image_width=embedding,
        embedding_width=embedding,
        feed_forward_width=case["state"]["self_att.model.layers.0.linear1.weight"].shape[0],
    ).build()
    head.load_state_dict(case["state"] | {"weighted_sum.weights": case["ws_weights"]})
    return head, case


@pytest.mark.parametrize("name", ["parallel_eval.pt", "parallel_train.pt"])
def test_embeddings_and_loss_agree_with_the_official_modules(name):
    head, case = official(name)
    frames, lengths = case["hidden_states"].transpose(0, 1), case["lens"]
    track = head.weighted_sum(frames, lengths)
    torch.testing.assert_close(track, case["weighted_sum"], atol=1e-5, rtol=0)
    raw = head.linear_proj(head.self_att(head.cls[0], track, lengths, None)[:, 0])
    torch.testing.assert_close(raw, case["raw"], atol=1e-5, rtol=0)
    embedding = head(frames, lengths).embedding
    torch.testing.assert_close(embedding, case["normed"], atol=1e-5, rtol=0)
    loss = ContrastiveLoss(1 / case["temperature"])(embedding, head.embed_images(case["image_feat"]), case["ids"])
    torch.testing.assert_close(loss, case["loss"], atol=1e-5, rtol=0)


def test_gradients_agree_with_the_official_modules():
    head, case = official("parallel_train.pt")
    embedding = head(case["hidden_states"].transpose(0, 1), case["lens"]).embedding
    ContrastiveLoss(1 / case["temperature"])(embedding, case["image_feat"], case["ids"]).backward()
    expected = {name.replace("ws.weights", "weighted_sum.weights"): value for name, value in case["grads"].items()}
    found = {name: parameter.grad for name, parameter in head.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / gradient.norm()
        assert error < 1e-4, f"{name}: {error}"


@pytest.mark.parametrize("normalize", ["none", "s3prl", "method1", "method2"])
def test_only_the_cls_row_gives_what_the_whole_transformer_layer_gives(normalize):
    head = tiny(normalize=normalize).eval()
    frames, lengths = tiny_frames()
    track = head.weighted_sum(frames, lengths)
    sequence = torch.cat([head.cls.expand(len(frames), 1, -1), track], dim=1)
    is_padding = torch.arange(sequence.shape[1]) >= lengths[:, None] + 1
    # Train mode without dropout, because eval mode uses another implementation (the fast path).
    encoder = head.self_att.model.train()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    encoder.layers[0].self_attn.dropout = 0.0
    whole = head.linear_proj(encoder(sequence, src_key_padding_mask=is_padding)[:, 0])
    torch.testing.assert_close(head(frames, lengths).embedding, F.normalize(whole, dim=-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("layers", "width", "embedding", "is_learnable", "normalize", "expected"),
    [(13, 768, 512, False, "none", 7_483_917), (25, 1024, 768, True, "s3prl", 13_386_522)],
)
def test_the_published_parameter_counts_hold(layers, width, embedding, is_learnable, normalize, expected):
    head = ParallelConfig(
        num_layers=layers,
        width=width,
        image_width=embedding,
        embedding_width=embedding,
        feed_forward_width=4 * width,
        normalize=normalize,
    ).build()
    trained = [*head.parameters(), *ContrastiveLoss(is_learnable=is_learnable).parameters()]
    assert sum(parameter.numel() for parameter in trained) == expected


@pytest.mark.parametrize("normalize", ["none", "s3prl", "method1", "method2"])
def test_an_embedding_depends_neither_on_its_batch_nor_on_what_lies_in_the_padding(normalize):
    head = tiny(normalize=normalize).eval()
    frames, lengths = tiny_frames()
    together = head(frames, lengths).embedding
    assert isinstance(together, Float[Tensor, "5 12"])
    for row, length in enumerate(lengths):
        alone = head(frames[row : row + 1, :, :length], lengths[row : row + 1]).embedding
        torch.testing.assert_close(alone[0], together[row], atol=1e-6, rtol=0)
        frames[row, :, length:] = 1e4
    torch.testing.assert_close(head(frames, lengths).embedding, together, atol=1e-6, rtol=0)


def test_dropout_depends_on_the_rows_seed_and_on_nothing_else():
    head = tiny(dropout=0.3).train()
    frames, lengths = tiny_frames()
    seeds = torch.tensor([11, 12, 13, 14, 15])
    dropped = head(frames, lengths, seeds).embedding
    assert (dropped - head(frames, lengths).embedding).abs().max() > 0.01
    assert (dropped - head(frames, lengths, seeds + 1).embedding).abs().max() > 0.01
    part = [2, 4]
    alone = head(frames[part][:, :, :4], lengths[part], seeds[part]).embedding
    torch.testing.assert_close(alone, dropped[part], atol=1e-6, rtol=0)
    torch.testing.assert_close(head.eval()(frames, lengths, seeds).embedding, head(frames, lengths).embedding)


def test_half_precision_frames_are_mixed_in_full_precision():
    head = tiny()
    frames, lengths = tiny_frames()
    halves = frames.half()
    torch.testing.assert_close(head(halves, lengths).embedding, head(halves.float(), lengths).embedding, atol=0, rtol=0)
    assert head(halves, lengths).embedding.dtype == torch.float32


def test_image_vectors_are_normalised_after_the_projection():
    vectors = torch.randn(4, 20)
    head = tiny(image_width=20, image_projection=True)
    expected = F.normalize(F.linear(vectors, head.image_projection.weight, head.image_projection.bias), dim=-1)
    torch.testing.assert_close(head.embed_images(vectors), expected)
    plain = tiny().embed_images(3 * torch.ones(2, 12))
    torch.testing.assert_close(plain.norm(dim=-1), torch.ones(2))


def test_sizes_that_do_not_fit_together_are_refused():
    with pytest.raises(InvalidInput, match=r"12 .* 20"):
        tiny(image_width=20)
    with pytest.raises(InvalidInput, match="5 attention heads"):
        tiny(num_heads=5)
