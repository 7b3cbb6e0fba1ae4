from pathlib import Path

import pytest
import torch

from speechclip.heads import KeywordConfig, KeywordHead, TextTower
from speechclip.losses import ContrastiveLoss

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def official(name: str) -> tuple[KeywordHead, dict[str, object]]:
    case = torch.load(GOLDEN / name, weights_only=True)
    layers, _, _, width = case["hidden_states"].shape
    vocabulary, keyword_width = case["clip_text"]["token_embedding.weight"].shape
    # The recorded text encoder is reduced already.
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
    # BatchNorm takes away what is added to all rows alike, so these have no gradient but rounding.
    absorbed = {"linear_proj.bias", "self_att.attentionBlock_Norm.bias"}
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm()
        assert error < (1e-4 if name in absorbed else 1e-4 * gradient.norm()), f"{name}: {error}"
    assert all(found[name].abs().max() < 1e-5 for name in absorbed)
