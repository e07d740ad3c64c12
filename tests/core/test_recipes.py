"""Recipes: what the released files and the paper say, and what every recipe must be."""

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from core import recipes
from core.config import Config, SourceConfig, from_json, to_json
from core.recipes import RECIPES, recipe, with_data, with_teachers
from core.recipes.official import as_in_paper, with_byol_blur
from core.schedules import rates_at


@pytest.fixture(params=sorted(RECIPES))
def name(request) -> str:
    return request.param


# What every recipe must be


def test_every_recipe_survives_json(name):
    assert from_json(to_json(recipe(name))) == recipe(name)


def test_every_recipe_carries_its_name_and_a_summary(name):
    assert recipe(name).name == name
    assert recipes.summary(name).endswith(".")


def test_every_function_that_makes_a_run_is_in_the_table():
    makers = [
        node.name
        for path in sorted(Path(recipes.__path__[0]).glob("*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.args.args and ast.unparse(node.returns or node) == "Config"
    ]
    assert sorted(makers) == sorted(RECIPES)


def test_rates_of_every_recipe_are_sound_at_all_times(name):
    config = recipe(name)
    marks = {0, 1, config.optim.freeze_last_layer, config.optim.lr.warmup, config.steps // 2, config.steps - 1}
    for step in sorted(marks):
        rates = rates_at(step, config)
        assert rates.lr > 0 or (step == 0 and config.optim.lr.start == 0)
        assert 0.9 < rates.momentum <= 1
        assert 0.03 < rates.teacher_temp < 0.1
        assert 0 < rates.weight_decay < 1
        assert rates.local_weight > 0
        assert (rates.gram_weight > 0) == (config.gram.use and (step > 0 or config.gram.weight.start > 0))


def test_every_recipe_fits_its_patches(name):
    config = recipe(name)
    for sizes in config.crops.sizes:
        for side in (sizes.global_size, sizes.local_size, sizes.gram_size or 0):
            assert side % config.model.patch_size == 0
        assert sizes.local_size < sizes.global_size < (sizes.gram_size or 10_000)


def test_every_recipe_builds_on_no_memory(name):
    from core.models import build_backbone

    config = recipe(name)
    assert build_backbone(config.model.arch, device="meta", **config.model.overrides()).patch_size


# The released files and the paper


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("vit7b_pretrain", 4.0e-4),
        ("vit7b_gram", 2.4e-4),
        ("vit7b_highres", 7.071e-5),
        ("vitl_imagenet1k", 5.657e-3),
        ("vitl", 5.657e-3),
        ("vit7b_paper", 4.0e-4),  # appendix C prints this one
    ],
)
def test_effective_learning_rates_are_those_of_the_release(name, rate):
    config = recipe(name)
    warm = config.optim.lr.warmup + (0 if config.optim.lr.peak else config.optim.lr.cosine)
    assert rates_at(warm, config).lr == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "steps"),
    [("vitl_imagenet1k", 125_000), ("vit7b_pretrain", 1_000_000), ("vit7b_gram", 200_000), ("vit7b_highres", 30_000)],
)
def test_runs_are_as_long_as_released(name, steps):
    assert recipe(name).steps == steps


def test_constant_rates_of_the_7b_run_stay_constant():
    config = recipe("vit7b_pretrain")
    late = [rates_at(step, config) for step in (100_000, 500_000, 999_999)]
    assert late[0] == late[1] == late[2]
    assert late[0].momentum == 0.994
    assert late[0].teacher_temp == 0.07
    assert rates_at(50_000, config).lr == pytest.approx(2e-4)
    assert rates_at(50_000, config).teacher_temp == pytest.approx(0.055)
    assert rates_at(4999, config).last_layer_lr == 0
    assert rates_at(5000, config).last_layer_lr == rates_at(5000, config).lr > 0


def test_gram_stage_goes_on_where_stage_one_ended():
    before, after = recipe("vit7b_pretrain"), recipe("vit7b_gram")
    assert rates_at(0, after).teacher_temp == rates_at(before.steps - 1, before).teacher_temp
    assert rates_at(0, after).local_weight == rates_at(before.steps - 1, before).local_weight == 1.0
    assert rates_at(999, after).local_weight == 0.5
    assert rates_at(0, after).gram_weight == 0.0
    assert rates_at(500, after).gram_weight == pytest.approx(1.0, abs=0.01)
    assert rates_at(999, after).gram_weight == 2.0


def test_high_resolution_rate_climbs_for_the_papers_ten_thousand_steps():
    config = recipe("vit7b_highres")
    rates = [rates_at(step, config).lr for step in (0, 5000, 9999, 29_999)]
    assert rates[0] == 0
    assert rates[1] == pytest.approx(rates[2] / 2, rel=1e-3)
    assert rates[2] == rates[3]
    mix = [(s.global_size, s.local_size, s.gram_size, s.probability) for s in config.crops.sizes]
    assert mix == [  # paper, appendix C, but for 168: 10.5 patches, of which released code sees 10
        (512, 112, 768, 0.3),
        (768, 112, 1152, 0.3),
        (768, 168 // 16 * 16, 1152, 0.3),
        (768, 224, 1152, 0.05),
        (768, 336, 1152, 0.05),
    ]


def test_a_batch_of_the_7b_run_has_the_papers_sequence_length():
    config = recipe("vit7b_pretrain")
    sizes, patch = config.crops.sizes[0], config.model.patch_size
    tokens = 2 * (sizes.global_size // patch) ** 2 + config.crops.num_local * (sizes.local_size // patch) ** 2
    assert config.data.batch_size * tokens == pytest.approx(3.7e6, rel=0.01)  # "3.7M tokens per batch"


def test_seven_b_heads_and_backbone_have_the_released_shapes():
    from core.models import build_backbone, count_parameters

    config = recipe("vit7b_pretrain")
    backbone = build_backbone("vit_7b", device="meta", **config.model.overrides())
    assert count_parameters(backbone) == pytest.approx(6.716e9, rel=1e-3)  # paper table 2: 6.716M
    assert (config.dino.head.prototypes, config.dino.head.bottleneck) == (262_144, 512)
    assert (config.ibot.head.prototypes, config.ibot.head.bottleneck) == (98_304, 384)


def test_vitl_has_no_registers_as_released():
    from core.models import build_backbone

    config = recipe("vitl_imagenet1k")
    backbone = build_backbone(config.model.arch, device="meta", **config.model.overrides())
    assert not hasattr(backbone, "storage_tokens")
    assert not any(name.endswith("bias_mask") for name in backbone.state_dict())
    assert backbone.norm.eps == 1e-6


def test_defaults_of_the_configuration_are_those_of_vitl():
    default, named = Config(), recipe("vitl")
    for part in ("optim", "dino", "ibot", "koleo", "gram", "crops", "data", "run", "steps"):
        assert getattr(default, part) == getattr(named, part), part


# Variants


def test_paper_variant_differs_where_the_paper_prints_something_else():
    released, printed = recipe("vit7b_pretrain"), recipe("vit7b_paper")
    assert printed.koleo == replace(released.koleo, first_crop_only=True)
    assert (released.ibot.head.hidden, printed.ibot.head.hidden) == (4096, 8192)
    assert rates_at(0, printed).momentum == 0.999
    assert printed.steps == released.steps
    assert as_in_paper(recipe("vit7b_highres")).steps == 10_000
    with pytest.raises(ValueError, match="vit_7b, not of vit_large"):
        as_in_paper(recipe("vitl"))


def test_byol_blur_is_the_release_with_the_argument_not_inverted():
    released, byol = recipe("vitl").crops.blur, with_byol_blur(recipe("vitl")).crops.blur
    assert released == (0.0, 0.9, 0.5)
    assert byol[:2] == (1 - released[0], pytest.approx(1 - released[1]))
    assert byol[2] == released[2]


def test_paths_replace_sources_and_keep_their_shares():
    config = recipe("nano_pretrain")
    assert with_data(config, []) is config
    assert [source.path for source in with_data(config, ["a", "b"]).data.sources] == ["a", "b"]
    mixed = replace(config, data=replace(config.data, sources=(SourceConfig(path="x", homogeneous=0.1),)))
    assert with_data(mixed, ["y"]).data.sources == (SourceConfig(path="y", homogeneous=0.1),)
    assert with_data(mixed, ["y", "z"]).data.sources == (SourceConfig(path="y"), SourceConfig(path="z"))


def test_teachers_keep_what_the_recipe_says_of_as_many():
    plain, embedded = recipe("nano_pretrain"), recipe("embedded")
    assert with_teachers(plain, []) is plain
    assert [teacher.name for teacher in with_teachers(plain, ["a", "b"]).distill.features] == ["a", "b"]
    renamed = with_teachers(embedded, ["a", "b"]).distill.features
    assert [(teacher.name, teacher.sees, teacher.patches) for teacher in renamed] == [
        ("a", "grid", 1.0),
        ("b", "crop", 0.3),
    ]
    assert [teacher.patches for teacher in with_teachers(embedded, ["a"]).distill.features] == [1.0]


def test_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no recipe called 'vit_b'; known: vitl, .*nano_highres"):
        recipe("vit_b")


def test_recipes_come_without_torch():
    code = "import sys, core.recipes as r; [r.recipe(n) for n in r.RECIPES]; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"
