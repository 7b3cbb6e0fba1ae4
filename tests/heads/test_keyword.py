import copy
from pathlib import Path

import msgspec
import pytest
import torch
from jaxtyping import Float
from support.two_workers import Worker, run_two
from torch import Tensor
from torch.nn import functional as F

from speechclip.errors import InvalidInput
from speechclip.heads import HeadOutput, KeywordConfig, KeywordHead, TextTower, attention, cif, projection
from speechclip.heads.dropout import drop
from speechclip.heads.quantizer import Usage
from speechclip.training.losses import ContrastiveLoss

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def official(name: str) -> tuple[KeywordHead, dict[str, object]]:
    case = torch.load(GOLDEN / name, weights_only=True)
    layers, _, _, width = case["hidden_states"].shape
    vocabulary, keyword_width = case["clip_text"]["token_embedding.weight"].shape
    # The recorded text encoder has only the tokens of the vocabulary.
    tower = TextTower(
        case["clip_text"],
        num_heads=case["text_heads"],
        is_quick_gelu=True,
        vocabulary=range(vocabulary),
        start=2,
        end=3,
    )
    head = KeywordConfig(
        num_layers=layers,
        width=width,
        image_width=case["image_feat"].shape[1],
        keyword_width=keyword_width,
        vocabulary_size=vocabulary,
    ).build(tower)
    head.load_state_dict(case["state"] | {"weighted_sum.weights": case["ws_weights"]})
    return head.train(name == "cascaded_train.pt"), case


@pytest.mark.parametrize("name", ["cascaded_eval.pt", "cascaded_train.pt"])
def test_keywords_embeddings_and_loss_agree_with_the_official_modules(name):
    head, case = official(name)
    frames, lengths = case["hidden_states"].transpose(0, 1), case["lens"]
    output = head(frames, lengths)
    assert output.parallel is None
    assert torch.equal(output.keywords.tokens, case["extra"]["subword_argmax"])
    assert output.keywords.counts.tolist() == [8] * len(lengths)
    torch.testing.assert_close(output.keywords.chosen, case["extra"]["keywords"], atol=1e-7, rtol=0)
    torch.testing.assert_close(output.embedding, case["normed"], atol=1e-5, rtol=0)
    raw = head.tower(output.keywords.chosen, output.keywords.counts)
    torch.testing.assert_close(raw, case["raw"], atol=1e-5, rtol=0)
    loss = ContrastiveLoss(1 / case["temperature"])(
        output.embedding, head.embed_images(case["image_feat"]), case["ids"]
    )
    torch.testing.assert_close(loss, case["loss"], atol=1e-5, rtol=0)
    found = head.state_dict()
    for buffer in ("running_mean", "running_var", "num_batches_tracked"):
        expected = case["state_after"][f"bn_layer.bn_layer.{buffer}"]
        torch.testing.assert_close(found[f"bn_layer.bn_layer.{buffer}"], expected, atol=1e-6, rtol=0)


def test_gradients_agree_with_the_official_modules():
    head, case = official("cascaded_train.pt")
    embedding = head(case["hidden_states"].transpose(0, 1), case["lens"]).embedding
    ContrastiveLoss(1 / case["temperature"])(embedding, case["image_feat"], case["ids"]).backward()
    expected = {name.replace("ws.weights", "weighted_sum.weights"): value for name, value in case["grads"].items()}
    found = {name: parameter.grad for name, parameter in head.named_parameters()}
    assert found.keys() == expected.keys()
    # BatchNorm removes what is added to all rows, so the gradient of these is only a rounding error.
    absorbed = {"linear_proj.bias", "self_att.attentionBlock_Norm.bias"}
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm()
        assert error < (1e-4 if name in absorbed else 1e-4 * gradient.norm()), f"{name}: {error}"
    assert all(found[name].abs().max() < 1e-5 for name in absorbed)


@pytest.mark.parametrize("name", ["cascaded_eval.pt", "cascaded_train.pt"])
def test_usage_of_the_vocabulary_agrees_with_the_official_figures(name):
    head, case = official(name)
    usage = Usage(head.vector_quantizer)
    usage.add(head(case["hidden_states"].transpose(0, 1), case["lens"]).keywords)
    found, expected = usage.figures(), case["extra"]
    assert found.code_perplexity == pytest.approx(expected["code_perplexity"].item(), rel=1e-6)
    assert found.prob_perplexity == pytest.approx(expected["prob_perplexity"].item(), rel=1e-6)
    assert found.ent_per_t == pytest.approx(expected["ent_per_t"].tolist(), abs=1e-5)


# Outputs of the official SpeechCLIP+ branches for one track of frames, without dropout.
RECORDED = [
    f"{kind}, {mode}"
    for kind in ("hybrid, transformer", "hybrid, two layers", "cascaded plus", "hybrid plus")
    for mode in ("step 0", "step 9999", "eval")
    if "plus" in kind or mode != "step 9999"
]


@pytest.mark.parametrize("name", RECORDED)
def test_hybrid_heads_and_integrate_and_fire_agree_with_the_official_branches(name):
    case = torch.load(GOLDEN / "speechclip_plus.pt", weights_only=True)[name]
    made = TextTower(case["text_weights"], num_heads=2, is_quick_gelu=True, vocabulary=range(30), start=2, end=3)
    head = msgspec.convert(case["config"] | {"type": "keyword"}, KeywordConfig).build(made)
    head.load_state_dict(case["state"] | {"weighted_sum.weights": torch.zeros(1)})
    output = head.train(case["is_training"])(case["frames"][:, None], case["lens"], step=case["step"])
    assert torch.equal(output.keywords.counts, case["counts"])
    assert torch.equal(output.keywords.tokens, case["tokens"])
    torch.testing.assert_close(output.cascaded, case["cascaded"], atol=1e-5, rtol=0)
    total = (output.cascaded * case["directions"]).sum()
    if case["parallel"] is not None:
        torch.testing.assert_close(output.parallel, case["parallel"], atol=1e-5, rtol=0)
        total = total + (output.parallel * case["directions"]).sum()
    for name, value in case["state_after"].items():
        torch.testing.assert_close(head.get_buffer(name), value, atol=1e-6, rtol=0)
    if output.length_errors is not None:
        targets = (case["lens"] / 20).round()
        torch.testing.assert_close(output.length_errors, (case["quantity_out"] - targets).abs(), atol=1e-5, rtol=0)
        total = total + 0.25 * output.length_errors.mean()
    if not case["is_training"]:
        return
    total.backward()
    largest = max(gradient.norm() for gradient in case["grads"].values())
    for name, gradient in case["grads"].items():
        error = (head.get_parameter(name).grad - gradient).norm()
        assert error < 1e-4 * gradient.norm() + 1e-5 * largest, f"{name}: {error}"


# A head of each kind. The weights of CIF are near 0.5, so 9 frames give 3 to 5 keywords.
KINDS: dict[str, dict[str, object]] = {
    "cascaded": {},
    "cascaded, two layers": {"projection": (10,), "num_heads": 2, "batch_norm": "same"},
    "hybrid": {"has_parallel": True, "batch_norm": "each-apart"},
    "hybrid, two layers": {"has_parallel": True, "projection": (10,), "parallel_projection": (9,)},
    "hybrid, transformer": {"has_parallel": True, "block": "transformer", "feed_forward_width": 32, "num_heads": 4},
    "cascaded plus": {"segmentation": "cif", "frames_per_keyword": 2},
    "hybrid plus": {"segmentation": "cif", "frames_per_keyword": 2, "has_parallel": True, "num_heads": 4},
}


def tower(vocabulary: int = 30, width: int = 8, joint: int = 12, blocks: int = 1) -> TextTower:
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.5

    weights = {
        "token_embedding.weight": draw(vocabulary, width),
        "positional_embedding": draw(77, width),
        "text_projection": draw(width, joint),
        "ln_final.weight": draw(width) + 1,
        "ln_final.bias": draw(width),
    }
    for block in range(blocks):
        shapes = {
            "ln_1": (width,),
            "ln_2": (width,),
            "attn.out_proj": (width, width),
            "mlp.c_fc": (4 * width, width),
            "mlp.c_proj": (width, 4 * width),
        }
        prefix = f"transformer.resblocks.{block}."
        weights[f"{prefix}attn.in_proj_weight"], weights[f"{prefix}attn.in_proj_bias"] = (
            draw(3 * width, width),
            draw(3 * width),
        )
        for name, shape in shapes.items():
            weights |= {f"{prefix}{name}.weight": draw(*shape), f"{prefix}{name}.bias": draw(shape[0])}
    return TextTower(weights, num_heads=2, is_quick_gelu=True, vocabulary=range(vocabulary), start=2, end=3)


def tiny(**options: object) -> KeywordHead:
    torch.manual_seed(0)
    config = KeywordConfig(
        num_layers=3, width=16, image_width=12, keyword_width=8, vocabulary_size=30, num_keywords=4, dropout=0.3
    )
    head = msgspec.structs.replace(config, **options).build(tower())
    with torch.no_grad():
        for parameter in head.parameters():
            # Biases of zero and norms of one would hide code that forgets them.
            parameter += 0.1 * torch.randn(parameter.shape)
        for name, buffer in head.bn_layer.named_buffers():
            if name.endswith(("mean", "var")):
                buffer += 0.3 * torch.rand(buffer.shape)
    return head


def tiny_batch() -> tuple[Tensor, Tensor, Tensor]:
    lengths = torch.tensor([9, 1, 4, 7, 3])
    return torch.randn(5, 3, 9, 16, generator=torch.Generator().manual_seed(1)), lengths, torch.arange(11, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_depends_neither_on_its_batch_nor_on_what_lies_in_the_padding(kind):
    head = tiny(**KINDS[kind]).eval()
    frames, lengths, _ = tiny_batch()
    together = head(frames, lengths)
    assert isinstance(together.cascaded, Float[Tensor, "5 12"])
    assert (together.parallel is not None) == ("hybrid" in kind)
    for row, length in enumerate(lengths):
        check_alone(head(frames[row : row + 1, :, :length], lengths[row : row + 1]), together, row)
        frames[row, :, length:] = 1e4
    spoilt = head(frames, lengths)
    torch.testing.assert_close(spoilt.cascaded, together.cascaded, atol=1e-6, rtol=0)
    torch.testing.assert_close(spoilt.embedding, together.embedding, atol=1e-6, rtol=0)


def check_alone(alone: HeadOutput, together: HeadOutput, row: int) -> None:
    count = int(alone.keywords.counts)
    assert count == together.keywords.counts[row]
    assert torch.equal(alone.keywords.tokens[0, :count], together.keywords.tokens[row, :count])
    assert not together.keywords.chosen[row, count:].any()
    assert not together.keywords.queries[row, count:].any()
    torch.testing.assert_close(alone.cascaded[0], together.cascaded[row], atol=1e-6, rtol=0)
    torch.testing.assert_close(alone.embedding[0], together.embedding[row], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.2] * 3),
        ({"block": "transformer", "feed_forward_width": 32}, [0.2] * 6),
        ({"segmentation": "cif"}, [0.2, 0.5, 0.5, 0.2, 0.2]),
        ({"has_parallel": True, "parallel_projection": (10, 10)}, [0.2] * 5),
        (
            {"segmentation": "cif", "has_parallel": True, "parallel_projection": (10,)},
            [0.2, 0.5, 0.5, 0.2, 0.2, 0.2],
        ),
    ],
)
def test_every_dropout_of_a_head_has_its_own_site_and_the_rate_of_its_part(options, expected, monkeypatch):
    seen: list[tuple[int, float]] = []

    def spy(values: Tensor, *, probability: float, seeds: Tensor | None, site: int) -> Tensor:
        seen.append((site, probability))
        return drop(values, probability=probability, seeds=seeds, site=site)

    for part in (attention, cif, projection):
        monkeypatch.setattr(part, "drop", spy)
    frames, lengths, seeds = tiny_batch()
    tiny(dropout=0.2, projection=(10, 10), **options).train()(frames, lengths, seeds)
    assert [rate for _, rate in seen] == expected
    assert len({site for site, _ in seen}) == len(seen)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_depends_on_the_rows_seed_and_on_nothing_else(kind):
    head = tiny(**KINDS[kind]).train()
    # BatchNorm uses its running statistics here. Those of a batch would make its rows depend on each other.
    head.bn_layer.eval()
    frames, lengths, seeds = tiny_batch()
    dropped = head(frames, lengths, seeds, step=9_999)
    for other in (head(frames, lengths, step=9_999), head(frames, lengths, seeds + 1, step=9_999)):
        size = min(other.keywords.queries.shape[1], dropped.keywords.queries.shape[1])
        assert (dropped.keywords.queries[:, :size] - other.keywords.queries[:, :size]).abs().max() > 0.01
        if dropped.parallel is not None:
            assert (dropped.parallel - other.parallel).abs().max() > 0.01
    for row, length in enumerate(lengths):
        part = slice(row, row + 1)
        check_alone(head(frames[part, :, :length], lengths[part], seeds[part], step=9_999), dropped, row)
    evaluated = head.eval()(frames, lengths, seeds)
    assert torch.equal(evaluated.cascaded, head(frames, lengths).cascaded)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "plus" not in kind])
def test_only_the_cls_rows_give_what_the_whole_sequence_gives(kind):
    head = tiny(**KINDS[kind]).eval()
    frames, lengths, _ = tiny_batch()
    track = head.weighted_sum(frames, lengths)
    names = ("parallel_cls", "cascaded_cls") if "hybrid" in kind else ("cls",)
    cls = torch.cat([getattr(head, name) for name in names], dim=1)
    sequence = torch.cat([cls.expand(5, -1, -1), track], dim=1)
    is_padding = torch.arange(sequence.shape[1]) >= lengths[:, None] + cls.shape[1]
    if "transformer" in kind:
        # Train mode without dropout, because eval mode uses another implementation (the fast path).
        encoder = head.self_att.model.train()
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        encoder.layers[0].self_attn.dropout = 0.0
        whole = encoder(sequence, src_key_padding_mask=is_padding)
    else:
        attended, _ = head.self_att.multihead_attn_layer(sequence, sequence, sequence, key_padding_mask=is_padding)
        whole = head.self_att.attentionBlock_Norm(attended + sequence)
    found = head.self_att(cls[0], track, lengths, None)
    torch.testing.assert_close(found, whole[:, : cls.shape[1]], atol=1e-6, rtol=0)
    output = head(frames, lengths)
    queries = head.bn_layer(head.linear_proj(whole[:, cls.shape[1] - 4 : cls.shape[1]], None, 6), head.together)
    torch.testing.assert_close(output.keywords.queries, queries, atol=1e-6, rtol=0)
    if "hybrid" in kind:
        expected = F.normalize(head.parallel_proj(whole[:, 0], None, 16), dim=-1)
        torch.testing.assert_close(output.parallel, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "plus" in kind])
def test_cif_reads_frames_that_have_attended_to_all_frames(kind):
    head = tiny(**KINDS[kind]).eval()
    frames, lengths, _ = tiny_batch()
    sequence, count = head.weighted_sum(frames, lengths), int("hybrid" in kind)
    if count:
        sequence = torch.cat([head.cls.expand(5, -1, -1), sequence], dim=1)
    is_padding = torch.arange(sequence.shape[1]) >= lengths[:, None] + count
    attended, _ = head.self_att.multihead_attn_layer(sequence, sequence, sequence, key_padding_mask=is_padding)
    whole = head.self_att.attentionBlock_Norm(attended + sequence)
    found = head.self_att.whole(sequence, lengths + count, None)
    torch.testing.assert_close(found[~is_padding], whole[~is_padding], atol=1e-6, rtol=0)
    fired = head.downsampling(whole[:, count:], lengths, None, is_rescaled=False, together=head.together)
    output = head(frames, lengths)
    assert torch.equal(output.keywords.counts, fired.counts)
    torch.testing.assert_close(output.length_errors, fired.length_errors, atol=1e-6, rtol=0)
    queries = head.bn_layer(head.linear_proj(fired.slots), head.together)
    is_there = torch.arange(queries.shape[1]) < fired.counts[:, None]
    torch.testing.assert_close(output.keywords.queries[is_there], queries[is_there], atol=1e-6, rtol=0)
    # Dropout uses other code. If it keeps every weight, the result must be the same.
    head.self_att.dropout = 1e-12
    slow = head.self_att.whole(sequence, lengths + count, torch.arange(5))
    torch.testing.assert_close(slow[~is_padding], whole[~is_padding], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [0, 9_999])
def test_two_workers_make_what_one_makes_of_the_whole_batch(kind, step):
    whole = tiny(**KINDS[kind]).train()
    heads = [copy.deepcopy(whole) for _ in range(2)]
    batch, images, groups = tiny_batch(), F.normalize(torch.randn(5, 12), dim=-1), torch.arange(5)
    shares = [slice(0, 2), slice(2, 5)]

    def loss(output: HeadOutput, gather) -> Tensor:
        branches = [branch for branch in (output.parallel, output.cascaded, output.length_errors) if branch is not None]
        parts = [gather(branch) for branch in branches]
        total = sum(ContrastiveLoss()(part, images, groups) for part in parts if part.dim() == 2)
        return total + sum(part.mean() for part in parts if part.dim() == 1)

    expected = whole(*batch, step=step)
    loss(expected, lambda rows: rows).backward()

    def work(worker: Worker) -> HeadOutput:
        head = heads[worker.rank]
        head.work_together(worker)
        output = head(*(part[shares[worker.rank]] for part in batch), step=step)
        loss(output, worker.gather).backward()
        return output

    found = run_two(work)
    for rank, output in enumerate(found):
        torch.testing.assert_close(output.cascaded, expected.cascaded[shares[rank]], atol=1e-6, rtol=0)
        torch.testing.assert_close(output.embedding, expected.embedding[shares[rank]], atol=1e-6, rtol=0)
        # BatchNorm over five rows divides rounding by a small deviation.
        torch.testing.assert_close(output.keywords.queries, expected.keywords.queries[shares[rank]], atol=5e-6, rtol=0)
        for name, value in whole.bn_layer.named_buffers():
            torch.testing.assert_close(heads[rank].bn_layer.get_buffer(name), value, atol=1e-6, rtol=0)
    largest = max(parameter.grad.norm() for parameter in whole.parameters())
    for name, parameter in whole.named_parameters():
        summed = sum(head.get_parameter(name).grad for head in heads)
        assert (summed - parameter.grad).norm() < 5e-6 * largest, name


@pytest.mark.parametrize(
    ("sizes", "options", "is_learnable", "expected"),
    [
        ((13, 768, 512), {}, False, 2_771_981),
        ((25, 1024, 768), {"normalize": "s3prl", "projection": (1024,)}, True, 6_057_754),
        ((25, 1024, 768), {"normalize": "s3prl"}, True, 5_008_154),
    ],
)
def test_the_published_parameter_counts_hold(sizes, options, is_learnable, expected):
    layers, width, joint = sizes
    head = KeywordConfig(
        num_layers=layers, width=width, image_width=joint, keyword_width=joint, vocabulary_size=30, **options
    ).build(tower(30, joint, joint, blocks=0))
    trained = [*head.parameters(), *ContrastiveLoss(is_learnable=is_learnable).parameters()]
    assert sum(parameter.numel() for parameter in trained) == expected


OWN = {"weighted_sum.weights", "vector_quantizer.curr_temp"}
NORM = {
    f"bn_layer.bn_layer.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
}
ATTENTION = {
    f"self_att.multihead_attn_layer.{name}"
    for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
} | {f"self_att.attentionBlock_Norm.{name}" for name in ("weight", "bias")}
LINEAR = {"linear_proj.weight", "linear_proj.bias"}
PARALLEL = {"parallel_proj.weight", "parallel_proj.bias"}
CIF = {f"downsampling.{name}.{kind}" for name in ("conv.0", "weight_proj.1") for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cascaded", OWN | NORM | ATTENTION | LINEAR | {"cls"}),
        ("hybrid plus", OWN | NORM | ATTENTION | LINEAR | PARALLEL | CIF | {"cls"}),
        ("cascaded plus", OWN | NORM | ATTENTION | LINEAR | CIF),
        (
            "hybrid, two layers",
            OWN
            | NORM
            | ATTENTION
            | {"parallel_cls", "cascaded_cls"}
            | {
                f"{proj}.sequential.{place}.{name}"
                for proj in ("linear_proj", "parallel_proj")
                for place in (0, 3)
                for name in ("weight", "bias")
            },
        ),
    ],
)
def test_weights_go_by_the_official_names(kind, expected):
    assert set(tiny(**KINDS[kind]).state_dict()) == expected


def test_each_keywords_norm_apart_and_the_transformer_block_go_by_the_official_names():
    apart = tiny(batch_norm="each-apart").state_dict()
    assert {f"bn_layer.bn_layers.{keyword}.running_var" for keyword in range(4)} <= set(apart)
    block = set(tiny(**KINDS["hybrid, transformer"]).state_dict())
    assert {"self_att.model.layers.0.self_attn.in_proj_weight", "self_att.model.norm.weight"} <= block


def test_the_norm_starts_from_the_spread_of_the_token_embeddings():
    embeddings = tower().embeddings
    config = KeywordConfig(num_layers=1, width=16, image_width=12, keyword_width=8, vocabulary_size=30)
    literal = config.build(tower()).bn_layer.bn_layer
    assert torch.equal(literal.weight, embeddings.std(0).repeat(8))
    assert torch.equal(literal.bias, embeddings.mean(0).repeat(8))
    corrected = msgspec.structs.replace(config, norm_start="corrected").build(tower()).bn_layer.bn_layer
    assert torch.equal(corrected.weight, embeddings.std(0).repeat_interleave(8))


def test_scaled_steps_end_where_the_config_says():
    head = tiny(segmentation="cif", frames_per_keyword=2, rescale_steps=10).train()
    frames, lengths, _ = tiny_batch()
    with torch.no_grad():
        head.downsampling.weight_proj[1].bias -= 9
    targets = [4, 1, 2, 4, 2]
    assert head(frames, lengths, step=9).keywords.counts.tolist() == targets
    assert head(frames, lengths).keywords.counts.tolist() == targets
    assert head(frames, lengths, step=10).keywords.counts.tolist() == [1] * 5
    assert head.eval()(frames, lengths, step=9).keywords.counts.tolist() == [1] * 5


def test_the_parts_of_a_head_are_made_as_the_config_says():
    head = tiny(segmentation="cif", max_keywords=3, quantizer_temperature=0.3, is_quantizer_learnable=True).train()
    assert head.config.build(tower()).vector_quantizer.curr_temp.tolist() == pytest.approx([0.3])
    assert "vector_quantizer.curr_temp" in dict(head.named_parameters())
    with torch.no_grad():
        head.downsampling.weight_proj[1].bias += 9
    frames, lengths, _ = tiny_batch()
    assert head(frames, lengths, step=9_999).keywords.counts.max() == 3


def test_a_batch_of_300_rows_trains_at_a_cold_temperature():
    head = tiny(has_parallel=True).train()
    frames = torch.randn(300, 3, 9, 16)
    output = head(frames, torch.full((300,), 9), torch.arange(300))
    groups, images = torch.arange(300) // 5, head.embed_images(torch.randn(300, 12))
    loss = sum(ContrastiveLoss(0.005)(branch, images, groups) for branch in (output.parallel, output.cascaded))
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_image_vectors_are_brought_to_length_one_in_fp32():
    embedded = tiny().embed_images(3 * torch.ones(2, 12, dtype=torch.float16))
    assert embedded.dtype == torch.float32
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(2))


def test_sizes_that_do_not_fit_together_are_refused():
    with pytest.raises(InvalidInput, match="5 attention heads"):
        tiny(num_heads=5)
    with pytest.raises(InvalidInput, match="30 tokens of width 8 and gives width 12"):
        tiny(vocabulary_size=31)
    with pytest.raises(InvalidInput, match=r"the head is for 30, 9 and 12"):
        tiny(keyword_width=9)
    with pytest.raises(InvalidInput, match=r"the head is for 30, 8 and 13"):
        tiny(image_width=13)
    for options in ({"num_keywords": 76}, {"segmentation": "cif", "max_keywords": 76}):
        with pytest.raises(InvalidInput, match="76 keywords, but the text tower takes 75"):
            tiny(**options)
    for options in ({"segmentation": "cif", "feed_forward_width": 32}, {"feed_forward_width": 0}):
        with pytest.raises(InvalidInput, match="transformer block"):
            tiny(block="transformer", **options)
