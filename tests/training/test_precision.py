import pytest
import torch

from speechclip.training.precision import Precision


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_on_a_cpu_every_recipe_computes_in_fp32(name):
    precision = Precision(name, torch.device("cpu"))
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    with precision.autocast():
        product = torch.ones(3, 3) @ weight
    assert product.dtype == torch.float32
    torch.autograd.backward(precision.scale(product.sum()))
    assert precision.step(optimizer, [weight], 4.0) == pytest.approx(9.0)
    # Clipped from 9 to 4: each of nine numbers moves by 4/3.
    torch.testing.assert_close(weight.detach(), torch.full((3, 3), 1 - 4 / 3))
    assert precision.state() == {}
