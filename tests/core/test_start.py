"""What a run begins with when it is cut out of a wider model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.config import (
    Config,
    CropsConfig,
    CropSizes,
    DataConfig,
    DistillConfig,
    HeadConfig,
    InitConfig,
    ModelConfig,
    SourceConfig,
    TeacherConfig,
)
from core.distill import build
from core.models import build_backbone
from core.models.narrow import narrow
from core.models.weights import load_backbone, save_backbone
from core.start import first_crops, start_from


@pytest.fixture
def wide(tmp_path) -> Path:
    torch.manual_seed(5)
    model = build_backbone("vit_nano", embed_dim=192, num_heads=3, patch_size=8, layer_scale=0.5)
    save_backbone(model, tmp_path / "wide.safetensors")
    return tmp_path / "wide.safetensors"


def config_of(wide: Path) -> Config:
    small, head = CropSizes(global_size=32, local_size=16), HeadConfig(prototypes=32, hidden=16, bottleneck=8)
    config = Config(
        model=ModelConfig(arch="vit_nano", patch_size=8, drop_path=0.0, layer_scale=0.1),
        crops=CropsConfig(sizes=(small,), num_local=2),
        data=DataConfig(sources=(SourceConfig(path="tiny"),), batch_size=8, workers=0),
        init=InitConfig(narrow=str(wide), narrow_images=40),
    )
    heads = {name: replace(getattr(config, name), head=head) for name in ("dino", "ibot")}
    return replace(config, **heads)


def test_student_and_teacher_start_as_the_narrow_form_of_what_init_names(wide):
    config = config_of(wide)
    model = build(config)
    before = model.student["dino_head"].state_dict()["mlp.0.weight"].clone()
    start_from(model, config)
    wanted = build_backbone("vit_nano", **config.model.overrides())
    narrow(load_backbone(wide), wanted, first_crops(config, 40))
    for network in (model.student, model.teacher):
        found = network["backbone"].state_dict()
        assert all(torch.equal(found[name], x) for name, x in wanted.state_dict().items())
        assert network["backbone"].source is not None
    assert torch.equal(model.student["dino_head"].state_dict()["mlp.0.weight"], before)
    assert model.student.training


def test_a_student_that_sees_its_crops_larger_is_fitted_on_them_so(wide):
    config = config_of(wide)
    teacher = DistillConfig(features=(TeacherConfig(name=str(wide)),), student_scale=2.0)
    config = replace(config, model=replace(config.model, patch_size=16), distill=teacher)
    model = build(config)
    start_from(model, config)
    tokens = model.student["backbone"](torch.zeros(1, 3, 64, 64), is_training=True)["x_norm_patchtokens"]
    assert tokens.shape == (1, 16, 128) and bool(tokens.isfinite().all())


def test_the_crops_are_those_of_the_first_steps_and_always_the_same(wide):
    config = config_of(wide)
    crops = first_crops(config, 40)
    assert crops.shape == (40, 3, 32, 32)
    assert torch.equal(crops, first_crops(config, 40))
    assert not torch.equal(crops[:16], crops[16:32])


def test_a_start_is_one_or_the_other(wide):
    with pytest.raises(ValueError, match="not both"):
        replace(config_of(wide), init=InitConfig(narrow=str(wide), student=str(wide)))


def test_only_a_vit_is_cut_out_of_a_vit(wide):
    config = replace(config_of(wide), model=ModelConfig(arch="convnext_tiny", drop_path=0.0))
    with pytest.raises(ValueError, match="only a ViT"):
        start_from(build(config), config)
