"""Names of tensors in the checkpoint files people meet, and the way between them and ours.

Ours are the names of the released DINOv3 checkpoints. A layout is a table of rows: a name in the file, and
the piece of ours that its tensor is. `{i}` stands for a number, `{p}` for weight or bias, `[0/3]` for the
first third of the rows. Two pieces in one row are stacked in one tensor of the file. What renaming cannot
express (biases that a layout leaves out, positions it splits otherwise) is in `complete` and `reduce`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

LAYOUTS = ("official", "hf", "timm")
# The 7B is the only published model without qkv biases and with heads of 128 channels; files that do not say
# (timm leaves zero biases out, most leave the number of heads out) are told apart by its width.
WIDTH_OF_7B = 4096


class WeightsError(ValueError):
    """Weights that cannot be used, and what to do about it."""


@dataclass(frozen=True)
class Layout:
    """Whose names a file uses (`LAYOUTS`), for which network: "dinov3" and "dinov2" (ViTs) or "convnext"."""

    name: str
    family: str
    swiglu: bool = False


class Piece(NamedTuple):
    """One of `parts` equal row blocks of a tensor of ours."""

    key: str
    part: int = 0
    parts: int = 1


class Row(NamedTuple):
    """A name in the file, the pieces of ours it holds, and whether we write it when nobody asks for it."""

    file: str
    ours: tuple[str, ...]
    kind: str = "always"  # "optional": only when some value is not zero; "alias": read, never chosen for writing


def _row(file: str, ours: str, kind: str = "always") -> Row:
    return Row(file, tuple(ours.split(" + ")), kind)


_OFFICIAL_DINOV2 = [
    _row("register_tokens", "storage_tokens"),
    _row("blocks.{i}.mlp.w12.{p}", "blocks.{i}.mlp.w1.{p} + blocks.{i}.mlp.w2.{p}"),
]

_HF_VIT = [
    _row("embeddings.cls_token", "cls_token"),
    _row("embeddings.register_tokens", "storage_tokens"),
    _row("embeddings.mask_token", "mask_token"),
]
_HF_DINOV3 = [
    *_HF_VIT,
    _row("embeddings.patch_embeddings.{p}", "patch_embed.proj.{p}"),
    _row("layer.{i}.norm{n}.{p}", "blocks.{i}.norm{n}.{p}"),
    _row("layer.{i}.attention.q_proj.{p}", "blocks.{i}.attn.qkv.{p}[0/3]"),
    _row("layer.{i}.attention.k_proj.weight", "blocks.{i}.attn.qkv.weight[1/3]"),
    _row("layer.{i}.attention.k_proj.bias", "blocks.{i}.attn.qkv.bias[1/3]", "optional"),
    _row("layer.{i}.attention.v_proj.{p}", "blocks.{i}.attn.qkv.{p}[2/3]"),
    _row("layer.{i}.attention.o_proj.{p}", "blocks.{i}.attn.proj.{p}"),
    _row("layer.{i}.layer_scale{n}.lambda1", "blocks.{i}.ls{n}.gamma"),
    _row("norm.{p}", "norm.{p}"),
]
_HF_DINOV3_FFN = {
    False: [
        _row("layer.{i}.mlp.up_proj.{p}", "blocks.{i}.mlp.fc1.{p}"),
        _row("layer.{i}.mlp.down_proj.{p}", "blocks.{i}.mlp.fc2.{p}"),
    ],
    True: [
        _row("layer.{i}.mlp.gate_proj.{p}", "blocks.{i}.mlp.w1.{p}"),
        _row("layer.{i}.mlp.up_proj.{p}", "blocks.{i}.mlp.w2.{p}"),
        _row("layer.{i}.mlp.down_proj.{p}", "blocks.{i}.mlp.w3.{p}"),
    ],
}
_HF_DINOV2 = [
    *_HF_VIT,
    _row("embeddings.position_embeddings", "pos_embed"),
    _row("embeddings.patch_embeddings.projection.{p}", "patch_embed.proj.{p}"),
    _row("encoder.layer.{i}.norm{n}.{p}", "blocks.{i}.norm{n}.{p}"),
    _row("encoder.layer.{i}.attention.attention.query.{p}", "blocks.{i}.attn.qkv.{p}[0/3]"),
    _row("encoder.layer.{i}.attention.attention.key.{p}", "blocks.{i}.attn.qkv.{p}[1/3]"),
    _row("encoder.layer.{i}.attention.attention.value.{p}", "blocks.{i}.attn.qkv.{p}[2/3]"),
    _row("encoder.layer.{i}.attention.output.dense.{p}", "blocks.{i}.attn.proj.{p}"),
    _row("encoder.layer.{i}.layer_scale{n}.lambda1", "blocks.{i}.ls{n}.gamma"),
    _row("encoder.layer.{i}.mlp.fc{n}.{p}", "blocks.{i}.mlp.fc{n}.{p}"),
    _row("encoder.layer.{i}.mlp.weights_in.{p}", "blocks.{i}.mlp.w1.{p} + blocks.{i}.mlp.w2.{p}"),
    _row("encoder.layer.{i}.mlp.weights_out.{p}", "blocks.{i}.mlp.w3.{p}"),
    _row("layernorm.{p}", "norm.{p}"),
    # Names that transformers 5 uses in memory; published files and its `save_pretrained` keep the old ones.
    _row("encoder.layer.{i}.attention.q_proj.{p}", "blocks.{i}.attn.qkv.{p}[0/3]", "alias"),
    _row("encoder.layer.{i}.attention.k_proj.{p}", "blocks.{i}.attn.qkv.{p}[1/3]", "alias"),
    _row("encoder.layer.{i}.attention.v_proj.{p}", "blocks.{i}.attn.qkv.{p}[2/3]", "alias"),
    _row("encoder.layer.{i}.attention.o_proj.{p}", "blocks.{i}.attn.proj.{p}", "alias"),
    _row("encoder.layer.{i}.mlp.gate_proj.{p}", "blocks.{i}.mlp.w1.{p}", "alias"),
    _row("encoder.layer.{i}.mlp.up_proj.{p}", "blocks.{i}.mlp.w2.{p}", "alias"),
    _row("encoder.layer.{i}.mlp.down_proj.{p}", "blocks.{i}.mlp.w3.{p}", "alias"),
]
_HF_CONVNEXT = [
    _row("stages.{s}.downsample_layers.{n}.{p}", "downsample_layers.{s}.{n}.{p}"),
    _row("stages.{s}.layers.{i}.depthwise_conv.{p}", "stages.{s}.{i}.dwconv.{p}"),
    _row("stages.{s}.layers.{i}.layer_norm.{p}", "stages.{s}.{i}.norm.{p}"),
    _row("stages.{s}.layers.{i}.pointwise_conv{n}.{p}", "stages.{s}.{i}.pwconv{n}.{p}"),
    _row("stages.{s}.layers.{i}.gamma", "stages.{s}.{i}.gamma"),
    _row("layer_norm.{p}", "norm.{p}"),
]

_TIMM_VIT = [
    _row("cls_token", "cls_token"),
    _row("reg_token", "storage_tokens"),
    _row("patch_embed.proj.{p}", "patch_embed.proj.{p}"),
    _row("blocks.{i}.norm{n}.{p}", "blocks.{i}.norm{n}.{p}"),
    _row("blocks.{i}.attn.qkv.weight", "blocks.{i}.attn.qkv.weight"),
    _row("blocks.{i}.attn.proj.{p}", "blocks.{i}.attn.proj.{p}"),
    _row("norm.{p}", "norm.{p}"),
]
_TIMM_DINOV3 = [
    *_TIMM_VIT,
    _row("blocks.{i}.attn.q_bias", "blocks.{i}.attn.qkv.bias[0/3]", "optional"),
    _row("blocks.{i}.attn.v_bias", "blocks.{i}.attn.qkv.bias[2/3]", "optional"),
    _row("blocks.{i}.gamma_{n}", "blocks.{i}.ls{n}.gamma"),
]
_TIMM_DINOV2 = [
    *_TIMM_VIT,
    _row("pos_embed", "pos_embed"),
    _row("blocks.{i}.attn.qkv.bias", "blocks.{i}.attn.qkv.bias"),
    _row("blocks.{i}.ls{n}.gamma", "blocks.{i}.ls{n}.gamma"),
]
_TIMM_MLP = [_row("blocks.{i}.mlp.fc{n}.{p}", "blocks.{i}.mlp.fc{n}.{p}")]
_TIMM_DINOV3_SWIGLU = [
    _row("blocks.{i}.mlp.fc1_g.{p}", "blocks.{i}.mlp.w1.{p}"),
    _row("blocks.{i}.mlp.fc1_x.{p}", "blocks.{i}.mlp.w2.{p}"),
    _row("blocks.{i}.mlp.fc2.{p}", "blocks.{i}.mlp.w3.{p}"),
]
_TIMM_DINOV2_SWIGLU = [
    _row("blocks.{i}.mlp.fc1.{p}", "blocks.{i}.mlp.w1.{p} + blocks.{i}.mlp.w2.{p}"),
    _row("blocks.{i}.mlp.fc2.{p}", "blocks.{i}.mlp.w3.{p}"),
]
_TIMM_CONVNEXT = [
    _row("stem.{n}.{p}", "downsample_layers.0.{n}.{p}"),
    _row("stages.{s}.downsample.{n}.{p}", "downsample_layers.{s}.{n}.{p}"),
    _row("stages.{s}.blocks.{i}.conv_dw.{p}", "stages.{s}.{i}.dwconv.{p}"),
    _row("stages.{s}.blocks.{i}.norm.{p}", "stages.{s}.{i}.norm.{p}"),
    _row("stages.{s}.blocks.{i}.mlp.fc{n}.{p}", "stages.{s}.{i}.pwconv{n}.{p}"),
    _row("stages.{s}.blocks.{i}.gamma", "stages.{s}.{i}.gamma"),
    _row("head.norm.{p}", "norm.{p}"),
]


def table(layout: Layout) -> list[Row]:
    """The rows of a layout. Official names that are in no row are ours already."""
    tables: dict[tuple[str, str], list[Row]] = {
        ("official", "dinov3"): [],
        ("official", "dinov2"): _OFFICIAL_DINOV2,
        ("official", "convnext"): [],
        ("hf", "dinov3"): _HF_DINOV3 + _HF_DINOV3_FFN[layout.swiglu],
        ("hf", "dinov2"): _HF_DINOV2,
        ("hf", "convnext"): _HF_CONVNEXT,
        ("timm", "dinov3"): _TIMM_DINOV3 + (_TIMM_DINOV3_SWIGLU if layout.swiglu else _TIMM_MLP),
        ("timm", "dinov2"): _TIMM_DINOV2 + (_TIMM_DINOV2_SWIGLU if layout.swiglu else _TIMM_MLP),
        ("timm", "convnext"): _TIMM_CONVNEXT,
    }
    return tables[layout.name, layout.family]


def detect(shapes: Mapping[str, tuple[int, ...]]) -> Layout | None:
    """The layout of a file, told from its names; None when it is none of ours."""
    keys = {key.removeprefix("model.") for key in shapes} | {_unchunked(key) for key in shapes}
    if "downsample_layers.0.0.weight" in keys:
        return Layout("official", "convnext")
    if "stages.0.downsample_layers.0.weight" in keys:
        return Layout("hf", "convnext")
    if "stem.0.weight" in keys:
        return Layout("timm", "convnext")
    if "embeddings.patch_embeddings.weight" in keys:
        return Layout("hf", "dinov3", swiglu="layer.0.mlp.gate_proj.weight" in keys)
    if "embeddings.patch_embeddings.projection.weight" in keys:
        new, old = "encoder.layer.0.mlp.gate_proj.weight", "encoder.layer.0.mlp.weights_in.weight"
        return Layout("hf", "dinov2", swiglu=new in keys or old in keys)
    if "patch_embed.proj.weight" not in keys:
        return None
    family = "dinov2" if "pos_embed" in keys else "dinov3"
    if keys & {"mask_token", "storage_tokens", "register_tokens", "rope_embed.periods"}:  # timm has none of them
        return Layout("official", family, swiglu="blocks.0.mlp.w3.weight" in keys)
    first, second = shapes.get("blocks.0.mlp.fc1.weight"), shapes.get("blocks.0.mlp.fc2.weight")
    packed = first is not None and second is not None and first[0] == 2 * second[1]
    return Layout("timm", family, swiglu=packed or "blocks.0.mlp.fc1_g.weight" in keys)


def _unchunked(key: str) -> str:
    """Training may cut blocks into chunks: blocks.<chunk>.<block>, with the blocks counted through."""
    return re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template.partition("[")[0]).replace(r"\{", "{").replace(r"\}", "}")
    numbers = re.sub(r"{([^p])}", r"(?P<\1>[0-9]+)", escaped)
    return re.compile(numbers.replace("{p}", "(?P<p>weight|bias)"))


def _piece(template: str, values: Mapping[str, str]) -> Piece:
    name, _, part = template.partition("[")
    if not part:
        return Piece(name.format(**values))
    index, count = part.rstrip("]").split("/")
    return Piece(name.format(**values), int(index), int(count))


def pieces_in(file_key: str, layout: Layout) -> list[Piece]:
    """What of ours the tensor under this name holds; nothing when the layout has no such name."""
    key = _unchunked(file_key) if layout.name == "official" else file_key
    key = key.removeprefix("model.") if layout.name == "hf" else key
    for row in table(layout):
        if match := _pattern(row.file).fullmatch(key):
            return [_piece(template, match.groupdict()) for template in row.ours]
    return [Piece(key)] if layout.name == "official" else []


def file_key_of(piece: Piece, layout: Layout) -> tuple[str, str] | None:
    """The name of a piece of ours in a newly written file, and its row's kind; None when it has no place."""
    for row in table(layout):
        for template in row.ours if row.kind != "alias" else ():
            match = _pattern(template).fullmatch(piece.key)
            if match and _piece(template, match.groupdict()) == piece:
                return row.file.format(**match.groupdict()), row.kind
    return (piece.key, "always") if layout.name == "official" else None


def to_ours(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Our state dict from a file's tensors, with all that its layout leaves out except the rotary periods.

    Raises WeightsError, naming them, for tensors that the layout does not know and for missing parts.
    """
    blocks: dict[Piece, Tensor] = {}
    unexpected = []
    for file_key, tensor in tensors.items():
        pieces = pieces_in(file_key, layout)
        if not pieces:
            unexpected.append(file_key)
            continue
        if len(pieces) > 1 and len(tensor) % len(pieces):
            raise WeightsError(f"{file_key} stacks {len(pieces)} matrices, but has {len(tensor)} rows")
        for piece, block in zip(pieces, tensor.chunk(len(pieces)), strict=True):
            if piece in blocks:
                raise WeightsError(f"the file holds {piece.key} twice, once as {file_key}; keep one of them")
            blocks[piece] = block
    if unexpected:
        raise WeightsError(
            f"tensors that no {layout.family} backbone in {layout.name} layout has: {listed(unexpected)}; "
            "save the backbone alone, without heads and other modules"
        )
    state: dict[str, Tensor] = {}
    for piece in blocks:
        if piece.key not in state:
            state[piece.key] = _joined(piece, blocks, layout)
            if piece.parts == 3 and Piece(piece.key, 1, 3) not in blocks:  # the keys' bias: held at zero
                third = len(state[piece.key]) // 3
                state[f"{piece.key}_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(third)
    return complete(state, layout)


def _joined(piece: Piece, blocks: Mapping[Piece, Tensor], layout: Layout) -> Tensor:
    """The whole tensor that a piece belongs to; files of DINOv3 not in official layout hold no key bias."""
    if piece.parts == 1:
        return blocks[piece]
    wanted = [Piece(piece.key, part, piece.parts) for part in range(piece.parts)]
    found = [blocks.get(part) for part in wanted]
    if layout.family == "dinov3" and piece.key.endswith(".bias") and found[1] is None:
        found[1] = torch.zeros_like(blocks[piece])
    missing = [file_key_of(part, layout) for part, block in zip(wanted, found, strict=True) if block is None]
    if missing:
        raise WeightsError(f"missing tensors: {listed(name[0] for name in missing if name)}")
    whole = [block for block in found if block is not None]
    if len({block.shape for block in whole}) > 1:
        raise WeightsError(f"shapes of the parts of {piece.key} differ: {[tuple(block.shape) for block in whole]}")
    return torch.cat(whole)


def complete(state: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """What a layout leaves out or cuts otherwise, in our terms; rotary periods belong to the built model."""
    if layout.family == "convnext":
        for name in ("weight", "bias"):
            norm = state.get(f"norm.{name}")
            if norm is not None and layout.name != "official":
                state[f"norms.3.{name}"] = norm
            if norm is not None and not torch.equal(state.get(f"norms.3.{name}", norm), norm):
                raise WeightsError(f"norm.{name} and norms.3.{name} are one tensor under two names, but differ here")
        return state
    if "cls_token" not in state:
        return state
    width = state["cls_token"].shape[-1]
    if layout.name == "timm":
        state.setdefault("mask_token", torch.zeros(1, width))
    if "mask_token" in state and state["mask_token"].shape == (1, 1, width):
        state["mask_token"] = state["mask_token"][0]
    if "storage_tokens" in state and not state["storage_tokens"].numel():
        del state["storage_tokens"]
    if (layout.name, layout.family) == ("timm", "dinov3") and width != WIDTH_OF_7B:
        for key in [key for key in state if key.endswith(".attn.qkv.weight")]:
            bias = key.replace("weight", "bias")
            state.setdefault(bias, torch.zeros(3 * width))
            state.setdefault(f"{bias}_mask", torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(width))
    if layout.name == "timm" and "pos_embed" in state and "storage_tokens" in state:
        # timm adds the class position to the class token of models with registers
        state["pos_embed"] = torch.cat([torch.zeros_like(state["pos_embed"][:, :1]), state["pos_embed"]], dim=1)
    return state


def reduce(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The inverse of `complete`: biases masked and positions split as the layout has them."""
    state = dict(state)
    if layout.name == "official":
        return state
    for key in [key for key in state if key.endswith(".bias_mask")]:
        bias = key.removesuffix("_mask")
        state[bias] = state[bias] * state.pop(key)
    if (layout.name, layout.family) == ("hf", "dinov3"):
        state["mask_token"] = state["mask_token"][None]
        state.setdefault("storage_tokens", state["cls_token"][:, :0])
    if layout.name == "timm" and "pos_embed" in state and "storage_tokens" in state:
        first, state["pos_embed"] = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
        if first.any():  # adding a zero would turn a -0.0
            state["cls_token"] = state["cls_token"] + first
    return state


# In official files only, and without effect on features: the rotary periods are recomputed elsewhere, the
# local norm acts in training only, `norms.3` is `norm`.
_LEFT_OUT = (
    "rope_embed.periods",
    "local_cls_norm.weight",
    "local_cls_norm.bias",
    "norms.3.weight",
    "norms.3.bias",
)


def from_ours(state: Mapping[str, Tensor], layout: Layout, like: Iterable[str] = ()) -> dict[str, Tensor]:
    """A file's tensors from our state dict, under the names `like` where given, else the published ones.

    timm has no mask token, transformers and timm no rotary periods: those are left out. Raises WeightsError
    for what changes features and has no place in the layout.
    """
    state = reduce(state, layout)
    names = dict.fromkeys(like)
    covered = {piece for name in names for piece in pieces_in(name, layout)}
    optional: dict[str, Piece] = {}
    for piece in _pieces_of(state, layout):
        place = file_key_of(piece, layout)
        if piece in covered:
            continue
        if place is not None and place[1] == "optional":
            optional[place[0]] = piece
        elif place is not None:
            names[place[0]] = None
        elif not _may_go(piece, state, layout):
            raise WeightsError(
                f"the {layout.name} layout has no place for {piece.key}; save with layout='official', "
                "which holds everything"
            )
    if any(_cut(state, piece).any() for piece in optional.values()):
        names |= dict.fromkeys(optional)
    tensors = {}
    for name in names:
        blocks = [_cut(state, piece) for piece in pieces_in(name, layout)]
        tensors[name] = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    return tensors


def _may_go(piece: Piece, state: Mapping[str, Tensor], layout: Layout) -> bool:
    """Whether features stay the same without a piece that the layout has no place for."""
    if piece.key in _LEFT_OUT or (layout.name, piece.key) == ("timm", "mask_token"):
        return True
    return not _cut(state, piece).any()


def _pieces_of(state: Mapping[str, Tensor], layout: Layout) -> Iterator[Piece]:
    """Our tensors, in the parts that the layout deals in."""
    for key in state:
        thirds = [Piece(key, part, 3) for part in range(3)]
        cut = layout.name != "official" and any(file_key_of(third, layout) for third in thirds)
        yield from thirds if cut else [Piece(key)]


def _cut(state: Mapping[str, Tensor], piece: Piece) -> Tensor:
    whole = state[piece.key]
    return whole if piece.parts == 1 else whole.chunk(piece.parts)[piece.part]


def listed(names: Iterable[str], limit: int = 6) -> str:
    """The first names and how many more there are, for messages."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
