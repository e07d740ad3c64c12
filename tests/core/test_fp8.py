"""Eight-bit products: the arithmetic on a CPU, where torch can emulate it; speed is a matter of hardware."""

import pytest
import torch
from torch import Tensor, nn

from core import fp8
from core.fp8 import check_fp8, fp8_linear, quantise, use_fp8
from core.models import build_backbone


def rounded_to_e4m3(x: Tensor) -> Tensor:
    """To three bits after the leading one, exponents from -6, by hand."""
    exponent = torch.floor(torch.log2(x.abs().clamp(min=1e-30))).clamp(min=-6)
    step = 2 ** (exponent - 3)
    return torch.round(x / step) * step  # half to even, as the hardware


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same product from the numbers that the eight bits stand for; on a CPU torch may lack the real one."""
    monkeypatch.setattr(fp8, "multiply", lambda a, b: (a.float() @ b.float()).bfloat16())


@pytest.mark.parametrize("by_row", [True, False])
def test_quantising_scales_the_largest_to_448_and_rounds_to_e4m3(by_row):
    torch.manual_seed(0)
    x = torch.randn(5, 64) * torch.logspace(-3, 3, 5)[:, None]
    numbers, scale = quantise(x, by_row=by_row)
    largest = x.abs().amax(dim=1, keepdim=True) if by_row else x.abs().max()
    assert numbers.dtype == torch.float8_e4m3fn and scale.dtype == torch.float32
    torch.testing.assert_close(scale, largest / 448)
    assert numbers.float().abs().amax(dim=1).eq(448).sum() == (5 if by_row else 1)
    torch.testing.assert_close(numbers.float(), rounded_to_e4m3(x / scale), rtol=0, atol=0)


def test_by_row_the_error_is_relative_to_the_row():
    """Each number is off by at most half a step of three bits, or of the smallest exponent, of its row's largest."""
    torch.manual_seed(0)
    x = torch.randn(50, 64) * torch.logspace(-20, 20, 50)[:, None]
    numbers, scale = quantise(x)
    bound = torch.maximum(x.abs() / 16, 2**-10 * scale)
    assert ((numbers.float() * scale - x).abs() <= bound * (1 + 1e-5)).all()


def test_a_row_of_zeros_stays_zero():
    numbers, scale = quantise(torch.zeros(2, 64, dtype=torch.bfloat16))
    assert numbers.float().eq(0).all() and scale.eq(1e-12 / 448).all()


def test_a_linear_layer_is_the_product_of_what_was_quantised():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(128, 64, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.randn(128, dtype=torch.bfloat16, requires_grad=True)
    out = fp8_linear(x, weight, bias)
    assert out.shape == (2, 3, 128) and out.dtype == torch.bfloat16
    gradient = torch.randn_like(out)
    out.backward(gradient)

    rows, weight32, gradients = x.detach().flatten(0, 1), weight.detach(), gradient.flatten(0, 1)
    x8, sx = quantise(rows)
    w8, sw = quantise(weight32)
    product = (x8.float() @ w8.float().t()).bfloat16()  # hardware hands the product over in bf16
    expected = (product.float() * sx * sw.t()).bfloat16() + bias.detach()
    torch.testing.assert_close(out.flatten(0, 1), expected, rtol=0, atol=0)

    g8, sg = quantise(gradients)
    w8, sw = quantise(weight32, by_row=False)
    to_x = ((g8.float() @ w8.float()).bfloat16().float() * sg * sw).bfloat16()
    torch.testing.assert_close(x.grad.flatten(0, 1), to_x, rtol=0, atol=0)
    torch.testing.assert_close(weight.grad, gradients.t() @ rows, rtol=0, atol=0)
    torch.testing.assert_close(bias.grad, gradients.sum(0), rtol=1e-2, atol=1e-2)


def test_a_block_in_eight_bits_is_near_and_keeps_its_names_and_key_mask():
    torch.manual_seed(0)
    backbone = build_backbone("vit_nano", depth=1, layer_scale=1.0).eval()
    block = backbone.blocks[0]
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    names = list(block.state_dict())
    x, factors = [torch.randn(2, 5 + 16, 128)], backbone.rotations([(4, 4)])
    before = block(x, factors)[0].detach()
    use_fp8(block, "block 0")
    assert list(block.state_dict()) == names
    after = block(x, factors)[0]
    assert 1e-4 < (after.detach() - before).norm() / before.norm() < 0.05
    after.sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
    with torch.no_grad():
        block.attn.qkv.bias[128:256] = 1e6  # the key's bias, held at zero
        assert block(x, factors)[0].equal(after)


def test_the_real_product_agrees_where_torch_has_one(monkeypatch):
    monkeypatch.undo()
    a, b = torch.randn(16, 64).to(torch.float8_e4m3fn), torch.randn(32, 64).to(torch.float8_e4m3fn)
    try:
        found = fp8.multiply(a, b.t())
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"this torch has no eight-bit product on a CPU: {error}")
    torch.testing.assert_close(found, (a.float() @ b.float().t()).bfloat16(), rtol=1e-2, atol=1e-2)


def test_widths_that_do_not_fit_name_the_layer():
    block = nn.ModuleDict({"mlp": nn.ModuleDict({"fc1": nn.Linear(64, 96)})})
    with pytest.raises(ValueError, match=r"block 7\.mlp\.fc1 maps 64 to 96 features; fp8 needs multiples of 64"):
        use_fp8(block, "block 7")


def test_a_cpu_is_refused():
    with pytest.raises(ValueError, match=r"compute capability 8\.9 .*got device 'cpu'; set parallel\.fp8 to False"):
        check_fp8(torch.device("cpu"))
