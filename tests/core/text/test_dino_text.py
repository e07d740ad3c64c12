"""dino.txt beside the golden file of the reference implementation, and what it promises."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from core.losses import contrastive
from core.models import build_backbone
from core.models.vit import VisionTransformer
from core.text import build_dino_text
from core.text.transformer import TextTransformer
from core.text.vision_head import VisionHead

GOLDEN = Path(__file__).parents[2] / "golden" / "dinotxt.safetensors"


@pytest.fixture(scope="module")
def golden():
    """Tensors and settings of the golden file."""
    with safe_open(GOLDEN, "pt") as file:
        settings = {name: json.loads(text) for name, text in file.metadata().items()}
        return {name: file.get_tensor(name) for name in file.keys()}, settings  # noqa: SIM118


@pytest.fixture(scope="module")
def model(golden):
    tensors, settings = golden
    vision, head, text = settings["vision"], settings["head"], settings["text"]
    backbone = VisionTransformer(
        patch_size=vision["patch_size"],
        embed_dim=vision["embed_dim"],
        depth=vision["depth"],
        num_heads=vision["num_heads"],
        num_registers=vision["n_storage_tokens"],
        layer_scale=vision["layerscale_init"],
        mask_k_bias=vision["mask_k_bias"],
        rope_rescale=float(vision["pos_embed_rope_rescale_coords"]),
    )
    made = build_dino_text(
        backbone,
        out_dim=head["embed_dim"],
        head_depth=head["blocks"],
        vocabulary=text["vocab_size"],
        context=text["context_length"],
        text_dim=text["dim"],
        text_heads=text["num_heads"],
        text_depth=text["num_layers"],
    )
    state = {name.removeprefix("state."): x for name, x in tensors.items() if name.startswith("state.")}
    made.load_state_dict(state)
    return made.eval()


def test_images_and_texts_come_out_as_in_the_reference(model, golden):
    tensors, _ = golden
    with torch.no_grad():
        images = model.encode_image(tensors["images"], normalize=True)
        texts = model.encode_text(tensors["tokens"], normalize=True)
        long = model.encode_image(tensors["images"]).vector
    assert_close(images.vector, tensors["image_features"], atol=1e-5, rtol=0)
    assert_close(long, tensors["image_cls"], atol=1e-5, rtol=0)
    assert_close(images.patches, tensors["patch_tokens"], atol=1e-5, rtol=0)
    assert_close(images.backbone_patches, tensors["backbone_patch_tokens"], atol=1e-5, rtol=0)
    assert_close(texts, tensors["text_features"], atol=1e-5, rtol=0)


def test_the_loss_is_that_of_the_reference(model, golden):
    tensors, _ = golden
    loss = contrastive(tensors["image_features"], tensors["text_features"], model.scale)
    assert_close(loss, tensors["clip_loss"], atol=1e-5, rtol=0)


def test_names_of_the_trained_part_are_the_released_ones(model):
    """302 of them for ViT-L (facts of the release); here 2 + 2 blocks."""
    state = model.trained_state()
    assert "logit_scale" in state and not any("visual_model.backbone" in name for name in state)
    other = build_dino_text(
        model.visual_model.backbone, vocabulary=120, context=16, text_dim=48, text_heads=4, text_depth=2
    )
    other.load_trained(state)
    assert all(torch.equal(x, state[name]) for name, x in other.trained_state().items())
    del state["logit_scale"]
    with pytest.raises(ValueError, match=r"missing \['logit_scale'\]"):
        other.load_trained(state)


def test_the_released_model_has_as_many_tensors_and_parameters_as_the_release():
    with torch.device("meta"):
        head = VisionHead(1024, 16)
        text = TextTransformer()
    backbone = build_backbone("vit_nano")
    small = build_dino_text(backbone, vocabulary=10, context=4, text_dim=8, text_heads=2, text_depth=1)
    projections = 1280 * 2048
    count = sum(x.numel() for part in (head, text) for x in part.parameters()) + projections + 1
    assert round(count / 1e6, 1) == 563.5
    names = len(head.state_dict()) + len(text.state_dict()) + 2
    assert names == 302
    assert small.out_dim == 2 * backbone.embed_dim


def test_only_head_text_and_scale_learn(model):
    trained = {name.split(".")[0] for name, x in model.named_parameters() if x.requires_grad}
    assert trained == {"visual_model", "text_model", "logit_scale"}
    assert not any(x.requires_grad for x in model.visual_model.backbone.parameters())
    model.train()
    assert not model.visual_model.backbone.training and model.visual_model.head.training
    model.eval()


def test_a_vector_is_cls_beside_the_mean_patch(model, golden):
    with torch.no_grad():
        found = model.encode_image(golden[0]["images"], normalize=True)
    assert_close(found.vector.norm(dim=1), torch.ones(3))
    half = found.vector.shape[1] // 2
    mean = found.patches.mean(1)
    assert torch.cosine_similarity(found.vector[:, half:], mean).min() > 0.999999


def test_what_was_kept_of_the_backbone_gives_the_same(model, golden):
    with torch.no_grad():
        kept = model.visual_model.look(golden[0]["images"])
        assert_close(model.visual_model(kept).vector, model.encode_image(golden[0]["images"]).vector)


def test_a_convolutional_backbone_and_another_width_will_do():
    backbone = build_backbone("convnext_tiny")
    made = build_dino_text(
        backbone, out_dim=64, vocabulary=50, context=8, text_dim=16, text_heads=2, text_depth=1, head_depth=1
    ).eval()
    with torch.no_grad():
        found = made.encode_image(torch.randn(2, 3, 64, 64))
    assert found.vector.shape == (2, 64) and found.patches.shape[2] == 32


def test_at_the_start_the_scale_is_the_usual_one_and_it_is_held_below_a_hundred(model):
    fresh = build_dino_text(
        build_backbone("vit_nano"), vocabulary=10, context=4, text_dim=8, text_heads=2, text_depth=1
    )
    assert float(fresh.logit_scale) == pytest.approx(2.659260036932778)
    with torch.no_grad():
        fresh.logit_scale.fill_(9.0)
    fresh.clamp_scale()
    assert float(fresh.logit_scale) == pytest.approx(math.log(100))


def test_texts_beyond_the_context_are_refused(model):
    with pytest.raises(ValueError, match="20 tokens are more than the context of 16"):
        model.encode_text(torch.ones(1, 20, dtype=torch.int64))


def test_a_text_does_not_hear_what_comes_after_its_end(model):
    tokens = torch.tensor([[1, 5, 7, 119, 0, 0]])
    other = torch.tensor([[1, 5, 7, 119, 3, 9]])
    with torch.no_grad():
        assert_close(model.encode_text(tokens), model.encode_text(other))
