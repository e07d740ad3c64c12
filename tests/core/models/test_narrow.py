"""A narrow ViT cut out of a wide one: nothing is lost where nothing has to go, and much is kept where it has."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.models import build_backbone
from core.models.narrow import Fit, _strongest, narrow
from core.models.weights import load_backbone
from workbench.images import list_samples, open_image

SHAPE = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 4, "num_registers": 0, "layer_scale": 0.5}


def vit(seed: int = 0, **changes: object) -> nn.Module:
    """A small ViT with weights far from those of a start."""
    torch.manual_seed(seed)
    model = build_backbone("vit_small", **SHAPE | changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter[0].numel() ** -0.5)
            elif "norm" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def pictures(count: int, side: int) -> Tensor:
    """Cut from the demo photographs, in the usual normalisation."""
    crops = []
    draw = torch.Generator().manual_seed(0)
    photos = [torch.tensor(open_image(item.path).pixels).permute(2, 0, 1).float() / 255 for item in list_samples()]
    for number in range(count):
        photo = photos[number % len(photos)]
        size = int(torch.randint(side, min(photo.shape[1:]), (), generator=draw))
        top, left = (int(torch.randint(photo.shape[axis] - size + 1, (), generator=draw)) for axis in (1, 2))
        crops.append(F.interpolate(photo[None, :, top : top + size, left : left + size], (side, side), mode="area")[0])
    return (torch.stack(crops) - 0.45) / 0.225


def patches(model: nn.Module, crops: Tensor) -> Tensor:
    """The patch tokens of all crops, in rows."""
    with torch.no_grad():
        return model.eval()(crops, is_training=True)["x_norm_patchtokens"].flatten(0, 1)


def explained(thin: nn.Module, wide: nn.Module, crops: Tensor, shown: Tensor, fitted: int) -> float:
    """Share of variance of the wide model's patches that the best linear map of the thin one's has, on the crops after
    those that it is fitted on."""
    found, wanted = patches(thin, crops), patches(wide, shown)
    rows = fitted * len(found) // len(crops)
    fit = Fit(found.shape[1], wanted.shape[1])
    fit.add(found[:rows], wanted[:rows], torch.ones(rows))
    weight, bias = fit.solve()
    error = found[rows:] @ weight.T + bias - wanted[rows:]
    return 1 - float(error.square().sum() / (wanted[rows:] - wanted[rows:].mean(0)).square().sum())


def test_a_copy_of_the_same_width_loses_nothing(monkeypatch):
    monkeypatch.setattr("core.models.narrow.RIDGE", 1e-9)
    wide, thin = vit(), vit(1)
    crops = pictures(120, 24)
    missed = narrow(wide, thin, crops)
    assert max(missed) < 1e-3
    assert explained(thin, wide, crops, crops, 80) > 0.998


@pytest.mark.long
def test_half_the_width_of_the_real_model_keeps_more_than_any_start():
    wide = load_backbone("dinov2_vits14_saliency").eval()
    thin = build_backbone("vit_tiny", patch_size=16, num_registers=4, layer_scale=0.1)
    fresh = build_backbone("vit_tiny", patch_size=16, num_registers=4, layer_scale=0.1).eval()
    crops = pictures(160, 96)
    shown = F.interpolate(crops, (84, 84), mode="bilinear", antialias=True)
    missed = narrow(wide, thin, crops[:120], shown[:120])
    assert max(missed) < 0.2
    kept, before = (explained(model, wide, crops, shown, 120) for model in (thin, fresh))
    assert kept > 0.3 and kept > before + 0.2, (kept, before)


def test_the_models_stay_in_their_modes_and_the_wide_one_as_it_was():
    wide, thin = vit().train(), vit(1, embed_dim=32, num_heads=2).eval()
    before = {name: x.clone() for name, x in wide.state_dict().items()}
    narrow(wide, thin, pictures(20, 24))
    assert wide.training and not thin.training
    assert all(torch.equal(x, before[name]) for name, x in wide.state_dict().items())


def test_the_same_pictures_give_the_same_weights():
    crops = pictures(20, 24)
    models = [vit(seed, embed_dim=32, num_heads=2, num_registers=2) for seed in (1, 2)]
    for model in models:
        narrow(vit(), model, crops)
    assert all(torch.equal(x, models[1].state_dict()[name]) for name, x in models[0].state_dict().items())


def test_the_narrow_stream_has_a_mean_of_zero_where_layer_norm_takes_it_away():
    thin = vit(1, embed_dim=32, num_heads=2)
    narrow(vit(), thin, pictures(20, 24))
    assert thin.patch_embed.proj.weight.sum(0).abs().max() < 1e-5


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 3}, "cannot be cut out"),
        ({"num_heads": 2}, "width of a head must agree"),
        ({"embed_dim": 64, "num_heads": 4}, "cannot be cut out"),
        ({"ffn": "swiglu"}, "SwiGLU"),
        ({"patch_size": 6}, "as many patches"),
    ],
)
def test_what_cannot_be_cut_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        narrow(vit(), build_backbone("vit_small", **SHAPE | changes), pictures(4, 24))


def test_whole_units_are_kept_in_their_order():
    writes = torch.tensor([1.0, 1.0, 5.0, 0.0, 0.0, 9.0, 0.0, 0.0])
    assert _strongest(writes, 2, 4).tolist() == [2, 3, 4, 5]


def test_a_fit_in_parts_is_least_squares(monkeypatch):
    monkeypatch.setattr("core.models.narrow.RIDGE", 0.0)
    draw = torch.Generator().manual_seed(0)
    x, y, weights = (torch.randn(*shape, generator=draw) for shape in ((60, 5), (60, 3), (60,)))
    weights = weights.abs() + 0.1
    fit = Fit(5, 3)
    for part in range(0, 60, 20):
        fit.add(x[part : part + 20], y[part : part + 20], weights[part : part + 20])
    weight, bias = fit.solve()
    root = weights.sqrt()[:, None]
    wanted = torch.linalg.lstsq(torch.cat([x, torch.ones(60, 1)], 1) * root, y * root).solution
    assert torch.allclose(torch.cat([weight.T, bias[None]]), wanted, atol=1e-5)
