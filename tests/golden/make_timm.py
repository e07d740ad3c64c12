"""Writes timm_*.safetensors: what timm's own models compute, for the tests of our loader to agree with.

Made with torch 2.14.1, torchvision 0.29.1 and timm 1.0.31 on a CPU, in an environment of its own:
`python tests/golden/make_timm.py`. Tiny widths, every parameter random; weights are kept in half precision and
were rounded to it before the run, so the outputs belong to exactly the numbers in the file.
"""

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
VIT = {"embed_dim": 128, "depth": 2, "num_heads": 2, "patch_size": 8}
DINOV2 = VIT | {"img_size": 32, "dynamic_img_size": True, "mlp_ratio": 1.5}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)}

# file: (timm's model, changes that make it tiny, input height and width)
MODELS = {
    "timm_dinov3": ("vit_small_patch16_dinov3", VIT | {"mlp_ratio": 1.5}, (40, 56)),
    "timm_dinov3_qkvb": ("vit_small_patch16_dinov3_qkvb", VIT | {"mlp_ratio": 1.5}, (40, 56)),
    "timm_dinov3_swiglu": ("vit_7b_patch16_dinov3", VIT | {"mlp_ratio": 0.8}, (56, 40)),
    "timm_dinov3_swiglu_qkvb": ("vit_small_plus_patch16_dinov3_qkvb", VIT | {"mlp_ratio": 0.8}, (56, 40)),
    "timm_dinov2": ("vit_small_patch14_dinov2", DINOV2, (40, 56)),
    "timm_dinov2_reg": ("vit_small_patch14_reg4_dinov2", DINOV2, (40, 24)),
    "timm_dinov2_giant_reg": ("vit_giant_patch14_reg4_dinov2", DINOV2, (32, 32)),
    "timm_convnext": ("convnext_tiny.dinov3_lvd1689m", CONVNEXT, (96, 128)),
}


@torch.no_grad()
def main() -> None:
    for index, (file, (name, changes, (height, width))) in enumerate(MODELS.items()):
        torch.manual_seed(index)
        model = timm.create_model(name, **changes).eval()
        for key, tensor in model.state_dict().items():
            # Around one for factors, around zero for the rest, so no term of the network vanishes.
            factor = tensor.ndim == 1 and key.endswith(("weight", "gamma", "gamma_1", "gamma_2"))
            scale = 0.3 if tensor.ndim < 2 or "token" in key or "pos" in key else tensor[0].numel() ** -0.5
            tensor.copy_((torch.randn(tensor.shape) * scale + factor).half())
        x = torch.randn(2, 3, height, width).half().float()
        features = model.forward_features(x)
        tensors = {f"state.{key}": tensor.half() for key, tensor in model.state_dict().items()}
        tensors |= {"x": x, "features": features.contiguous()}
        if "convnext" in name:
            tensors["pooled"] = model.forward_head(features, pre_logits=True)
        metadata = {"model": name, "changes": repr(changes), "timm": timm.__version__, "torch": torch.__version__}
        save_file(tensors, HERE / f"{file}.safetensors", metadata=metadata)


if __name__ == "__main__":
    main()
