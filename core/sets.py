"""Named sets of students: who learns from which teacher, with how many processes each, listed in SETS.

The release describes one ViT of a set (`vit_family`) and four ConvNeXts (`convnext_family`); the files of its other
ViTs are not out, and the docstrings say what stands in for them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from core.config import (
    Config,
    CropsConfig,
    CropSizes,
    DataConfig,
    DistillConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
)
from core.recipes.nano import nano_pretrain
from core.recipes.official import vit7b_pretrain
from core.schedules import Schedule, constant


@dataclass(frozen=True)
class StudentSet:
    """Configurations by the students' names, and how many processes each has."""

    configs: dict[str, Config]
    processes: dict[str, int]


def vit_family() -> StudentSet:
    """ViT-S, S+, B and L from the 7B model at once, on 48, 48, 80 and 120 of 296 GPUs (released ViT-L file).

    All four as the released ViT-L file, which is the phase after the cool-down: 25,000 steps, a rate that climbs over
    half of them. The paper's million constant steps and 250,000 of cosine cool-down come before it; set steps and
    schedules for those. The released code scales the rate for a batch of 1776, 6 images a GPU rounded down, although it
    trains on 1920, and so does this recipe.
    """
    epoch, seven = 1250, vit7b_pretrain()
    base = Config(
        steps=20 * epoch,
        model=ModelConfig(
            patch_size=16, drop_path=0.0, layer_scale=1e-5, num_registers=4, norm_eps=1e-5, mask_k_bias=True,
            untie_global_and_local_cls_norm=False, rope_rescale=2.0, rope_dtype="bfloat16",
        ),
        dino=seven.dino,
        ibot=seven.ibot,
        crops=CropsConfig(sizes=(CropSizes(global_size=256, local_size=112),), flip=0.0),
        data=DataConfig(batch_size=1920, workers=2),
        optim=OptimConfig(
            lr=Schedule(start=0.0, peak=0.0, end=5e-5 * 4 * (1776 / 1024) ** 0.5, cosine=10 * epoch),
            scaling="none",
            weight_decay=constant(0.04),
            momentum=Schedule(start=0.994, peak=0.994, end=1.0, cosine=None),
            teacher_temp=constant(0.07),
            freeze_last_layer=0,
            layer_decay=0.99,
        ),
        parallel=ParallelConfig(recompute="full"),
        run=RunConfig(checkpoint_every=3750, keep=3, export_every=12_500),
        distill=DistillConfig(teacher="runs/vit7b_highres"),
    )  # fmt: skip
    archs = {"vits": "vit_small", "vitsp": "vit_small_plus", "vitb": "vit_base", "vitl": "vit_large"}
    configs = {name: replace(base, name=name, model=replace(base.model, arch=arch)) for name, arch in archs.items()}
    return StudentSet(configs, {"vits": 48, "vitsp": 48, "vitb": 80, "vitl": 120})


def convnext_family() -> StudentSet:
    """ConvNeXt T, S, B and L from ViT-L: crops of 512 pixels that the teacher sees at 256, two GPUs a student.

    As the released files: 625,000 steps, the teacher's temperature from 0.04 to 0.07. Their scale of 2 never reaches
    the teacher, whose patches then lie elsewhere than the students' cells; here they meet.
    """
    epoch = 1250

    def student(name: str, rate: float, decay: float = 0.04) -> Config:
        return Config(
            name=name,
            steps=500 * epoch,
            model=ModelConfig(arch=name, drop_path=0.0, layer_scale=1e-6),
            crops=CropsConfig(sizes=(CropSizes(global_size=512, local_size=224),)),
            data=DataConfig(batch_size=4096, workers=10),
            optim=OptimConfig(
                lr=Schedule(start=1e-6, peak=rate, end=1e-6, warmup=80 * epoch, cosine=None),
                weight_decay=Schedule(start=decay, peak=0.2, end=0.2, warmup=500 * epoch),
                momentum=Schedule(start=0.994, peak=1.0, end=1.0, warmup=500 * epoch),
                teacher_temp=Schedule(start=0.04, peak=0.07, end=0.07, warmup=120 * epoch),
                freeze_last_layer=1 * epoch,
                layer_decay=1.0,
            ),
            distill=DistillConfig(teacher="runs/vitl_imagenet1k"),
        )

    students = [
        student("convnext_tiny", 2e-4),
        student("convnext_small", 2e-4),
        student("convnext_base", 1e-4, decay=0.02),
        student("convnext_large", 1e-4),
    ]
    return StudentSet({config.name: config for config in students}, {config.name: 2 for config in students})


def nano_pair() -> StudentSet:
    """A ViT as small as its teacher and one twice as deep, from a run of `nano_pretrain`: a set for two CPU cores.

    Name the run with --teacher RUN.
    """
    base = nano_pretrain()
    base = replace(
        base,
        steps=2000,
        optim=replace(base.optim, freeze_last_layer=0),
        distill=DistillConfig(teacher="runs/nano_pretrain"),
    )
    configs = {
        "nano": replace(base, name="nano"),
        "tiny": replace(base, name="tiny", model=replace(base.model, arch="vit_tiny")),
    }
    return StudentSet(configs, {"nano": 1, "tiny": 1})


SETS: dict[str, Callable[[], StudentSet]] = {
    "vit_family": vit_family,
    "convnext_family": convnext_family,
    "nano_pair": nano_pair,
}
