"""Backbones out of weight files and back: any layout in, the architecture read off the tensors."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.models import Backbone, count_parameters
from core.models.architecture import (
    INTERPOLATIONS,
    UNSEEN,
    UNSEEN_POSITIONS,
    arguments_of,
    conventional_heads,
    in_file,
    table_name,
)
from core.models.convnext import ConvNeXt
from core.models.files import SINGLE, SUFFIXES, WeightFile, read, replace, write
from core.models.hf_config import check_config, config_of, told_by
from core.models.layouts import LAYOUTS, Layout, WeightsError, detect, from_ours, listed, to_ours
from core.models.published import (
    PUBLISHED,
    SATELLITE_MEAN,
    SATELLITE_STD,
    UNKNOWN,
    Licence,
    download,
    licence_by_name,
)
from core.models.vit import IMAGENET_MEAN, IMAGENET_STD, VisionTransformer

__all__ = [
    "PUBLISHED",
    "Source",
    "WeightsError",
    "licence_of",
    "load_backbone",
    "read_heads",
    "save_backbone",
    "summary",
]

HEADS = ("dino_head.", "ibot_head.", "features.")  # of training exports: no part of the backbone, left aside knowingly
PACKAGING = ("module.", "_orig_mod.", "teacher.", "backbone.", "dinov2.", "dinov2_with_registers.", "model.")


@dataclass(frozen=True)
class Source:
    """Where a backbone's weights came from, and what it takes to write them back as they were.

    `dtypes` and `shapes` are those of the file, under its names. `backbone` is the entry of `BACKBONES` with
    this architecture, if one has it. `prefix` stood before every name in the file.
    """

    name: str
    path: Path
    layout: str
    sha256: str
    licence: str
    licence_url: str
    licence_notice: str
    origin: str
    backbone: str | None
    dtypes: Mapping[str, torch.dtype] = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    prefix: str = ""
    metadata: Mapping[str, str] | None = None


def load_backbone(
    source: str | Path,
    *,
    rope_periods: str | None = None,
    pos_interpolation: str | None = None,
    num_heads: int | None = None,
    device: str | torch.device = "cpu",
    sha256: str | None = None,
) -> Backbone:
    """A backbone in evaluation mode, fp32, with the weights of a published name, file, folder or hub id.

    source: a name in `PUBLISHED`, an existing path (.safetensors, .pth, .pt, .bin, or a folder as
    transformers, timm or a training run leave it), or "organisation/repository" on the Hugging Face hub.
    Official, Hugging Face and timm layouts are told apart by their tensors, and so is the architecture. Of a
    training export the teacher's backbone is taken. num_heads: only rotary periods tell it among tensors; else
    it is what you give, or what config.json says, or one head for 64 channels (128 in the 7B).

    rope_periods: "rounded" (to bf16, as the official checkpoints store them) or "exact" (recomputed, as
    transformers and timm do); default: what the file stores, exact where it stores none. pos_interpolation:
    how learned positions (DINOv2) meet another size, "official", "hf" or "timm"; default: as the layout's own
    code. sha256: expected digest of the file.

    Every tensor must be known and fit. Raises WeightsError, a ValueError, saying what to do; then nothing is
    loaded.
    """
    if rope_periods not in (None, "rounded", "exact"):
        raise ValueError(f"rope_periods is 'rounded', 'exact' or None, got {rope_periods!r}")
    if pos_interpolation is not None and pos_interpolation not in INTERPOLATIONS:
        raise ValueError(f"pos_interpolation is one of {', '.join(INTERPOLATIONS)} or None, got {pos_interpolation!r}")
    found = _locate(source)
    file = read(found.path, sha256=sha256 or found.sha256)
    try:
        backbone = _backbone_in(file, found, rope_periods, pos_interpolation, num_heads)
    except WeightsError as error:
        raise WeightsError(f"{found.name}: {error}. Nothing was loaded") from error
    return backbone.to(device).eval()


@dataclass(frozen=True)
class _Found:
    """What `source` turned out to be."""

    name: str
    path: Path
    origin: str
    licence: Licence
    hints: str  # names that may say which pictures it was trained on
    sha256: str | None = None


def _locate(source: str | Path) -> _Found:
    """Finds a source in the table, on this machine or on the hub, from where it is downloaded."""
    if isinstance(source, str) and source in PUBLISHED:
        entry = PUBLISHED[source]
        assert entry.path is not None or entry.hub is not None
        path = entry.path or download(str(entry.hub))
        return _Found(source, path, entry.origin, entry.licence, f"{source} {entry.hub}", entry.sha256)
    path = Path(source).expanduser()
    if path.exists():
        name = path.resolve().name if path.is_dir() else path.stem
        return _Found(name, path, path.name, licence_by_name(name), name)
    a_file = isinstance(source, Path) or path.suffix in SUFFIXES
    if not a_file and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        repo = str(source)
        origin = f"https://huggingface.co/{repo}"
        return _Found(repo, download(repo), origin, licence_by_name(repo), repo)
    if "://" in str(source):
        raise WeightsError(f"{source} is a link; download the file, then load it by its path")
    if a_file or len(path.parts) > 1:
        raise WeightsError(f"no file or folder {source}; check the path (looked in {Path.cwd()})")
    raise WeightsError(
        f"no weights called {source!r}; known: {', '.join(PUBLISHED)}. Or give a file, a folder, or an "
        "'organisation/repository' on the Hugging Face hub"
    )


def _backbone_in(
    file: WeightFile,
    found: _Found,
    rope_periods: str | None,
    pos_interpolation: str | None,
    num_heads: int | None,
) -> Backbone:
    """The backbone that a file's tensors make, with its source."""
    tensors, prefix = _unpack(file)
    dtypes = {key: tensor.dtype for key, tensor in tensors.items()}
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    layout = detect(shapes)
    if layout is None:
        raise WeightsError(
            f"no backbone this project knows: it holds {listed(tensors) or 'no tensors'}; known are DINOv3 "
            "ViTs and ConvNeXts and DINOv2 in official, Hugging Face and timm layout"
        )
    state = to_ours(tensors, layout)
    arguments = arguments_of(state, layout, _told(file), num_heads, pos_interpolation)
    check_config(file.config, arguments)
    backbone = _build(state, layout, arguments, rope_periods)
    backbone.pixel_mean, backbone.pixel_std = _pixels(file, found.hints)
    said = file.metadata or {}
    licence, origin = found.licence, found.origin
    if licence == UNKNOWN and "licence" in said:  # a file of ours
        licence = Licence(said["licence"], said.get("licence_url", ""), said.get("licence_notice", ""))
        origin = said.get("origin", origin)
    backbone.source = Source(
        name=found.name,
        path=file.path,
        layout=layout.name,
        sha256=file.sha256,
        licence=licence.name,
        licence_url=licence.url,
        licence_notice=licence.notice,
        origin=origin,
        backbone=table_name(backbone),
        dtypes=dtypes,
        shapes=shapes,
        prefix=prefix,
        metadata=file.metadata,
    )
    return backbone


def _unpack(file: WeightFile) -> tuple[dict[str, Tensor], str]:
    """Tensors without heads and without what training wrapped around their names, and what that was.

    A training export comes back as a plain backbone, so its wrapping is forgotten.
    """
    tensors, wrapping, export = file.tensors, "", file.wrapper is not None
    while True:
        bare = {key: tensor for key, tensor in tensors.items() if not key.startswith(HEADS)}
        export = export or len(bare) < len(tensors)
        common = next((p for p in PACKAGING if bare and all(key.startswith(p) for key in bare)), None)
        if common is None:
            break
        tensors, wrapping = (
            {key.removeprefix(common): tensor for key, tensor in bare.items()},
            wrapping + common,
        )
    wrong = [f"{key} ({tensor.dtype})" for key, tensor in bare.items() if tensor.dtype not in _DTYPES]
    if wrong:
        raise WeightsError(f"weights are stored as fp32, fp16 or bf16, got {listed(wrong)}; convert them first")
    broken = [key for key, tensor in bare.items() if not tensor.isfinite().all()]
    if broken:
        raise WeightsError(f"not finite: {listed(broken)}; the training that wrote this file had diverged")
    return bare, "" if export else wrapping


Triple = tuple[float, float, float]
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _told(file: WeightFile) -> dict[str, Any]:
    """Constructor arguments beside the tensors: in config.json, or in the metadata of our own files."""
    ours = json.loads((file.metadata or {}).get("gramscope", "{}"))
    return told_by(file.config) | {key: value for key, value in ours.items() if key in UNSEEN + UNSEEN_POSITIONS}


def _build(
    state: dict[str, Tensor], layout: Layout, arguments: Mapping[str, Any], rope_periods: str | None
) -> Backbone:
    """The backbone with these weights in fp32; every tensor is checked before one is put in."""
    backbone: Backbone
    with torch.device("meta"):
        backbone = ConvNeXt(**arguments) if layout.family == "convnext" else VisionTransformer(**arguments)
    if isinstance(backbone, VisionTransformer) and backbone.position == "rope":
        exact = backbone.rope_embed.exact_periods()
        state["rope_embed.periods"] = _periods(state.get("rope_embed.periods"), exact, layout, rope_periods)
    elif rope_periods is not None:
        raise ValueError(f"rope_periods is for DINOv3 ViTs; {layout.family} has no rotary positions")
    expected = backbone.state_dict()
    missing = [in_file(key, layout) for key in expected if key not in state]
    surplus = [in_file(key, layout) for key in state if key not in expected]
    if missing or surplus:
        said = [f"missing tensors: {listed(missing)}"] if missing else []
        said += [f"tensors that this backbone does not have: {listed(surplus)}"] if surplus else []
        raise WeightsError(f"{'; '.join(said)}; the file is no whole backbone")
    wrong = [
        f"{in_file(key, layout)} is {tuple(state[key].shape)}, expected {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if state[key].shape != tensor.shape
    ]
    if wrong:
        raise WeightsError(f"shapes do not fit together: {listed(wrong, 3)}")
    backbone.load_state_dict({key: tensor.float() for key, tensor in state.items()}, assign=True)
    return backbone


def _periods(stored: Tensor | None, exact: Tensor, layout: Layout, mode: str | None) -> Tensor:
    """The rotary periods to use: official files and what others recompute differ by up to 0.3 %."""
    if layout.name == "official" and stored is None:
        raise WeightsError("missing tensors: rope_embed.periods; the file is no whole backbone")
    if mode == "exact" and stored is not None and not _is_rounding_of(stored, exact):
        raise WeightsError("the stored rotary periods are not those of the formula; leave rope_periods unset")
    if mode == "rounded":
        return (exact if stored is None else stored).bfloat16().float()
    return exact if stored is None or mode == "exact" else stored.float()


def _is_rounding_of(periods: Tensor, exact: Tensor) -> bool:
    """Whether both are one table, perhaps rounded to bf16 (relative error up to 2**-9)."""
    return periods.shape == exact.shape and bool(((periods.float() / exact - 1).abs() <= 2**-9 * 1.01).all())


def _pixels(file: WeightFile, names: str) -> tuple[Triple, Triple]:
    """Mean and standard deviation for input pixels: ImageNet's unless the source says others."""
    ours = json.loads((file.metadata or {}).get("gramscope", "{}"))
    timm = file.config.get("pretrained_cfg", {})
    for mean, std in (
        (ours.get("pixel_mean"), ours.get("pixel_std")),
        (file.preprocessor.get("image_mean"), file.preprocessor.get("image_std")),
        (timm.get("mean"), timm.get("std")),
    ):
        if mean and std:
            return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
    if "sat493m" in names.lower():
        return SATELLITE_MEAN, SATELLITE_STD
    return IMAGENET_MEAN, IMAGENET_STD


def save_backbone(
    backbone: Backbone,
    path: str | Path,
    layout: str = "official",
    *,
    heads: Mapping[str, Mapping[str, Tensor]] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """The path of a backbone's weights, written in one step.

    layout: "official" (holds everything), "hf" or "timm". A path ending in .safetensors or .pth becomes that
    file; another one, with "hf", a folder with config.json that `transformers.AutoModel` reads.

    Saved in the layout it was read in, a backbone comes out with the names, shapes, dtypes and bits of its
    file; in another one it keeps its precision where all tensors had the same. A tensor that changed and
    would lose something goes to fp32. "hf" and "timm" have no rotary periods, local norm and (timm) mask
    token; readers of those recompute the periods exactly, which moves features that used the rounded table by
    up to 1e-2. Raises WeightsError for what the layout cannot hold and features need.

    heads: by name ("dino_head", "ibot_head") their tensors, beside which the backbone's names start with "backbone.",
    as in a training export; for a .safetensors file in the official layout. dtype: fp32, fp16 or bf16 for everything
    but the rotary periods, whatever is lost; the default loses nothing.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        raise ValueError(f"no layout called {layout!r}; known: {', '.join(LAYOUTS)}")
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"weights are stored as fp32, fp16 or bf16, got dtype {dtype}")
    if heads is not None:
        _check_heads(heads, path, layout)
    into_folder = layout == "hf" and path.suffix not in SUFFIXES
    names = _layout_of(backbone, layout)
    state = {key: tensor.detach().cpu().float() for key, tensor in backbone.state_dict().items()}
    untold = _untold(backbone, names, state)
    if into_folder:
        untold -= {"num_heads", "norm_eps", "rope_base"}  # config.json says these
    _check_sayable(backbone, names, state, untold, path)

    source: Source | None = backbone.source
    same = source is not None and source.layout == layout and heads is None and dtype is None
    tensors = from_ours(state, names, source.dtypes if source is not None and same else ())
    if source is not None:
        tensors = _as_read(tensors, source, same)
    if heads is not None:
        tensors = {f"backbone.{key}": tensor for key, tensor in tensors.items()}
        tensors |= {
            f"{head}.{key}": tensor.detach().cpu() for head, state in heads.items() for key, tensor in state.items()
        }
    if dtype is not None:
        tensors = {key: tensor if key.endswith("periods") else tensor.to(dtype) for key, tensor in tensors.items()}
    metadata: dict[str, str] | None = _metadata(backbone, untold)
    if source is not None and same and source.path.suffix == ".safetensors" and not into_folder:
        metadata = dict(source.metadata) if source.metadata is not None else None
    if not into_folder:
        write(tensors, path, metadata)
        return path
    config = config_of(backbone.arguments, names, tensors)
    dtypes = {tensor.dtype for tensor in tensors.values()}
    config["dtype"] = str(dtypes.pop() if len(dtypes) == 1 else torch.float32).removeprefix("torch.")
    write(tensors, path / SINGLE, metadata)
    replace(
        path / "config.json",
        lambda file: file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n"),
    )
    return path


def _check_heads(heads: Mapping[str, Mapping[str, Tensor]], path: Path, layout: str) -> None:
    known = [name.removesuffix(".") for name in HEADS]
    if unknown := sorted(set(heads) - set(known)):
        raise ValueError(f"no head called {', '.join(unknown)}; known: {', '.join(known)}")
    if layout != "official" or path.suffix != ".safetensors":
        raise ValueError(
            f"heads go into a .safetensors file in the official layout, got {path.name} in {layout} layout; "
            "save the backbone alone"
        )


def read_heads(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of the heads in a training export, by head; nothing for weights of a backbone alone."""
    heads: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read(Path(path)).tensors.items():
        head, _, name = key.removeprefix("teacher.").partition(".")
        if f"{head}." in HEADS:
            heads.setdefault(head, {})[name] = tensor.float()
    return heads


def _layout_of(backbone: Backbone, name: str) -> Layout:
    if isinstance(backbone, ConvNeXt):
        return Layout(name, "convnext")
    family = "dinov3" if backbone.position == "rope" else "dinov2"
    return Layout(name, family, swiglu=backbone.arguments["ffn"] == "swiglu")


def _untold(backbone: Backbone, layout: Layout, state: Mapping[str, Tensor]) -> set[str]:
    """Constructor arguments that a reader of nothing but the tensors would get wrong."""
    if isinstance(backbone, ConvNeXt):
        return set()
    seen = dict(state)
    if layout.name != "official":
        seen.pop("rope_embed.periods", None)
    defaults = {"norm_eps": 1e-5, "rope_base": 100.0, "rope_coords": "separate"}
    guess = defaults | arguments_of(seen, layout, {}, num_heads=backbone.num_heads)
    if "rope_embed.periods" not in seen:
        guess["num_heads"] = conventional_heads(backbone.embed_dim)
    unseen = UNSEEN if backbone.position == "rope" else ("num_heads", "norm_eps", *UNSEEN_POSITIONS)
    return {key for key in unseen if guess.get(key) != backbone.arguments[key]}


def _check_sayable(
    backbone: Backbone, layout: Layout, state: Mapping[str, Tensor], untold: set[str], path: Path
) -> None:
    """Raises WeightsError when a reader of the file would build a network with other features."""
    if isinstance(backbone, ConvNeXt) or (layout.name == "official" and path.suffix == ".safetensors"):
        return  # its metadata says everything
    if untold := untold - set(UNSEEN_POSITIONS):
        raise WeightsError(
            f"a file in {layout.name} layout with the suffix {path.suffix!r} cannot say "
            f"{listed(sorted(untold))}, which readers would guess wrong; save with layout='official' to a "
            ".safetensors file"
        )
    if layout.name == "official":
        return
    if backbone.arguments["layer_scale"] is None:
        raise WeightsError(f"the {layout.name} layout always has a layer scale; save with layout='official'")
    periods = state.get("rope_embed.periods")
    if periods is not None and not _is_rounding_of(periods, backbone.rope_embed.exact_periods()):
        raise WeightsError(
            f"readers of the {layout.name} layout recompute the rotary periods, and would not get those of "
            "this backbone; save with layout='official'"
        )


def _as_read(tensors: Mapping[str, Tensor], source: Source, same: bool) -> dict[str, Tensor]:
    """Tensors in the names, shapes and dtypes of the file they came from, as far as that loses nothing."""
    dtypes = set(source.dtypes.values())
    common = dtypes.pop() if len(dtypes) == 1 else torch.float32
    written = {}
    for name, tensor in tensors.items():
        rounded = tensor.to(source.dtypes.get(name, torch.float32) if same else common)
        tensor = rounded if torch.equal(rounded.float(), tensor) else tensor
        if same and name in source.shapes:
            tensor = tensor.reshape(source.shapes[name])
        written[f"{source.prefix}{name}" if same else name] = tensor
    return written


def _metadata(backbone: Backbone, untold: set[str]) -> dict[str, str]:
    """What a new .safetensors file says of itself: its terms, and what tensors cannot tell."""
    arguments = {key: backbone.arguments[key] for key in sorted(untold)}
    if (backbone.pixel_mean, backbone.pixel_std) != (IMAGENET_MEAN, IMAGENET_STD):
        arguments |= {"pixel_mean": backbone.pixel_mean, "pixel_std": backbone.pixel_std}
    said = {"format": "pt"} | ({"gramscope": json.dumps(arguments)} if arguments else {})
    source: Source | None = backbone.source
    if source is not None:
        said |= {"licence": source.licence, "licence_url": source.licence_url}
        said |= {"licence_notice": source.licence_notice, "origin": source.origin}
    return said


def licence_of(backbone: Backbone) -> str:
    """The terms of a backbone's weights in one line, for wherever weights are chosen or shown."""
    source: Source | None = backbone.source
    if source is None:
        return "weights of this project's own, no licence attached"
    page = f" ({source.licence_url})" if source.licence_url else ""
    return f"{source.licence}{page}. {source.licence_notice}"


def summary(backbone: Backbone) -> str:
    """One line that says which weights these are: name, architecture, size, file, licence."""
    source: Source | None = backbone.source
    kind = f"{type(backbone).__name__} of width {backbone.embed_dim} and depth {backbone.depth}"
    size = f"{count_parameters(backbone):,} parameters"
    if source is None:
        return f"{kind}, {size}, not loaded from a file"
    known = source.backbone or kind
    file = f"{source.layout} layout, sha256 {source.sha256[:8]}"
    return f"{source.name}: {known}, {size}, {file}, {source.licence}"
