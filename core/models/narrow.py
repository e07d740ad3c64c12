"""A narrower ViT cut out of a wide one and fitted to it layer by layer: minutes of algebra for hours of training.

A way of this project's own to start a small student, from known parts. As in SliceGPT (Ashkboos et al. 2024) the
residual stream is turned to its principal directions and the weakest are left out; as in structured pruning, whole
attention heads and hidden units go, those that write least. Then each layer is fitted again, by ridge regression from
what the narrow model really has there to what the wide one writes, so that errors are corrected as they arise.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.models.layers import Block, LayerScale, Mlp, Rotation
from core.models.vit import VisionTransformer

CHUNK = 50  # images at a time
RIDGE = 1e-3  # of the inputs' mean square
CLS_WEIGHT = 8.0  # one CLS token beside many patches
WRITES = 0.04  # root mean square of weights that write into the stream; layer scale takes the rest


class Branch(NamedTuple):
    """One residual branch of a block: norm, a linear layer, something without weights, a linear layer, a scale."""

    norm: nn.LayerNorm
    first: nn.Linear
    inner: Callable[[Tensor], Tensor]
    last: nn.Linear
    scale: nn.Module
    unit: int  # channels that only go together: a head's, or one
    parts: int  # of the first layer's outputs: queries, keys and values, or one


class Streams:
    """A model and what it makes of some pictures: the residual stream, taken from branch to branch."""

    def __init__(self, model: VisionTransformer, crops: Float[Tensor, "n 3 h w"]) -> None:
        self.model, self.prefix = model, 1 + model.num_registers
        embedded = [model.embed(part) for part in crops.split(CHUNK)]
        self.stream, self.grid = [tokens for tokens, _ in embedded], embedded[0][1]
        (self.factors,) = model.rotations([self.grid])

    def tokens(self, x: Float[Tensor, "c N D"]) -> Float[Tensor, "m D"]:
        """CLS and patches of every picture, without registers."""
        return torch.cat([x[:, :1], x[:, self.prefix :]], dim=1).flatten(0, 1)

    def weights(self, x: Float[Tensor, "c N D"]) -> Float[Tensor, "m"]:
        """How much each of `tokens` counts."""
        weights = x.new_ones(len(x), x.shape[1] - self.prefix + 1)
        weights[:, 0] = CLS_WEIGHT
        return weights.flatten()


@torch.no_grad()
def narrow(
    wide: VisionTransformer,
    thin: VisionTransformer,
    crops: Float[Tensor, "n 3 h w"],
    shown: Float[Tensor, "n 3 hh ww"] | None = None,
) -> list[float]:
    """Fills `thin` so that its residual stream follows a projection of the wide one's.

    crops: pictures as the thin model is shown them, some hundreds at least; shown: the same as the wide one is, in as
    many patches, where the patches have another size. Returns which share of the stream's variance is missed after each
    block. Registers start as CLS does. Raises ValueError for models of other depths, head widths or feed-forwards than
    an MLP, and for pictures of other grids.
    """
    shown = crops if shown is None else shown
    _check(wide, thin, crops, shown)
    modes = wide.training, thin.training
    thin.eval()
    moments, energies = _survey(Streams(wide.eval(), shown))
    basis = _basis(moments, thin.embed_dim)
    there = Streams(wide, shown)
    _fill_embedding(wide, thin, basis, there)
    here = Streams(thin, crops)
    missed = []
    for theirs, ours, energy in zip(wide.blocks, thin.blocks, energies, strict=True):
        for pair in zip(_branches(theirs, there.factors), _branches(ours, here.factors), energy, strict=True):
            _refit(there, here, *pair, basis)
        missed.append(_missed(there, here, basis))
    thin.norm.reset_parameters()
    wide.train(modes[0]), thin.train(modes[1])
    return missed


def _check(wide: VisionTransformer, thin: VisionTransformer, crops: Tensor, shown: Tensor) -> None:
    heads = {model.embed_dim // model.num_heads for model in (wide, thin)}
    if wide.depth != thin.depth or len(heads) > 1 or thin.embed_dim > wide.embed_dim:
        raise ValueError(
            f"width {thin.embed_dim}, {thin.depth} blocks and {thin.num_heads} heads cannot be cut out of width "
            f"{wide.embed_dim}, {wide.depth} blocks and {wide.num_heads} heads: depth and width of a head must agree"
        )
    if not all(isinstance(block, Block) and isinstance(block.mlp, Mlp) for m in (wide, thin) for block in m.blocks):
        raise ValueError("only models with an MLP can be cut; SwiGLU is not known here")
    grids = {tuple(side // m.patch_size for side in x.shape[-2:]) for m, x in ((thin, crops), (wide, shown))}
    if len(grids) > 1 or len(crops) != len(shown):
        raise ValueError(f"both models must see the same pictures in as many patches, got {sorted(grids)}")


def _branches(block: nn.Module, factors: Rotation | None) -> tuple[Branch, Branch]:
    assert isinstance(block, Block) and isinstance(block.mlp, Mlp)
    attention, ffn = block.attn, block.mlp
    head = attention.proj.in_features // attention.num_heads
    return (
        Branch(block.norm1, attention.qkv, lambda x: attention.attend(x, factors), attention.proj, block.ls1, head, 3),
        Branch(block.norm2, ffn.fc1, F.gelu, ffn.fc2, block.ls2, 1, 1),
    )


def _survey(streams: Streams) -> tuple[Float[Tensor, "D D"], list[tuple[Tensor, Tensor]]]:
    """The second moments of the normed stream over all layers, and for each branch of each block the mean squares of
    what its last layer is given; the run ends at the last block."""
    moments = torch.zeros(streams.model.embed_dim, streams.model.embed_dim)
    energies = []
    for block in streams.model.blocks:
        found = []
        for branch in _branches(block, streams.factors):
            energy = torch.zeros(branch.last.in_features)
            for index, x in enumerate(streams.stream):
                moments += _moments(streams.tokens(_normed(x, branch.norm)))
                inner = branch.inner(branch.first(branch.norm(x)))
                energy += inner.square().mean((0, 1))
                streams.stream[index] = x + branch.scale(branch.last(inner))
            found.append(energy)
        energies.append((found[0], found[1]))
    for x in streams.stream:
        moments += 4 * _moments(streams.tokens(_normed(x, streams.model.norm)))  # what comes out weighs as four
    return moments, energies


def _normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """As the norm makes it before its own weights."""
    return F.layer_norm(x, norm.normalized_shape, eps=norm.eps)


def _moments(x: Float[Tensor, "m D"]) -> Float[Tensor, "D D"]:
    return x.T @ x / len(x)


def _basis(moments: Float[Tensor, "D D"], width: int) -> Float[Tensor, "D d"]:
    """Principal directions, all but one of the narrow model's channels: its norms take away the mean of the channels,
    so that direction is left empty."""
    directions = torch.linalg.eigh(moments.double())[1][:, 1 - width :]
    draw = torch.Generator().manual_seed(0)
    spread = torch.randn(width, width, generator=draw, dtype=torch.float64)
    spread[:, 0] = 1.0
    return (directions @ torch.linalg.qr(spread)[0][:, 1:].T).float()


def _fill_embedding(
    wide: VisionTransformer, thin: VisionTransformer, basis: Float[Tensor, "D d"], streams: Streams
) -> None:
    """Patches, CLS and registers. A kernel of another size sees the patch resized; of learned positions the mean over
    the grid goes into the bias, since the narrow model has none or learns its own."""
    kernel = wide.patch_embed.proj.weight
    sides = wide.patch_size, thin.patch_size
    pixels = torch.eye(sides[1] ** 2).view(-1, 1, sides[1], sides[1])
    resized = F.interpolate(pixels, (sides[0], sides[0]), mode="bilinear", antialias=True, align_corners=False)
    kernel = (kernel.flatten(2) @ resized.flatten(1).T).unflatten(2, (sides[1], sides[1]))
    thin.patch_embed.proj.weight.copy_(torch.einsum("dchw,de->echw", kernel, basis))
    cls, bias = wide.cls_token[0, 0], wide.patch_embed.proj.bias
    assert bias is not None and thin.patch_embed.proj.bias is not None
    if wide.position == "learned":
        rows, cols = streams.grid
        position = wide.interpolated_pos_embed(rows, cols)[0]
        cls, bias = cls + position[0], bias + position[1:].mean(0)
    thin.patch_embed.proj.bias.copy_(bias @ basis)
    if thin.position == "learned":
        thin.pos_embed.zero_()
    thin.cls_token.copy_(cls @ basis)
    thin.mask_token.copy_(wide.mask_token @ basis)
    if thin.num_registers:  # unlike each other, or they would stay alike
        noise = torch.randn(thin.storage_tokens.shape, generator=torch.Generator().manual_seed(1))
        thin.storage_tokens.copy_(thin.cls_token + 0.02 * noise)


def _refit(
    there: Streams, here: Streams, theirs: Branch, ours: Branch, energy: Float[Tensor, "K"], basis: Float[Tensor, "D d"]
) -> None:
    """Fills one branch of the narrow model and takes both streams past it."""
    fit = Fit(ours.norm.weight.numel(), theirs.norm.weight.numel())
    for x, y in zip(there.stream, here.stream, strict=True):
        fit.add(here.tokens(_normed(y, ours.norm)), there.tokens(_normed(x, theirs.norm)), here.weights(y))
    spread, shift = fit.solve()  # from the narrow normed stream to the wide one
    ours.norm.reset_parameters()
    weight = theirs.first.weight * theirs.norm.weight
    bias = theirs.first.weight @ theirs.norm.bias + weight @ shift
    bias = bias if theirs.first.bias is None else bias + theirs.first.bias
    scale = theirs.scale.gamma if isinstance(theirs.scale, LayerScale) else torch.ones(len(basis))
    writes = energy * (basis.T @ (scale[:, None] * theirs.last.weight)).square().sum(0)
    kept = _strongest(writes, theirs.unit, ours.last.in_features)
    rows = torch.cat([kept + part * theirs.last.in_features for part in range(theirs.parts)])
    ours.first.weight.copy_((weight @ spread)[rows])
    if ours.first.bias is not None:
        ours.first.bias.copy_(bias[rows])

    fit = Fit(ours.last.in_features, basis.shape[1])
    inners = []
    for index, (x, y) in enumerate(zip(there.stream, here.stream, strict=True)):
        x = x + theirs.scale(theirs.last(theirs.inner(theirs.first(theirs.norm(x)))))
        inners.append(ours.inner(ours.first(ours.norm(y))))
        fit.add(here.tokens(inners[-1]), there.tokens(x) @ basis - here.tokens(y), here.weights(y))
        there.stream[index] = x
    weight, bias = fit.solve()
    size = max(float(weight.square().mean().sqrt()), 1e-6) / WRITES if isinstance(ours.scale, LayerScale) else 1.0
    if isinstance(ours.scale, LayerScale):
        ours.scale.gamma.fill_(size)
    ours.last.weight.copy_(weight / size)
    ours.last.bias.copy_(bias / size)
    here.stream = [y + ours.scale(ours.last(inner)) for y, inner in zip(here.stream, inners, strict=True)]


def _strongest(writes: Float[Tensor, "K"], unit: int, count: int) -> Int[Tensor, "count"]:
    """The channels that write most, in whole units and in their order."""
    units = writes.view(-1, unit).sum(1).topk(count // unit).indices.sort().values
    return (units[:, None] * unit + torch.arange(unit)).flatten()


def _missed(there: Streams, here: Streams, basis: Float[Tensor, "D d"]) -> float:
    """Share of the wide stream's variance, in the narrow one's directions, that the narrow one does not have."""
    wanted = torch.cat([there.tokens(x) @ basis for x in there.stream])
    found = torch.cat([here.tokens(y) for y in here.stream])
    return float((found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


class Fit:
    """Weighted ridge regression with an intercept, shown its data in parts."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.within = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
        self.across = torch.zeros(inputs + 1, outputs, dtype=torch.float64)

    def add(self, x: Float[Tensor, "m a"], y: Float[Tensor, "m b"], weights: Float[Tensor, "m"]) -> None:
        x = F.pad(x, (0, 1), value=1.0)
        weighted = (x * weights[:, None]).T
        self.within += weighted @ x
        self.across += weighted @ y

    def solve(self) -> tuple[Float[Tensor, "b a"], Float[Tensor, "b"]]:
        """Weights and bias of the linear layer."""
        ridge = RIDGE * self.within.diagonal()[:-1].mean() * torch.eye(len(self.within), dtype=torch.float64)
        ridge[-1, -1] = 0  # the intercept is free
        found = torch.linalg.solve(self.within + ridge, self.across).float()
        return found[:-1].T, found[-1]
