"""Weights in and out: every layout bit for bit, timm's own outputs, and a plain word for all that goes wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.models import BACKBONES, build_backbone, files
from core.models.architecture import arguments_of, table_name
from core.models.convnext import ConvNeXt
from core.models.layouts import Layout
from core.models.published import APACHE, DINOV3, SATELLITE_MEAN, SATELLITE_STD, UNKNOWN, licence_by_name
from core.models.vit import VisionTransformer
from core.models.weights import (
    PUBLISHED,
    WeightsError,
    licence_of,
    load_backbone,
    read_heads,
    save_backbone,
    summary,
)

GOLDEN = Path(__file__).parents[2] / "golden"
TIMM = sorted(path.stem for path in GOLDEN.glob("timm_*.safetensors"))
SALIENCY = PUBLISHED["dinov2_vits14_saliency"].path
# bf16 of 100 ** (i / 16): what the released files of every model with 64 channels a head store
ROUNDED = (1.0, 1.3359375, 1.78125, 2.375, 3.15625, 4.21875, 5.625, 7.5)
ROUNDED += (10.0, 13.3125, 17.75, 23.75, 31.625, 42.25, 56.25, 75.0)


def tiny(name: str = "vit_nano", **arguments: object) -> VisionTransformer | ConvNeXt:
    """A shortened backbone with every number random."""
    torch.manual_seed(0)
    small = {"depth": 2, "embed_dim": 128, "num_heads": 2}
    if name.startswith("dinov2"):
        small |= {"pos_grid": 5}
    if name.startswith("convnext"):
        small = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
    backbone = build_backbone(name, **(small | arguments)).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return backbone


def timm_golden(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state dict of a timm model, and what it computed."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    return state, tensors


def official(tmp_path: Path, name: str = "dinov3_tiny_pretrain.pth") -> tuple[Path, dict[str, Tensor]]:
    """A file as Meta releases them: plain dict, periods in bf16, qkv bias and its mask all zero."""
    state = dict(tiny().state_dict())
    state["rope_embed.periods"] = torch.tensor(ROUNDED, dtype=torch.bfloat16)
    for key in state:
        if ".attn.qkv.bias" in key:
            state[key] = torch.zeros_like(state[key])
    torch.save(state, tmp_path / name)
    return tmp_path / name, state


@torch.no_grad()
def tokens(backbone: torch.nn.Module, x: Tensor) -> Tensor:
    features = backbone.forward_features(x)
    parts = (features["x_norm_clstoken"][:, None], features["x_storage_tokens"], features["x_norm_patchtokens"])
    return torch.cat(parts, dim=1)


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
        return tensor.dtype, tuple(tensor.shape), tensor.contiguous().view(torch.uint8).numpy().tobytes()

    return first.keys() == second.keys() and all(bits(first[key]) == bits(second[key]) for key in first)


def read(path: Path) -> dict[str, Tensor]:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


# What timm computes


@pytest.mark.parametrize("name", TIMM)
def test_files_of_timm_give_what_timm_computes(name, tmp_path):
    state, golden = timm_golden(name)
    save_file(state, tmp_path / "model.safetensors")
    ours = load_backbone(tmp_path / "model.safetensors")
    assert ours.source.layout == "timm"
    if name == "timm_convnext":
        with torch.no_grad():
            features = ours.forward_features(golden["x"])
        actual = features["x_prenorm"].transpose(1, 2).reshape_as(golden["features"])
        torch.testing.assert_close(features["x_norm_clstoken"], golden["pooled"], atol=1e-5, rtol=0)
    else:
        actual = tokens(ours, golden["x"])
    torch.testing.assert_close(actual, golden["features"], atol=1e-5, rtol=0)


def test_timm_itself_reads_what_we_save(tmp_path):
    timm = pytest.importorskip("timm", reason="timm needs a torchvision that fits this torch")
    ours = tiny("vit_small_plus", embed_dim=128, num_heads=2, ffn_dim=96)
    save_backbone(ours, tmp_path / "model.safetensors", "timm")
    changes = {"embed_dim": 128, "depth": 2, "num_heads": 2, "mlp_ratio": 0.75}
    model = timm.create_model("vit_small_plus_patch16_dinov3_qkvb", **changes).eval()
    model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    x = torch.randn(2, 3, 48, 80)
    with torch.no_grad():
        torch.testing.assert_close(tokens(ours, x), model.forward_features(x), atol=1e-5, rtol=0)


# There and back, bit for bit


@pytest.mark.parametrize("name", TIMM)
def test_timm_files_come_back_bit_for_bit(name, tmp_path):
    state, _ = timm_golden(name)
    path = tmp_path / "model.safetensors"
    save_file(state, path, metadata={"format": "pt", "made": "elsewhere"})
    saved = save_backbone(load_backbone(path), tmp_path / "again.safetensors", "timm")
    assert same_bits(load_file(saved), state)
    with safe_open(saved, "pt") as file:
        assert file.metadata() == {"format": "pt", "made": "elsewhere"}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_official_files_come_back_bit_for_bit(suffix, tmp_path):
    path, state = official(tmp_path)
    if suffix == ".safetensors":
        path = path.with_suffix(suffix)
        save_file(state, path)
    backbone = load_backbone(path)
    assert backbone.source.dtypes["rope_embed.periods"] == torch.bfloat16
    assert same_bits(read(save_backbone(backbone, tmp_path / f"again{suffix}", "official")), state)


def test_the_bundled_file_comes_back_bit_for_bit(tmp_path):
    backbone = load_backbone("dinov2_vits14_saliency")
    saved = save_backbone(backbone, tmp_path / "again.safetensors", "hf")
    assert same_bits(load_file(saved), load_file(SALIENCY))
    assert saved.read_bytes() == SALIENCY.read_bytes()
    assert load_file(saved)["embeddings.mask_token"].shape == (1, 384)


def names_in_memory(key: str) -> str:
    """Names that transformers 5 uses in memory, as someone may have saved them."""
    for old, new in (("attention.query", "q_proj"), ("attention.key", "k_proj"), ("attention.value", "v_proj")):
        key = key.replace(f"attention.{old}", f"attention.{new}")
    return key.replace("attention.output.dense", "attention.o_proj")


HF_VARIANTS: dict[str, tuple[str, Callable[[str], str]]] = {
    "dinov3": ("vit_nano", str),
    "dinov3 in memory": ("vit_nano", lambda key: key.replace("layer.", "model.layer.") if "layer." in key else key),
    "dinov3 without registers": ("vit_tiny", str),
    "dinov2 new names": ("dinov2_small", names_in_memory),
    "dinov2 registers": ("dinov2_small_reg", str),
    "dinov2 inside a module": ("dinov2_small", lambda key: f"dinov2.{key}"),
    "convnext in memory": ("convnext_tiny", lambda key: key.replace("stages.", "model.stages.")),
}


@pytest.mark.parametrize("variant", HF_VARIANTS)
def test_hugging_face_files_come_back_bit_for_bit_whatever_names_they_use(variant, tmp_path):
    name, rename = HF_VARIANTS[variant]
    backbone = tiny(name, **({"num_registers": 0} if "without" in variant else {}))
    save_backbone(backbone, tmp_path / "first.safetensors", "hf")
    state = {rename(key): tensor for key, tensor in load_file(tmp_path / "first.safetensors").items()}
    for index, key in enumerate(sorted(state)):  # precision of all kinds, as files have it
        state[key] = state[key].to((torch.float32, torch.float16, torch.bfloat16)[index % 3])
    save_file(state, tmp_path / "mixed.safetensors")
    saved = save_backbone(load_backbone(tmp_path / "mixed.safetensors"), tmp_path / "again.safetensors", "hf")
    assert same_bits(load_file(saved), state)


def test_a_packed_official_dinov2_comes_back_bit_for_bit(tmp_path):
    state = {}
    backbone = tiny("dinov2_giant_reg", embed_dim=64, num_heads=1, ffn_dim=48)
    for key, tensor in backbone.state_dict().items():
        name = key.replace("storage_tokens", "register_tokens")
        if ".mlp.w1." in name:
            name = name.replace("w1", "w12")
            tensor = torch.cat([tensor, backbone.state_dict()[key.replace("w1", "w2")]])
        if ".mlp.w2." not in name:
            state[name.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.0.1.")] = tensor
    torch.save(state, tmp_path / "dinov2_vitg14_reg4_pretrain.pth")
    loaded = load_backbone(tmp_path / "dinov2_vitg14_reg4_pretrain.pth")
    x = torch.randn(1, 3, 56, 70)
    assert torch.equal(tokens(loaded, x), tokens(backbone, x))
    assert same_bits(read(save_backbone(loaded, tmp_path / "again.pth")), state)


@pytest.mark.parametrize("name", ["vit_nano", "dinov2_small_reg", "convnext_tiny"])
@pytest.mark.parametrize("layout", ["official", "hf", "timm"])
def test_features_survive_any_layout(name, layout, tmp_path):
    backbone = tiny(name)
    x = torch.randn(1, 3, *((84, 126) if name.startswith("dinov2") else (64, 96)))
    saved = save_backbone(backbone, tmp_path / "model.safetensors", layout)
    torch.testing.assert_close(tokens(load_backbone(saved), x), tokens(backbone, x), atol=1e-5, rtol=0)


def test_a_changed_tensor_keeps_what_it_would_lose(tmp_path):
    backbone = load_backbone("dinov2_vits14_saliency")
    with torch.no_grad():
        backbone.cls_token.add_(1e-7)
        backbone.norm.bias.fill_(0.5)  # exact in half precision
    saved = load_file(save_backbone(backbone, tmp_path / "changed.safetensors", "hf"))
    assert saved["embeddings.cls_token"].dtype == torch.float32
    assert torch.equal(saved["embeddings.cls_token"], backbone.cls_token)
    assert saved["layernorm.bias"].dtype == torch.float16
    converted = load_file(save_backbone(backbone, tmp_path / "converted.safetensors", "official"))
    assert converted["pos_embed"].dtype == torch.float16
    assert converted["cls_token"].dtype == torch.float32


# What tensors tell, and what they cannot


@pytest.mark.parametrize("name", ["vit_mlp", "vit_swiglu", "vit_7b_like"])
@torch.no_grad()
def test_official_names_give_the_outputs_of_the_reference(name, tmp_path):
    """Heads of 16, 32 and 64 channels, both feed-forwards, no qkv bias and a local norm: all told by tensors."""
    golden = load_file(GOLDEN / f"{name}.safetensors")
    state = {key.removeprefix("state."): value for key, value in golden.items() if key.startswith("state.")}
    torch.save(state, tmp_path / "model.pth")
    backbone = load_backbone(tmp_path / "model.pth")
    torch.testing.assert_close(backbone(golden["x"]), golden["cls"], atol=1e-5, rtol=0)
    masked = backbone.forward_features(golden["x"], masks=golden["mask"])["x_norm_patchtokens"]
    torch.testing.assert_close(masked, golden["masked_patches"], atol=1e-5, rtol=0)


def test_loaded_backbones_can_be_trained(tmp_path):
    for name in ("vit_nano", "dinov2_small", "convnext_tiny"):
        backbone = load_backbone(save_backbone(tiny(name), tmp_path / "model.safetensors", "hf"))
        backbone(torch.randn(1, 3, 112, 112)[..., : 112 if "dinov2" in name else 64]).sum().backward()
        unused = {key for key, parameter in backbone.named_parameters() if parameter.grad is None}
        assert unused <= {"mask_token"}
    assert backbone.norms[3].weight is backbone.norm.weight


@pytest.mark.parametrize("name", BACKBONES)
def test_the_architecture_is_read_off_the_tensors(name):
    backbone = build_backbone(name, device="meta")
    assert table_name(backbone) == name
    if isinstance(backbone, ConvNeXt):
        found = arguments_of(backbone.state_dict(), Layout("official", "convnext"), {})
    else:
        family = "dinov3" if backbone.position == "rope" else "dinov2"
        found = arguments_of(backbone.state_dict(), Layout("official", family), {})
    expected = backbone.arguments | {"ffn_dim": backbone.arguments.get("ffn_dim") or 4 * backbone.embed_dim}
    expected["mask_k_bias"] = expected.get("qkv_bias") and expected["mask_k_bias"]
    assert found == {key: expected[key] for key in found}


def test_official_files_keep_their_rounded_periods_and_their_mask(tmp_path):
    path, _ = official(tmp_path)
    backbone = load_backbone(path)
    assert torch.equal(backbone.rope_embed.periods, torch.tensor(ROUNDED))
    assert not backbone.blocks[0].attn.qkv.bias_mask.any()
    exact = load_backbone(path, rope_periods="exact").rope_embed.periods
    torch.testing.assert_close(exact, 100 ** (torch.arange(16) / 16), atol=0, rtol=1e-6)
    assert not torch.equal(exact, backbone.rope_embed.periods)
    x = torch.randn(1, 3, 64, 96)
    assert (tokens(backbone, x) - tokens(load_backbone(path, rope_periods="exact"), x)).abs().max() > 1e-4


@pytest.mark.parametrize("layout", ["hf", "timm"])
def test_other_files_have_exact_periods_unless_rounded_ones_are_asked_for(layout, tmp_path):
    path, _ = official(tmp_path)
    rounded = load_backbone(path)
    saved = save_backbone(rounded, tmp_path / "model.safetensors", layout)
    assert not torch.equal(load_backbone(saved).rope_embed.periods, torch.tensor(ROUNDED))
    again = load_backbone(saved, rope_periods="rounded")
    assert torch.equal(again.rope_embed.periods, torch.tensor(ROUNDED))
    x = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(tokens(again, x), tokens(rounded, x), atol=1e-5, rtol=0)


def test_biases_of_other_layouts_are_trainable_but_for_the_keys(tmp_path):
    saved = save_backbone(tiny(), tmp_path / "model.safetensors", "hf")
    mask = load_backbone(saved).blocks[1].attn.qkv.bias_mask
    assert torch.equal(mask, torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(128))


@pytest.mark.parametrize(
    ("layout", "plain", "registers"),
    [("official", (0.1, False), (0.0, True)), ("hf", (0.0, False), (0.0, True)), ("timm", (0.0, True), (0.0, True))],
)
def test_positions_meet_other_sizes_as_the_code_of_their_layout_does(layout, plain, registers, tmp_path):
    for name, expected in (("dinov2_small", plain), ("dinov2_small_reg", registers)):
        backbone = tiny(name, pos_offset=expected[0], pos_antialias=expected[1])
        saved = save_backbone(backbone, tmp_path / "model.safetensors", layout)
        found = load_backbone(saved)
        assert (found.pos_offset, found.pos_antialias) == expected
        assert "gramscope" not in (found.source.metadata or {})  # nothing out of the ordinary to say
        chosen = load_backbone(saved, pos_interpolation="timm")
        assert (chosen.pos_offset, chosen.pos_antialias) == (0.0, True)


def test_options_for_another_family_are_refused(tmp_path):
    vit = save_backbone(tiny(), tmp_path / "vit.safetensors")
    convnext = save_backbone(tiny("convnext_tiny"), tmp_path / "convnext.safetensors")
    with pytest.raises(ValueError, match="DINOv3 rotates"):
        load_backbone(vit, pos_interpolation="hf")
    with pytest.raises(ValueError, match="convnext has no rotary positions"):
        load_backbone(convnext, rope_periods="exact")
    with pytest.raises(ValueError, match="a ConvNeXt has none"):
        load_backbone(convnext, pos_interpolation="hf")
    with pytest.raises(ValueError, match="'rounded', 'exact' or None, got 'bf16'"):
        load_backbone(vit, rope_periods="bf16")
    with pytest.raises(ValueError, match="official, hf, timm or None, got 'no'"):
        load_backbone(vit, pos_interpolation="no")
    with pytest.raises(ValueError, match="known: official, hf, timm"):
        save_backbone(tiny(), tmp_path / "x.safetensors", "onnx")


def test_a_hash_that_is_not_the_files_stops_the_load(tmp_path):
    path, _ = official(tmp_path)
    digest = load_backbone(path).source.sha256
    assert load_backbone(path, sha256=digest).source.sha256 == digest
    with pytest.raises(WeightsError, match="expected 00112233"):
        load_backbone(path, sha256="00112233")


def test_our_files_say_what_tensors_cannot(tmp_path):
    arguments = {"rope_coords": "max", "norm_eps": 1e-6, "num_heads": 4}
    backbone = tiny(**arguments)
    backbone.pixel_mean, backbone.pixel_std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    loaded = load_backbone(save_backbone(backbone, tmp_path / "model.safetensors"))
    assert {key: loaded.arguments[key] for key in arguments} == arguments
    assert (loaded.pixel_mean, loaded.pixel_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    x = torch.randn(1, 3, 32, 64)
    assert torch.equal(tokens(loaded, x), tokens(backbone, x))
    for path, layout in (("model.pth", "official"), ("model.safetensors", "timm"), ("folder", "hf")):
        with pytest.raises(WeightsError, match="rope_coords, which readers would guess wrong"):
            save_backbone(backbone, tmp_path / path, layout)
    odd = tiny("vit_nano", rope_base=50.0)
    assert load_backbone(save_backbone(odd, tmp_path / "folder", "hf")).arguments["rope_base"] == 50.0
    with torch.no_grad():
        odd.rope_embed.periods.mul_(2)
    with pytest.raises(WeightsError, match="would not get those of this backbone"):
        save_backbone(odd, tmp_path / "folder", "hf")
    with pytest.raises(WeightsError, match="always has a layer scale"):
        save_backbone(tiny(layer_scale=None), tmp_path / "folder", "hf")


def test_heads_come_from_the_argument_the_config_or_the_convention(tmp_path):
    backbone = tiny("dinov2_small", embed_dim=96, num_heads=2)
    folder = save_backbone(backbone, tmp_path / "folder", "hf")
    assert load_backbone(folder).num_heads == 2
    with pytest.raises(WeightsError, match="how many heads share its width of 96; pass num_heads"):
        load_backbone(folder / "model.safetensors")
    assert load_backbone(folder / "model.safetensors", num_heads=2).num_heads == 2
    path, _ = official(tmp_path)
    with pytest.raises(WeightsError, match="rotary periods are for 2 heads"):
        load_backbone(path, num_heads=4)


def test_a_config_of_another_model_is_noticed(tmp_path):
    folder = save_backbone(tiny("dinov2_small"), tmp_path / "folder", "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 12}))
    with pytest.raises(WeightsError, match="num_hidden_layers 12, but the tensors have 2"):
        load_backbone(folder)


# Training exports


@pytest.mark.parametrize("wrapper", ["teacher", "model", "state_dict", None])
def test_training_exports_give_the_teachers_backbone(wrapper, tmp_path):
    backbone = tiny()
    state = {f"module.backbone.{key}": tensor for key, tensor in backbone.state_dict().items()}
    state |= {
        "module.dino_head.mlp.0.weight": torch.zeros(3, 3),
        "module.ibot_head.last_layer.weight": torch.zeros(3, 3),
    }
    torch.save({wrapper: state, "iteration": 7} if wrapper else state, tmp_path / "teacher.pth")
    loaded = load_backbone(tmp_path / "teacher.pth")
    x = torch.randn(1, 3, 32, 64)
    assert torch.equal(tokens(loaded, x), tokens(backbone, x))
    plain = read(save_backbone(loaded, tmp_path / "plain.pth"))
    assert same_bits(plain, dict(backbone.state_dict()))


# Terms, and where the pixels are


def test_the_bundled_weights_are_named_for_what_they_are():
    backbone = load_backbone("dinov2_vits14_saliency")
    source = backbone.source
    assert (source.name, source.backbone, source.layout) == ("dinov2_vits14_saliency", "dinov2_small", "hf")
    assert source.sha256 == PUBLISHED["dinov2_vits14_saliency"].sha256
    assert "not the published checkpoint" in source.origin
    assert licence_of(backbone).startswith("MIT on Apache-2.0 (https://")
    assert summary(backbone).startswith("dinov2_vits14_saliency: dinov2_small, 22,056,576 parameters, hf layout")
    assert not backbone.training
    readme = (SALIENCY.parent / "README.md").read_text()
    assert source.sha256 in readme
    assert "22,056,576" in readme


def test_terms_travel_with_converted_files(tmp_path):
    backbone = load_backbone("dinov2_vits14_saliency")
    converted = load_backbone(save_backbone(backbone, tmp_path / "mine.safetensors", "timm"))
    assert licence_of(converted) == licence_of(backbone)
    assert converted.source.origin == backbone.source.origin
    assert "no licence attached" in licence_of(tiny())
    assert "not loaded from a file" in summary(tiny())


def test_names_tell_terms_cautiously():
    assert licence_by_name("dinov3_vits16_pretrain_lvd1689m-08c60483") is DINOV3
    assert licence_by_name("timm/vit_small_patch16_dinov3.lvd1689m") is DINOV3
    assert licence_by_name("facebook/dinov2-small") is APACHE
    assert licence_by_name("dinov2_vits14_reg4_pretrain") is APACHE
    assert licence_by_name("my_dinov2_run") is UNKNOWN


def test_published_names_lead_to_backbones_of_the_table():
    assert set(PUBLISHED) >= {f"dinov2_vit{size}14{reg}" for size in "sblg" for reg in ("", "_reg")}
    assert set(PUBLISHED) >= {f"dinov3_convnext_{size}" for size in ("tiny", "small", "base", "large")}
    for name, entry in PUBLISHED.items():
        assert entry.backbone in BACKBONES
        assert entry.licence is (DINOV3 if "dinov3" in name else APACHE) or entry.path is not None
        assert (entry.path is None) == (entry.hub is not None)
        assert (entry.mirror is not None) == ("dinov3" in name)
    assert PUBLISHED["dinov3_vitl16_sat493m"].hub == "facebook/dinov3-vitl16-pretrain-sat493m"
    assert PUBLISHED["dinov3_convnext_tiny"].mirror == "timm/convnext_tiny.dinov3_lvd1689m"


def test_satellite_weights_have_satellite_pixels(tmp_path):
    path, _ = official(tmp_path, "dinov3_vitl16_pretrain_sat493m.pth")
    assert (load_backbone(path).pixel_mean, load_backbone(path).pixel_std) == (SATELLITE_MEAN, SATELLITE_STD)
    folder = save_backbone(tiny(), tmp_path / "folder", "hf")
    pixels = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    assert load_backbone(folder).pixel_mean == (0.1, 0.2, 0.3)
    (folder / "preprocessor_config.json").unlink()
    timm = {"architecture": "vit", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.1, 0.1, 0.1]}}
    (folder / "config.json").write_text(json.dumps(timm))
    assert load_backbone(folder).pixel_std == (0.1, 0.1, 0.1)


# Everything that goes wrong


def refused(source: str | Path, match: str) -> None:
    with pytest.raises(WeightsError, match=match):
        load_backbone(source)


def test_wrong_names_and_paths_say_what_there_is(tmp_path):
    refused(
        "dinov3_vits17", r"no weights called 'dinov3_vits17'; known: dinov2_vits14_saliency, .*dinov3_convnext_large"
    )
    refused("weights.pth", r"no file or folder weights.pth; check the path")
    refused(tmp_path / "nowhere", "no file or folder")
    refused("https://example.org/x.pth", "is a link; download the file")
    (tmp_path / "notes.txt").write_text("weights")
    refused(tmp_path / "notes.txt", "weight files end in .safetensors, .pth, .pt, .bin")


def test_files_without_a_backbone_tell_what_they_hold(tmp_path):
    torch.save({"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(3)}, tmp_path / "resnet.pth")
    refused(tmp_path / "resnet.pth", r"no backbone this project knows: it holds conv1.weight, fc.bias")


def test_incomplete_surplus_and_ill_fitting_tensors_are_named(tmp_path):
    path, state = official(tmp_path)

    def changed(**changes: Tensor | None) -> Path:
        new = {key: tensor for key, tensor in (state | changes).items() if tensor is not None}
        torch.save(new, tmp_path / "changed.pth")
        return tmp_path / "changed.pth"

    refused(
        changed(**{"blocks.1.mlp.fc2.bias": None}), r"changed: missing tensors: blocks.1.mlp.fc2.bias; .*Nothing was"
    )
    refused(changed(**{"rope_embed.periods": None}), "missing tensors: rope_embed.periods")
    refused(changed(mask_token=None), "missing tensors: mask_token")
    refused(changed(**{"patch_embed.proj.weight": None}), "no backbone this project knows")
    refused(changed(**{"blocks.3.norm1.bias": torch.zeros(128)}), "missing tensors: blocks.2.norm1.weight")
    refused(changed(**{"head.weight": torch.zeros(2)}), "tensors that this backbone does not have: head.weight")
    refused(changed(**{"norm.bias": torch.zeros(127)}), r"norm.bias is \(127,\), expected \(128,\)")
    refused(changed(**{"norm.bias": torch.full((128,), torch.nan)}), "not finite: norm.bias")
    refused(changed(**{"norm.bias": torch.zeros(128, dtype=torch.float64)}), r"norm.bias \(torch.float64\)")
    saved = save_backbone(load_backbone(path), tmp_path / "hf.safetensors", "hf")
    tensors = load_file(saved)
    del tensors["layer.0.norm2.weight"]
    save_file(tensors, saved)
    refused(saved, "missing tensors: layer.0.norm2.weight")


def sharded(folder: Path) -> Path:
    """A folder with a model in two files and their index, as large ones are published."""
    save_backbone(tiny(), folder, "hf")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / file, metadata={"format": "pt"})
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (folder / files.INDEX).write_text(json.dumps(index))
    return folder


def test_shards_are_one_model_and_a_missing_one_is_named(tmp_path):
    folder = sharded(tmp_path / "model")
    x = torch.randn(1, 3, 32, 64)
    torch.testing.assert_close(tokens(load_backbone(folder), x), tokens(tiny(), x), atol=1e-5, rtol=0)
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "lacks model-00002-of-00002.safetensors, of the 2 shards")


# Training exports


def heads() -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(1)
    return {
        name: {"mlp.0.weight": torch.randn(4, 128), "last_layer.weight": torch.randn(9, 4)}
        for name in ("dino_head", "ibot_head")
    }


@pytest.mark.parametrize("name", ["vit_nano", "convnext_tiny", "dinov2_small"])
def test_heads_lie_beside_the_backbone_and_come_back(tmp_path, name):
    backbone, beside = tiny(name), heads()
    path = save_backbone(backbone, tmp_path / "export.safetensors", heads=beside)
    names = {key.partition(".")[0] for key in load_file(path)}
    assert names == {"backbone", "dino_head", "ibot_head"}
    again = load_backbone(path)
    assert same_bits(dict(again.state_dict()), dict(backbone.state_dict()))
    found = read_heads(path)
    assert all(same_bits(found[head], beside[head]) for head in (*found, *beside))
    assert read_heads(save_backbone(again, tmp_path / "alone.safetensors")) == {}


def test_an_export_says_what_its_tensors_cannot(tmp_path):
    backbone = tiny("vit_nano", num_heads=4, position="learned", norm_eps=1e-6, pos_grid=5)
    backbone.pixel_mean = (0.1, 0.2, 0.3)
    again = load_backbone(save_backbone(backbone, tmp_path / "export.safetensors", heads=heads()))
    assert (again.num_heads, again.norm.eps, again.pixel_mean) == (4, 1e-6, (0.1, 0.2, 0.3))


def test_a_smaller_dtype_rounds_everything_but_the_periods(tmp_path):
    backbone, beside = tiny(), heads()
    with torch.no_grad():
        backbone.rope_embed.periods.mul_(1.0001)
    path = save_backbone(backbone, tmp_path / "half.safetensors", heads=beside, dtype=torch.bfloat16)
    tensors = load_file(path)
    assert tensors["backbone.rope_embed.periods"].equal(backbone.rope_embed.periods)
    assert tensors["backbone.cls_token"].equal(backbone.cls_token.bfloat16())
    assert tensors["dino_head.last_layer.weight"].equal(beside["dino_head"]["last_layer.weight"].bfloat16())
    with pytest.raises(ValueError, match="fp32, fp16 or bf16"):
        save_backbone(backbone, tmp_path / "half.safetensors", dtype=torch.float64)


def test_heads_have_one_place(tmp_path):
    with pytest.raises(ValueError, match=r"heads go into a \.safetensors file in the official layout, got x\.pth"):
        save_backbone(tiny(), tmp_path / "x.pth", heads=heads())
    with pytest.raises(ValueError, match="in timm layout"):
        save_backbone(tiny(), tmp_path / "x.safetensors", "timm", heads=heads())
    with pytest.raises(ValueError, match="no head called koleo_head; known: dino_head, ibot_head"):
        save_backbone(tiny(), tmp_path / "x.safetensors", heads={"koleo_head": {}})
