"""What a run costs, beside a step that is really done."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core.config import Config, CropsConfig, CropSizes, HeadConfig, ModelConfig, TeacherConfig
from core.cost import training_cost
from core.data.batch import Batch
from core.distill import build
from core.recipes import recipe
from core.schedules import rates_at

HEAD = HeadConfig(prototypes=512, hidden=96, bottleneck=32)


@pytest.mark.parametrize("anchored", [False, True])
def test_the_arithmetic_is_that_of_a_step(anchored):
    config = Config(
        model=ModelConfig(arch="vit_nano", patch_size=8, drop_path=0.0),
        crops=CropsConfig(sizes=(CropSizes(global_size=64, local_size=32, gram_size=128),), num_local=4),
    )
    config = replace(
        config,
        dino=replace(config.dino, head=HEAD),
        ibot=replace(config.ibot, head=HEAD),
        data=replace(config.data, batch_size=4),
        gram=replace(config.gram, use=anchored, load_ema_at=0),
    )
    draw = torch.Generator().manual_seed(0)
    masks = torch.rand(8, 64, generator=draw) < 0.15  # as many as are masked on average
    gram = torch.randn(8, 3, 128, 128, generator=draw) if anchored else None
    batch = Batch(torch.randn(8, 3, 64, 64, generator=draw), torch.randn(16, 3, 32, 32, generator=draw), gram, masks)
    torch.manual_seed(0)
    model, rates = build(config), rates_at(0, config)
    if anchored:
        model.prepare_gram_teacher(0)
    with FlopCounterMode(display=False) as counter:
        seen, targets = model.look(batch, rates)
        total, _ = model(seen, targets, rates)
        total.backward()
    assert training_cost(config).flops == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_the_7b_run_sees_as_many_patches_as_the_paper_prints():
    cost = training_cost(recipe("vit7b_pretrain"), world=256)
    assert cost.patches == pytest.approx(3.7e6, rel=0.01)  # appendix C: sequence length per batch
    assert cost.parameters > 6.7e9
    assert cost.models_gib * 256 * 2**30 == pytest.approx(5 * 4 * cost.parameters, rel=1e-6)


def test_hours_are_arithmetic_over_speed():
    cost = training_cost(recipe("nano_pretrain"))
    assert cost.hours(0.1, 1.0) == pytest.approx(cost.steps * cost.flops / 1e11 / 3600)
    assert training_cost(recipe("nano_pretrain"), world=4).hours(0.1, 0.5) == pytest.approx(cost.hours(0.1, 1.0) / 2)


@pytest.mark.long
def test_mixed_crop_sizes_are_weighed_by_their_shares():
    config = recipe("vit7b_highres")
    each = [
        training_cost(replace(config, crops=replace(config.crops, sizes=(replace(size, probability=1.0),)))).patches
        for size in config.crops.sizes
    ]
    shares = [size.probability for size in config.crops.sizes]
    wanted = sum(share * patches for share, patches in zip(shares, each, strict=True)) / sum(shares)
    assert training_cost(config).patches == pytest.approx(wanted)


def test_frozen_teachers_are_measured():
    config = recipe("smoke")
    taught = replace(config, distill=replace(config.distill, features=(TeacherConfig(name="dinov2_vits14_saliency"),)))
    with pytest.raises(ValueError, match="gramscope distill --plan"):
        training_cost(taught)


@pytest.mark.long
def test_the_table_in_the_documentation_is_true():
    page = (Path(__file__).parents[2] / "docs" / "7b.md").read_text()
    rows = {}
    for line in page.splitlines():
        if line.startswith("| ") and not line.startswith("| |"):
            name, *values = [cell.strip() for cell in line.strip("|").split("|")]
            rows[name] = [float(value.split()[0].replace(",", "")) for value in values]
    for column, name in enumerate(("vit7b_pretrain", "vit7b_gram", "vit7b_highres")):
        config = recipe(name)
        cost = training_cost(config, world=256)
        found = {
            "steps": cost.steps,
            "images a step": config.data.batch_size,
            "patches a step": cost.patches / 1e6,
            "arithmetic a step": cost.flops / 1e12,
            "models and optimizer, a GPU": cost.models_gib,
            "activations, a GPU (estimate)": cost.activations_gib,
            "a checkpoint": cost.checkpoint_gib,
            "hours at 35 % of 989 TFLOP/s": cost.hours(989.0, 0.35),
        }
        assert set(found) == set(rows)
        for row, value in found.items():
            assert rows[row][column] == pytest.approx(value, rel=0.01), (name, row)
