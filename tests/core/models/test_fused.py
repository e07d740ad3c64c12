"""The fused block against the plain one and against finite differences, in one thread and in several."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from core.models import fused
from core.models.layers import Block, Rotation, fuse_always, rotation

DIM, HEADS = 24, 3


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request, monkeypatch):
    """Chunks so small that there are several, for each of so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(fused, "ROWS", 14)
    yield request.param
    torch.set_num_threads(before)


def a_block(**changes) -> Block:
    torch.manual_seed(0)
    given = {"ffn": "mlp", "ffn_dim": 40, "qkv_bias": True, "mask_k_bias": True, "norm_eps": 1e-5}
    block = Block(DIM, HEADS, **(given | {"layer_scale": 0.1, "drop_path": 0.0} | changes))
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.normal_(std=0.2).add_("norm" in name and "weight" in name)
    block.attn.qkv.init_weights()
    return block.train()


def two_groups() -> tuple[list[Tensor], list[Rotation | None]]:
    """Crops of two sizes, 7 of 11 tokens and 10 of 5, with their rotations."""
    draw = torch.Generator().manual_seed(1)
    crops = [torch.randn(7, 11, DIM, generator=draw), torch.randn(10, 5, DIM, generator=draw)]
    factors: list[Rotation | None] = []
    for patches in (9, 3):
        angles = torch.randn(patches, DIM // HEADS // 2, generator=draw).tile(2)
        factors.append(rotation(angles.sin(), angles.cos(), prefix=2))
    return crops, factors


def plainly(monkeypatch) -> None:
    monkeypatch.setattr(Block, "can_fuse", lambda *_: False)


def results(block: nn.Module, crops: list[Tensor], factors: list[Rotation | None]) -> list[Tensor]:
    """Outputs, gradients of the crops, gradients of the parameters."""
    block.zero_grad()
    leaves = [x.clone().requires_grad_() for x in crops]
    outputs = block(leaves, factors)
    sum((output.sin() * (1 + index)).sum() for index, output in enumerate(outputs)).backward()
    grads = [parameter.grad for parameter in block.parameters()]
    assert all(gradient is not None and gradient.is_contiguous() for gradient in grads)
    return [*(x.detach() for x in outputs), *(x.grad for x in leaves), *grads]


def all_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=0)


@pytest.mark.parametrize(
    "changes",
    [{}, {"layer_scale": None}, {"qkv_bias": False, "mask_k_bias": False}, {"mask_k_bias": False}],
    ids=["dinov3", "no layer scale", "no qkv bias", "free key bias"],
)
@pytest.mark.parametrize("turned", [True, False], ids=["rotary", "learned positions"])
def test_fused_is_plain_up_to_rounding(monkeypatch, threads, changes, turned):
    block = a_block(**changes)
    crops, factors = two_groups()
    factors = factors if turned else [None, None]
    assert block.can_fuse(crops, factors)
    ours = results(block, crops, factors)
    plainly(monkeypatch)
    all_close(ours, results(block, crops, factors))


@pytest.mark.parametrize("turned", [True, False], ids=["rotary", "learned positions"])
def test_gradients_are_finite_differences(threads, turned):
    block = a_block()
    crops, factors = two_groups()
    crops = [crops[0][:3, :4, :12], crops[1][:5, :3, :12]]
    factors = [(cos[:n, :4], sin[:n, :4]) for (cos, sin), n in zip(factors, (4, 3), strict=True)]
    pairs = [fused.rotation_factors(cos.double(), sin.double(), HEADS) if turned else None for cos, sin in factors]
    torch.manual_seed(2)
    shapes = [(12,), (12,), (36, 12), (36,), (12, 12), (12,), (12,), (12,), (12,), (7, 12), (7,), (12, 7), (12,), (12,)]
    weights = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert len(weights) == len(fused.Weights._fields)
    leaves = [x.double().requires_grad_() for x in crops]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        own = fused.Weights(*tensors[: len(weights)])
        return tuple(fused.run_block(own, fused.Settings(HEADS, block.norm1.eps, pairs), list(tensors[len(weights) :])))

    assert torch.autograd.gradcheck(run, (*weights, *leaves), fast_mode=True)


def test_the_same_call_gives_the_same_bits(threads):
    block = a_block()
    crops, factors = two_groups()
    first, second = results(block, crops, factors), results(block, crops, factors)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_two_forward_passes_may_come_before_two_backward_ones(threads):
    block = a_block()
    crops, factors = two_groups()
    alone = results(block, crops, factors)[4:]
    block.zero_grad()
    losses = [sum((1 + i) * x.sin().sum() for i, x in enumerate(block(crops, factors))) for _ in range(2)]
    block([x + 1 for x in crops], factors)  # and one that is never needed
    for loss in losses:
        loss.backward()
    all_close([p.grad for p in block.parameters()], [2 * gradient for gradient in alone])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_teacher_runs_fused_where_it_is_told_to(monkeypatch, threads, mode):
    block = a_block().eval()
    crops, factors = two_groups()
    assert not block.can_fuse(crops, factors)
    with mode():
        plain = block(crops, factors)
        fuse_always(nn.ModuleList([block]))
        assert block.can_fuse(crops, factors)
        all_close(block(crops, factors), plain)


def test_evaluation_keeps_to_the_plain_operators(monkeypatch):
    block = a_block().eval()
    monkeypatch.setattr(fused, "run_block", lambda *_: pytest.fail("evaluation ran fused"))
    with torch.no_grad():
        block(*two_groups())


@pytest.mark.parametrize("changes", [{"drop_path": 0.3}, {"ffn": "swiglu"}], ids=["drop path", "SwiGLU"])
def test_what_is_not_fused_steps_aside(changes):
    block = a_block(**changes)
    crops, factors = two_groups()
    assert not block.can_fuse(crops, factors)
    assert all(x.isfinite().all() for x in results(block, crops, factors))


def test_other_precisions_and_long_sequences_step_aside(monkeypatch):
    block = a_block()
    crops, factors = two_groups()
    assert not block.can_fuse([x.bfloat16() for x in crops], factors)
    assert not block.can_fuse(crops, [None, tuple(x.bfloat16() for x in factors[1])])
    with torch.autocast("cpu"):
        assert not block.can_fuse(crops, factors)
    monkeypatch.setattr(fused, "MAX_TOKENS", 10)
    assert not block.can_fuse(crops, factors)
    assert not block.bfloat16().can_fuse([x.bfloat16() for x in crops], [None, None])


def test_a_recomputed_block_has_the_same_gradients(threads):
    block = a_block()
    crops, factors = two_groups()
    expected = results(block, crops, factors)
    forward = block.forward
    block.forward = lambda *arguments: checkpoint(forward, *arguments, use_reentrant=False)
    assert all(torch.equal(a, b) for a, b in zip(results(block, crops, factors), expected, strict=True))


def test_selective_recomputation_finds_the_operators(threads):
    from core.parallel import recompute

    block = a_block()
    crops, factors = two_groups()
    expected = results(block, crops, factors)
    recompute(block, selective=True)
    all_close(results(block, crops, factors), expected)


def test_multiplications_are_counted(monkeypatch, threads):
    block = a_block()
    crops, factors = two_groups()
    tokens = sum(x.shape[0] * x.shape[1] for x in crops)
    attention = 4 * DIM * sum(x.shape[0] * x.shape[1] ** 2 for x in crops)
    layers = 2 * tokens * (4 * DIM**2 + 2 * DIM * 40)
    with FlopCounterMode(display=False) as counter:
        results(block, crops, factors)
    assert counter.get_total_flops() == 3 * (layers + attention)


def test_shares_hold_every_crop_once_and_are_of_equal_size(monkeypatch):
    monkeypatch.setattr(fused, "num_threads", lambda: 3)
    crops = [torch.zeros(64, 69, 1), torch.zeros(256, 21, 1), torch.zeros(2, 21, 1)]
    shares = fused.share_out(crops)
    seen = [[0] * len(x) for x in crops]
    for chunk in (chunk for share in shares for chunk in share):
        assert chunk.rows == slice(chunk.crops.start * chunk.tokens, chunk.crops.stop * chunk.tokens)
        assert chunk.tokens == crops[chunk.group].shape[1]
        for crop in range(chunk.crops.start, chunk.crops.stop):
            seen[chunk.group][crop] += 1
    assert all(count == 1 for group in seen for count in group)
    rows = [sum(chunk.rows.stop - chunk.rows.start for chunk in share) for share in shares]
    assert max(rows) - min(rows) <= 69 + 21 + 21
    assert max(c.rows.stop - c.rows.start for share in shares for c in share) <= 1.5 * fused.ROWS


def test_little_work_needs_no_threads(monkeypatch):
    monkeypatch.setattr(fused, "num_threads", lambda: 8)
    assert len(fused.share_out([torch.zeros(2, 21, 1)])) == 1
