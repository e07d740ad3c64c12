"""The projection head against the reference's golden file."""

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from core.models.head import ProjectionHead


def test_the_head_is_the_golden_one(shared):
    g = load_file(shared / "golden" / "head.safetensors")
    head = ProjectionHead(32, 96, hidden=48, bottleneck=16)
    head.load_state_dict({name.removeprefix("state."): value for name, value in g.items() if name.startswith("state.")})
    assert_close(head(g["x"]), g["y"], atol=1e-5, rtol=0)


def test_the_bottleneck_is_a_unit_vector_and_the_last_layer_follows_it():
    torch.manual_seed(0)
    head = ProjectionHead(8, 12, hidden=16, bottleneck=4)
    head.init_weights()
    x = torch.randn(5, 8)
    bottleneck = head(x, no_last_layer=True)
    assert_close(bottleneck.norm(dim=-1), torch.ones(5))
    assert_close(head(bottleneck, only_last_layer=True), head(x))


def test_initialisation_reaches_every_number():
    head = ProjectionHead(64, 128, hidden=64, bottleneck=32)
    for parameter in head.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    head.init_weights()
    assert all(parameter.isfinite().all() for parameter in head.parameters())
    assert float(head.last_layer.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert head.mlp[0].bias.abs().max() == 0


def test_one_layer_is_a_single_linear_map():
    head = ProjectionHead(8, 12, bottleneck=4, layers=1)
    assert [name for name, _ in head.named_parameters()] == ["mlp.0.weight", "mlp.0.bias", "last_layer.weight"]


def test_a_head_without_layers_is_refused():
    with pytest.raises(ValueError, match="at least one layer"):
        ProjectionHead(8, 12, layers=0)
