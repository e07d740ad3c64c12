"""A whole block of the vision transformer as one autograd function: how training makes use of a CPU's cores.

Operator by operator, every intermediate result of all tokens goes to memory and comes back, which takes as long as the
matrix products do. Here some crops at a time, about `ROWS` tokens, go through the block from end to end and stay in the
cache; each thread has crops of its own and meets the others once a block. Backward computes again what is cheap
(norms, GELU). Attention keeps its probabilities: for short sequences only.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.threads import evenly, in_threads, num_threads

aten = torch.ops.aten

ROWS = 1024  # tokens that a thread takes through the block at once: 2 MB of hidden activations where D is 128
MAX_TOKENS = 300  # of a crop; beyond, flash attention, which keeps no matrix of probabilities, is the better way


class Weights(NamedTuple):
    """The parameters of a block. Layer scales gamma may be None, and so may the bias of qkv."""

    norm1: Tensor
    norm1_bias: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    proj: Tensor
    proj_bias: Tensor
    gamma1: Tensor | None
    norm2: Tensor
    norm2_bias: Tensor
    fc1: Tensor
    fc1_bias: Tensor
    fc2: Tensor
    fc2_bias: Tensor
    gamma2: Tensor | None


class Settings(NamedTuple):
    """What a block is besides its parameters, and of every crop group its rotation, as `rotation_factors` gives it."""

    heads: int
    eps: float
    factors: list[Tensor | None]


def run_block(weights: Weights, settings: Settings, crops: list[Tensor]) -> list[Tensor]:
    """Each (B, N, D) of the list after the block whose parameters these are."""
    return list(BlockFunction.apply(settings, len(weights), *weights, *(x.contiguous() for x in crops)))


def rotation_factors(cos: Float[Tensor, "N Dh"], sin: Float[Tensor, "N Dh"], heads: int) -> Complex[Tensor, "N D"]:
    """The complex number that turns each pair of channels, for queries and keys of all heads side by side.

    sin is signed as `core.models.layers.rotation` gives it. A pair is channels j and j + Dh/2, which `to_pairs` puts
    beside each other: one product in place, instead of two products, a shifted copy and a sum.
    """
    half = cos.shape[-1] // 2
    return torch.complex(cos[:, :half], sin[:, half:]).repeat(1, 2 * heads)


class Kept(NamedTuple):
    """What backward needs of some crops besides their input; rows are tokens, but of `shares`, where they are crops."""

    qkv: Float[Tensor, "r D3"]  # queries and keys turned
    shares: Float[Tensor, "b hNN"]  # attention's probabilities; a chunk of them is (heads, b, N, N)
    mixed: Float[Tensor, "r D"]
    middle: Float[Tensor, "r D"]  # the residual stream between attention and feed-forward
    hidden: Float[Tensor, "r H"]  # before the GELU

    @classmethod
    def empty(cls, x: Tensor, tokens: int, heads: int, hidden: int) -> "Kept":
        rows, dim = x.shape
        shares = x.new_empty(rows // tokens, heads * tokens**2)
        return cls(
            x.new_empty(rows, 3 * dim), shares, torch.empty_like(x), torch.empty_like(x), x.new_empty(rows, hidden)
        )

    def part(self, chunk: "Chunk") -> "Kept":
        tensors = (x[chunk.crops if name == "shares" else chunk.rows] for name, x in self._asdict().items())
        return Kept(*tensors)


class BlockFunction(torch.autograd.Function):
    """(settings, number of weights, *weights, *crops) to the crops after the block."""

    @staticmethod
    def forward(ctx: Any, settings: Settings, num_weights: int, *tensors: Any) -> tuple[Tensor, ...]:
        weights, crops = Weights(*tensors[:num_weights]), tensors[num_weights:]
        heads, hidden, training = settings.heads, len(weights.fc1), any(ctx.needs_input_grad)
        outputs = [torch.empty_like(x) for x in crops]
        flat, results, shares = flatten(crops), flatten(outputs), share_out(crops)
        kept = [Kept.empty(x, len(crop[0]), heads, hidden) for x, crop in zip(flat, crops, strict=True) if training]

        def work(chunks: list[Chunk]) -> None:
            ready = Ready.of(weights, settings, transposed=True)
            for chunk in chunks:
                x, result = flat[chunk.group][chunk.rows], results[chunk.group][chunk.rows]
                # Without a backward to come, the same memory serves chunk after chunk.
                place = kept[chunk.group].part(chunk) if training else Kept.empty(x, chunk.tokens, heads, hidden)
                forward_chunk(ready, settings, chunk, x, place, result)

        in_threads(work, shares)
        if training:
            ctx.settings, ctx.num_weights, ctx.shares = settings, num_weights, shares
            ctx.save_for_backward(*weights, *crops, *(tensor for group in kept for tensor in group))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        settings: Settings = ctx.settings
        tensors, first, last = ctx.saved_tensors, ctx.num_weights, ctx.num_weights + len(gradients)
        weights, crops, rest = Weights(*tensors[:first]), tensors[first:last], iter(tensors[last:])
        kept = [Kept(*(next(rest) for _ in Kept._fields)) for _ in crops]
        to_crops = [torch.empty_like(x) for x in crops]
        flat, results, given = flatten(crops), flatten(to_crops), flatten([g.contiguous() for g in gradients])

        def work(chunks: list[Chunk]) -> Ready:
            ready = Ready.of(weights, settings, transposed=False)
            sums = ready.sums()
            for chunk in chunks:
                x, gradient, result = (tensors[chunk.group][chunk.rows] for tensors in (flat, given, results))
                backward_chunk(ready, sums, settings, chunk, x, kept[chunk.group].part(chunk), gradient, result)
            return sums

        parts = in_threads(work, ctx.shares)  # the chunks of forward, in whose order attention's probabilities lie
        return None, None, *Ready.add(parts).gradients(weights, settings), *to_crops


class Ready(NamedTuple):
    """Weights as the products of a chunk take them; or, in the same shapes, sums of their gradients.

    Layer scale is part of proj and fc2, and attention's temperature part of the queries, whose channels, like those of
    the keys, lie in pairs if they are to be turned.
    """

    norm1: Tensor
    norm1_bias: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    proj: Tensor
    proj_bias: Tensor
    norm2: Tensor
    norm2_bias: Tensor
    fc1: Tensor
    fc1_bias: Tensor
    fc2: Tensor
    fc2_bias: Tensor

    @classmethod
    def of(cls, w: Weights, settings: Settings, *, transposed: bool) -> "Ready":
        """transposed: matrices (in, out) instead of (out, in), with which x W takes up to a tenth less time."""
        heads, temperature = settings.heads, temperatures(w, settings)
        qkv, qkv_bias = w.qkv, w.qkv.new_zeros(len(w.qkv)) if w.qkv_bias is None else w.qkv_bias
        if turns(settings):
            qkv, qkv_bias = to_pairs(qkv, heads), to_pairs(qkv_bias, heads)
        qkv, qkv_bias = scale(qkv, qkv_bias, temperature)
        proj, proj_bias = scale(w.proj, w.proj_bias, w.gamma1)
        fc1, (fc2, fc2_bias) = w.fc1, scale(w.fc2, w.fc2_bias, w.gamma2)
        if transposed:
            qkv, proj, fc1, fc2 = (matrix.t().contiguous() for matrix in (qkv, proj, fc1, fc2))
        first = (w.norm1, w.norm1_bias, qkv, qkv_bias, proj, proj_bias)
        return cls(*first, w.norm2, w.norm2_bias, fc1, w.fc1_bias, fc2, fc2_bias)

    def sums(self) -> "Ready":
        """Zeros for the gradients of what is not transposed; qkv and fc1 lie transposed there, because

        a product of two tall matrices takes a tenth less time when its result is wider than high.
        """
        return Ready(*(torch.zeros_like(x) for x in self))._replace(
            qkv=torch.zeros_like(self.qkv.t().contiguous()), fc1=torch.zeros_like(self.fc1.t().contiguous())
        )

    @classmethod
    def add(cls, parts: list["Ready"]) -> "Ready":
        """Their sum, in the memory of the first."""
        return cls(*(functools.reduce(Tensor.add_, tensors) for tensors in zip(*parts, strict=True)))

    def gradients(self, w: Weights, settings: Settings) -> Weights:
        """What these `sums` are for the parameters themselves."""
        qkv, qkv_bias = scale(self.qkv.t(), self.qkv_bias, temperatures(w, settings))
        if turns(settings):
            qkv, qkv_bias = from_pairs(qkv, settings.heads), from_pairs(qkv_bias, settings.heads)
        bias = None if w.qkv_bias is None else qkv_bias
        proj = unscale(self.proj, self.proj_bias, w.proj, w.proj_bias, w.gamma1)
        fc2 = unscale(self.fc2, self.fc2_bias, w.fc2, w.fc2_bias, w.gamma2)
        first, fc1 = (self.norm1, self.norm1_bias, qkv, bias, *proj), self.fc1.t().contiguous()
        return Weights(*first, self.norm2, self.norm2_bias, fc1, self.fc1_bias, *fc2)


def turns(settings: Settings) -> bool:
    return any(factor is not None for factor in settings.factors)


def temperatures(w: Weights, settings: Settings) -> Float[Tensor, "D3"]:
    """One over the root of the head width for queries, one for keys and values."""
    dim = len(w.proj)
    factors = w.qkv.new_ones(3 * dim)
    factors[:dim] = (dim // settings.heads) ** -0.5
    return factors


def scale(weight: Tensor, bias: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor]:
    """A linear layer whose results come multiplied by `factors`: a pass over the weights, not over all tokens."""
    return (weight, bias) if factors is None else (weight * factors[:, None], bias * factors)


def unscale(
    to_weight: Tensor, to_bias: Tensor, weight: Tensor, bias: Tensor, factors: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of weight, bias and factors from those of what `scale` gave."""
    to_factors = None if factors is None else (to_weight * weight).sum(dim=1) + to_bias * bias
    return *scale(to_weight, to_bias, factors), to_factors


def to_pairs(qkv: Float[Tensor, "D3 *n"], heads: int) -> Float[Tensor, "D3 *n"]:
    """Rows of queries and keys with channel j + Dh/2 of every head after channel j.

    Attention sees no difference, as both are reordered alike.
    """
    dim = len(qkv) // 3
    pairs = qkv[: 2 * dim].unflatten(0, (2 * heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    return torch.cat([pairs, qkv[2 * dim :]])


def from_pairs(qkv: Float[Tensor, "D3 *n"], heads: int) -> Float[Tensor, "D3 *n"]:
    """The inverse of `to_pairs`."""
    dim = len(qkv) // 3
    halves = qkv[: 2 * dim].unflatten(0, (2 * heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    return torch.cat([halves, qkv[2 * dim :]])


def forward_chunk(w: Ready, settings: Settings, chunk: "Chunk", x: Tensor, place: Kept, out: Tensor) -> None:
    """Writes the block's result for some crops, (r, D), into `out`, and what backward needs into `place`."""
    heads, tokens = settings.heads, chunk.tokens
    normed = norm(x, w.norm1, w.norm1_bias, settings.eps)[0]
    torch.addmm(w.qkv_bias, normed, w.qkv, out=place.qkv)
    turn(place.qkv, tokens, settings.factors[chunk.group])
    parts = by_head(place.qkv, tokens, 3 * heads)
    queries, keys, values = parts[:heads], parts[heads : 2 * heads], parts[2 * heads :]
    shares = place.shares.view(heads, -1, tokens, tokens)
    for share, query, key in zip(shares.unbind(), queries, keys, strict=True):
        torch.bmm(query, key.mT, out=share)
    torch.softmax(shares, dim=-1, out=shares)
    for mixed, share, value in zip(by_head(place.mixed, tokens, heads), shares.unbind(), values, strict=True):
        mixed.copy_(torch.bmm(share, value))
    add_product(torch.add(x, w.proj_bias, out=place.middle), place.mixed, w.proj)

    normed = norm(place.middle, w.norm2, w.norm2_bias, settings.eps)[0]
    torch.addmm(w.fc1_bias, normed, w.fc1, out=place.hidden)
    add_product(torch.add(place.middle, w.fc2_bias, out=out), aten.gelu(place.hidden), w.fc2)


def backward_chunk(
    w: Ready, sums: Ready, settings: Settings, chunk: "Chunk", x: Tensor, kept: Kept, gradient: Tensor, to_x: Tensor
) -> None:
    """Writes the gradient of some crops, (r, D), into `to_x` and adds those of the weights to `sums`."""
    heads, tokens = settings.heads, chunk.tokens
    active = aten.gelu(kept.hidden)
    add_product(sums.fc2, gradient.t(), active)
    sums.fc2_bias.add_(gradient.sum(dim=0))
    to_hidden = torch.mm(gradient, w.fc2, out=active)
    aten.gelu_backward.grad_input(to_hidden, kept.hidden, grad_input=to_hidden)
    normed, mean, rstd = norm(kept.middle, w.norm2, w.norm2_bias, settings.eps)
    add_product(sums.fc1, normed.t(), to_hidden)
    sums.fc1_bias.add_(to_hidden.sum(dim=0))
    to_normed = torch.mm(to_hidden, w.fc1, out=normed)
    to_middle, *to_norm = norm_backward(to_normed, kept.middle, mean, rstd, w.norm2, w.norm2_bias)
    sums.norm2.add_(to_norm[0])
    sums.norm2_bias.add_(to_norm[1])
    to_middle.add_(gradient)

    add_product(sums.proj, to_middle.t(), kept.mixed)
    sums.proj_bias.add_(to_middle.sum(dim=0))
    to_mixed = by_head(torch.mm(to_middle, w.proj), tokens, heads)
    to_qkv = torch.empty_like(kept.qkv)
    parts, to_parts = by_head(kept.qkv, tokens, 3 * heads), by_head(to_qkv, tokens, 3 * heads)
    shares = kept.shares.view(heads, -1, tokens, tokens)
    to_shares = torch.empty_like(shares)
    for head, (share, to_share) in enumerate(zip(shares.unbind(), to_shares.unbind(), strict=True)):
        to_parts[2 * heads + head].copy_(torch.bmm(share.mT, to_mixed[head]))
        torch.bmm(to_mixed[head], parts[2 * heads + head].mT, out=to_share)
    aten._softmax_backward_data.out(to_shares, shares, -1, shares.dtype, grad_input=to_shares)
    for head, to_share in enumerate(to_shares.unbind()):
        to_parts[head].copy_(torch.bmm(to_share, parts[heads + head]))
        to_parts[heads + head].copy_(torch.bmm(to_share.mT, parts[head]))
    factor = settings.factors[chunk.group]
    turn(to_qkv, tokens, None if factor is None else factor.conj().resolve_conj())
    normed, mean, rstd = norm(x, w.norm1, w.norm1_bias, settings.eps)
    add_product(sums.qkv, normed.t(), to_qkv)
    sums.qkv_bias.add_(to_qkv.sum(dim=0))
    to_normed = torch.mm(to_qkv, w.qkv, out=normed)
    branch, *to_norm = norm_backward(to_normed, x, mean, rstd, w.norm1, w.norm1_bias)
    sums.norm1.add_(to_norm[0])
    sums.norm1_bias.add_(to_norm[1])
    torch.add(branch, to_middle, out=to_x)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds the matrix product of a and b to `total`."""
    torch.addmm(total, a, b, out=total)  # addmm_ does the same, but torch's counter of multiplications does not see it


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm with the means and inverse deviations that its backward takes."""
    return torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)


def norm_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of layer norm's input, weight and bias."""
    return aten.native_layer_norm_backward(gradient, x, x.shape[-1:], mean, rstd, weight, bias, [True, True, True])


def by_head(x: Float[Tensor, "r n"], tokens: int, parts: int) -> tuple[Tensor, ...]:
    """Views (b, N, Dh), a head each: batched products take them with their gaps."""
    rows, width = x.shape
    return x.view(rows // tokens, tokens, parts, width // parts).unbind(dim=2)


def turn(qkv: Float[Tensor, "r D3"], tokens: int, factor: Complex[Tensor, "N D"] | None) -> None:
    """Queries and keys, in pairs, turned by their positions in place."""
    if factor is not None:
        rows, width = qkv.shape
        pairs = torch.view_as_complex(qkv.view(rows // tokens, tokens, width // 2, 2))[..., : width // 3]
        torch.mul(pairs, factor, out=pairs)


class Chunk(NamedTuple):
    """Some crops of a group, as many as go through the block at a time."""

    group: int
    crops: slice
    rows: slice  # their tokens
    tokens: int  # of one crop


def flatten(crops: Sequence[Tensor]) -> list[Tensor]:
    return [x.view(-1, x.shape[-1]) for x in crops]


def share_out(crops: Sequence[Tensor]) -> list[list[Chunk]]:
    """For every thread the chunks that are its work; a single list if it is little.

    Shares are equal and fixed, so that sums over them are the same each time.
    """
    rows = sum(x.shape[0] * x.shape[1] for x in crops)
    threads = max(1, min(num_threads(), rows // ROWS))
    shares: list[list[Chunk]] = [[] for _ in range(threads)]
    for group, x in enumerate(crops):
        tokens = x.shape[1]
        for share, own in zip(shares, evenly(len(x), threads), strict=True):
            count = own.stop - own.start
            for part in evenly(count, max(1, round(count * tokens / ROWS))):
                first, last = own.start + part.start, own.start + part.stop
                if first < last:
                    share.append(Chunk(group, slice(first, last), slice(first * tokens, last * tokens), tokens))
    return shares
