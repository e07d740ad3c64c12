"""What teachers saw of views that come again: looked at once, the same afterwards, never of something else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from core.config import (
    Config,
    CropsConfig,
    CropSizes,
    DataConfig,
    DinoConfig,
    DistillConfig,
    IbotConfig,
    KoleoConfig,
    ModelConfig,
    SourceConfig,
    TeacherConfig,
)
from core.data.loader import Steps
from core.distill import build
from core.models import build_backbone
from core.models.weights import save_backbone
from core.schedules import Rates
from core.seen import SeenStore

RATES = Rates(
    lr=1e-3, last_layer_lr=1e-3, weight_decay=0.0, momentum=0.9, teacher_temp=0.05, local_weight=1.0, gram_weight=0.0
)


def test_what_is_written_is_read_in_half_precision(tmp_path):
    store = SeenStore(tmp_path / "seen", 10, {"a": 1})
    keys, seen = torch.tensor([7, 2, -1]), {"t.cls": torch.randn(6, 4), "t.patches": torch.randn(6, 2, 2, 3)}
    assert store.read(keys[:2]) is None
    first = store.write(keys, seen)
    for name, x in seen.items():
        assert torch.equal(first[name], x.half().float())
    assert store.read(keys) is None  # the last one is no view that comes again
    again = SeenStore(tmp_path / "seen", 10, {"a": 1}).read(keys[:2])
    for name, x in first.items():
        assert torch.equal(again[name], x.unflatten(0, (2, 3))[:, :2].flatten(0, 1))


def test_a_folder_of_something_else_is_refused(tmp_path):
    SeenStore(tmp_path / "seen", 10, {"views": 1})
    with pytest.raises(ValueError, match=r"name another folder in distill\.keep"):
        SeenStore(tmp_path / "seen", 10, {"views": 2})


@pytest.fixture
def config(tmp_path) -> Config:
    (tmp_path / "pictures").mkdir()
    draw = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "pictures" / f"{number}.png")
    torch.manual_seed(0)
    weights = save_backbone(
        build_backbone("vit_nano", patch_size=8, depth=1, layer_scale=0.5), tmp_path / "t.safetensors"
    )
    off = {"weight": 0.0}
    return Config(
        model=ModelConfig(arch="vit_nano", patch_size=8, drop_path=0.0),
        dino=DinoConfig(**off),
        ibot=IbotConfig(**off),
        koleo=KoleoConfig(**off),
        crops=CropsConfig(sizes=(CropSizes(global_size=32, local_size=16),), num_local=0),
        data=DataConfig(sources=(SourceConfig(path=str(tmp_path / "pictures")),), batch_size=6, workers=0),
        distill=DistillConfig(
            features=(TeacherConfig(name=str(weights)),), chunk=2, views=2, keep=str(tmp_path / "seen")
        ),
    )


def test_an_image_has_so_many_views_and_they_come_again(config):
    steps = Steps(config, rank=0, size=1)
    batches = [steps[step] for step in range(5)]  # each step is a whole pass
    keys = [set(batch.keys.tolist()) for batch in batches]
    assert keys[0] == keys[2] == keys[4] == set(range(0, 12, 2)) and keys[1] == keys[3] == set(range(1, 12, 2))
    by_key = [
        {int(key): batch.global_crops.unflatten(0, (2, -1))[:, place] for place, key in enumerate(batch.keys)}
        for batch in batches
    ]
    assert all(torch.equal(by_key[0][key], by_key[2][key]) for key in keys[0])
    assert not torch.equal(by_key[0][0], by_key[1][1])


def test_teachers_look_at_each_view_once_and_students_cannot_tell(config):
    steps, plain = Steps(config, rank=0, size=1), replace(config, distill=replace(config.distill, keep=""))
    kept, fresh = build(config), build(plain)
    looks = []
    teacher = next(iter(kept.teachers.values()))
    see = teacher.see

    def counted(crops):
        looks.append(len(crops))
        return see(crops)

    teacher.see = counted
    for step in range(4):
        batch = steps[step]
        found, expected = (model.look(batch, RATES)[1].features[0] for model in (kept, fresh))
        assert torch.equal(found.cls, expected.cls.half().float())
        assert torch.equal(found.patches, expected.patches.half().float())
    assert sum(looks) == 2 * 12  # two crops of twelve views, though four passes were made


def test_keeping_what_never_comes_again_is_refused():
    with pytest.raises(ValueError, match=r"distill\.keep needs distill\.views"):
        DistillConfig(keep="somewhere")
