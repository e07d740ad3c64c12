"""Our backbones against those of transformers, an independent implementation, with the same random weights."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.models import BACKBONES, build_backbone
from core.models.convnext import ConvNeXt
from core.models.layers import QkvLinear, RopePositionEmbedding
from core.models.published import PUBLISHED
from core.models.vit import VisionTransformer
from core.models.weights import load_backbone, save_backbone

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
initialization = pytest.importorskip("transformers.initialization", reason="transformers is not installed")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

WIDE = ("large", "huge", "giant", "7b")  # one block of the 7B alone is 168 million numbers


def mould(name: str) -> VisionTransformer | ConvNeXt:
    """A backbone of this width without memory, shortened."""
    if name.startswith("convnext"):
        return build_backbone(name, device="meta", depths=(1, 2, 1, 1))
    depth = 1 if any(size in name for size in WIDE) else 2
    return build_backbone(name, device="meta", depth=depth, **({"pos_grid": 9} if "dinov2" in name else {}))


def random_backbone(name: str) -> VisionTransformer | ConvNeXt:
    ours = mould(name).to_empty(device="cpu").eval()
    randomise(ours)
    for module in ours.modules():
        if isinstance(module, QkvLinear | RopePositionEmbedding):
            module.init_weights()  # their buffers: bias mask and periods
    return ours


@torch.no_grad()
def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter random and of a size that matters: nothing near zero that a wrong mapping could hide in."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        parameter.normal_(generator=generator)
        if parameter.ndim >= 2 and "token" not in name and "pos" not in name:
            parameter.mul_(parameter[0].numel() ** -0.5)
        elif parameter.ndim == 1 and not name.endswith("bias"):
            parameter.mul_(0.3).add_(1)
        else:
            parameter.mul_(0.3)


def images(name: str, rows: int = 3, cols: int = 5) -> Tensor:
    patch = 14 if name.startswith("dinov2") else 32 if name.startswith("convnext") else 16
    return torch.randn(2, 3, rows * patch, cols * patch, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def tokens(backbone: torch.nn.Module, x: Tensor) -> Tensor:
    features = backbone.forward_features(x)
    parts = (features["x_norm_clstoken"][:, None], features["x_storage_tokens"], features["x_norm_patchtokens"])
    return torch.cat(parts, dim=1)


@torch.no_grad()
def theirs(folder: Path, x: Tensor) -> Tensor:
    """The tokens that transformers computes from a folder, which it must read without a missing or odd tensor."""
    model, report = transformers.AutoModel.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()(x).last_hidden_state


@pytest.mark.long
@pytest.mark.parametrize("name", BACKBONES)
def test_transformers_computes_the_same_from_what_we_save(name: str, tmp_path: Path) -> None:
    ours = random_backbone(name)
    if not isinstance(ours, ConvNeXt) and ours.position == "learned":
        ours.pos_offset = 0.0  # transformers resizes positions by size
    x = images(name)
    save_backbone(ours, tmp_path / "model", "hf")
    torch.testing.assert_close(theirs(tmp_path / "model", x), tokens(ours, x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", BACKBONES)
def test_we_compute_the_same_from_what_transformers_saves(name: str, tmp_path: Path) -> None:
    shape = mould(name)
    with initialization.no_init_weights():
        model = transformers.AutoModel.from_config(transformers_config(shape), attn_implementation="eager").eval()
    randomise(model, seed=2)
    model.save_pretrained(tmp_path)
    x = images(name, rows=4, cols=3)
    ours = load_backbone(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(tokens(ours, x), model(x).last_hidden_state, atol=1e-5, rtol=0)
    told = ("embed_dim", "num_heads", "num_registers", "ffn", "position", "norm_eps", "qkv_bias", "dims", "depths")
    assert {k: ours.arguments.get(k) for k in told} == {k: shape.arguments.get(k) for k in told}


def transformers_config(shape: VisionTransformer | ConvNeXt) -> object:
    """The configuration of the published model of this width, shortened, written down independently of ours."""
    a = shape.arguments
    if isinstance(shape, ConvNeXt):
        return transformers.DINOv3ConvNextConfig(hidden_sizes=list(a["dims"]), depths=list(a["depths"]))
    common = {
        "hidden_size": a["embed_dim"],
        "num_hidden_layers": a["depth"],
        "num_attention_heads": a["num_heads"],
        "patch_size": a["patch_size"],
    }
    if a["position"] == "rope":
        gated = a["ffn"] == "swiglu"
        seven = a["embed_dim"] == 4096
        return transformers.DINOv3ViTConfig(
            **common,
            intermediate_size=a["ffn_dim"] or 4 * a["embed_dim"],
            use_gated_mlp=gated,
            hidden_act="silu" if gated else "gelu",
            num_register_tokens=4,
            query_bias=not seven,
            value_bias=not seven,
        )
    common |= {"image_size": 9 * 14, "use_swiglu_ffn": a["embed_dim"] == 1536}
    if a["num_registers"]:
        return transformers.Dinov2WithRegistersConfig(**common)
    return transformers.Dinov2Config(**common)


SIZES = [(98, 182), (350, 140), (224, 224)]  # pixels, height and width


def agree_at_every_size(ours: VisionTransformer, model: torch.nn.Module, depth: int = 12) -> None:
    # In double precision, since real weights have channels that amplify what fp32 rounds differently to 1e-4.
    ours, model = ours.double().eval(), model.double().eval()
    ours.blocks, model.encoder.layer = ours.blocks[:depth], model.encoder.layer[:depth]

    def agree(height: int, width: int) -> None:
        x = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height)).double()
        with torch.no_grad():
            expected = model(x).last_hidden_state
        torch.testing.assert_close(tokens(ours, x), expected, atol=1e-5, rtol=0)

    for size in SIZES:
        agree(*size)
    ours.blocks, model.encoder.layer = ours.blocks[:2], model.encoder.layer[:2]
    agree(518, 518)  # the grid the positions were learned on


@pytest.mark.long
def test_the_bundled_weights_agree_at_every_size(tmp_path: Path) -> None:
    """The real file, read by transformers itself under its old names."""
    config = {"model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_size": 518, "patch_size": 14}))
    (tmp_path / "model.safetensors").symlink_to(PUBLISHED["dinov2_vits14_saliency"].path)
    model, report = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    agree_at_every_size(load_backbone("dinov2_vits14_saliency"), model)


def test_the_bundled_weights_with_registers_agree_at_every_size(tmp_path: Path) -> None:
    bare = load_backbone("dinov2_vits14_saliency")
    ours = build_backbone("dinov2_small_reg")
    ours.load_state_dict(bare.state_dict(), strict=False)
    with torch.no_grad():
        ours.storage_tokens.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.3)
    save_backbone(ours, tmp_path, "hf")
    model = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
    agree_at_every_size(ours, model, depth=4)
