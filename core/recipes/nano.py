"""The three stages on two CPU cores, and a first run of a minute."""

from dataclasses import replace

from core.config import (
    Config,
    CropsConfig,
    CropSizes,
    DataConfig,
    DinoConfig,
    GramConfig,
    HeadConfig,
    IbotConfig,
    KoleoConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    SourceConfig,
)
from core.recipes.official import mixed
from core.schedules import Schedule, constant


def smoke() -> Config:
    """Twenty steps of a nano model on built-in photographs: proves the installation in a minute, on a CPU."""
    base = nano_pretrain()
    head = HeadConfig(prototypes=256, hidden=64, bottleneck=32)
    return replace(
        base,
        name="smoke",
        steps=20,
        dino=replace(base.dino, head=head),
        ibot=replace(base.ibot, head=head),
        crops=replace(base.crops, sizes=(CropSizes(global_size=32, local_size=16),), num_local=4),
        data=replace(base.data, batch_size=8, workers=0),
        optim=replace(
            base.optim,
            lr=Schedule(start=0.0, peak=1e-3, end=1e-3, warmup=5),
            teacher_temp=Schedule(start=0.04, peak=0.07, end=0.07, warmup=10),
            freeze_last_layer=2,
        ),
        run=replace(base.run, log_every=1, checkpoint_every=10, export_every=10, evaluate_every=0),
    )


def nano_pretrain() -> Config:
    """Stage 1 for two CPU cores: a ViT of width 128 and depth 6 on crops of 64 and 32 pixels, some hours.

    Reads the photographs that come with the code; give your own with --data PATH.
    The 7B model's way of training, shrunk: constant rates after a warm-up, EMA 0.994, betas (0.9, 0.99). Sizes are this
    project's own, and so is what lets the DINO loss leave ln(4096) within some hundred steps. While logits are small,
    prototypes grow only if two views of an image resemble each other enough: about where their correlation times
    student temperature over teacher temperature exceeds 1. A fresh net on 64 px has a correlation of 0.4 under usual
    colour distortions and of 0.7 under these; the teacher's temperature stays at 0.04; KoLeo at its usual 0.1 would
    drive views apart faster than so weak a signal holds them. Layer scale starts at 0.1, all layers learn alike. Blur
    as released: BYOL's intended probabilities would cost photographs of this size their detail.
    """
    head = HeadConfig(prototypes=4096, hidden=512, bottleneck=128)
    return Config(
        name="nano_pretrain",
        steps=10_000,
        model=ModelConfig(arch="vit_nano", patch_size=8, drop_path=0.0, layer_scale=0.1),
        dino=DinoConfig(head=head),
        ibot=IbotConfig(head=head),
        koleo=KoleoConfig(weight=0.02),
        crops=CropsConfig(
            sizes=(CropSizes(global_size=64, local_size=32),), num_local=8, jitter=0.3, grayscale=0.1, solarize=0.0
        ),
        data=DataConfig(sources=(SourceConfig(path="tiny"),), batch_size=32, workers=2),
        optim=OptimConfig(
            lr=Schedule(start=0.0, peak=1e-3, end=1e-3, warmup=100),
            scaling="none",
            weight_decay=constant(0.04),
            momentum=constant(0.994),
            teacher_temp=constant(0.04),
            freeze_last_layer=50,
            betas=(0.9, 0.99),
            clip=3.0,
            layer_decay=1.0,
            patch_embed_lr=1.0,
        ),
        parallel=ParallelConfig(precision="fp32", compile=False),
        run=RunConfig(log_every=10, checkpoint_every=250, keep=2, export_every=1000, evaluate_every=500),
    )


def nano_gram() -> Config:
    """Stage 2 for two CPU cores: Gram anchoring of `nano_pretrain` to an early teacher of it, seen at 128 pixels.

    Name the run that it continues with --init.student RUN, and the teacher with --gram.teacher RUN@STEP.
    """
    anchored_run = anchored(nano_pretrain(), student="runs/nano_pretrain", teacher="runs/nano_pretrain@2000")
    return replace(anchored_run, name="nano_gram")


def anchored(stage1: Config, *, student: str, teacher: str) -> Config:
    """A stage of Gram anchoring that continues a run of `stage1`, as the 7B model's second continues its first.

    A fifth of the steps, at 3/5 of the rate; EMA 0.999; the Gram teacher sees its crops, undistorted, at twice the size
    and is replaced by the EMA teacher after every quarter. student, teacher: run folders ("RUN" or "RUN@STEP").
    """
    steps = max(stage1.steps // 5, 4)
    warm = min(100, steps // 4)
    return replace(
        stage1,
        name=f"{stage1.name}_gram",
        steps=steps,
        init=replace(stage1.init, student=student, narrow=""),
        dino=replace(stage1.dino, local_weight=Schedule(start=1.0, peak=1.0, end=0.5, cosine=warm)),
        gram=GramConfig(
            use=True,
            teacher=teacher,
            weight=Schedule(start=0.0, peak=0.0, end=2.0, cosine=warm),
            refresh_every=steps // 4,
            refresh_first=steps // 4,
            refresh_max=3,
        ),
        crops=seen_larger(stage1.crops),
        optim=replace(
            stage1.optim,
            lr=constant(0.6 * stage1.optim.lr.peak),
            momentum=constant(0.999),
            freeze_last_layer=0,
        ),
    )


def seen_larger(crops: CropsConfig) -> CropsConfig:
    """The same crops, which a Gram teacher sees undistorted and at twice the size (section 4.3)."""
    sizes = tuple(replace(each, gram_size=2 * each.global_size) for each in crops.sizes)
    return replace(crops, sizes=sizes, gram_distorted=False)


def nano_highres() -> Config:
    """Stage 3 for two CPU cores: `nano_gram` at mixed sizes of 96 and 128 pixels.

    Name the run that it continues with --init.student RUN and --gram.teacher RUN; here both may be the same.
    """
    stage2 = nano_gram()
    mix = ((96, 32, 192, 0.3), (128, 32, 256, 0.3), (128, 48, 256, 0.3), (128, 64, 256, 0.1))
    return replace(
        stage2,
        name="nano_highres",
        steps=1000,
        init=replace(stage2.init, student="runs/nano_gram"),
        dino=replace(stage2.dino, local_weight=constant(0.5)),
        gram=replace(
            stage2.gram,
            teacher="runs/nano_gram",
            weight=constant(1.5),
            refresh_every=0,
            refresh_first=0,
            refresh_max=None,
        ),
        crops=replace(stage2.crops, sizes=mixed(mix)),
        data=replace(stage2.data, batch_size=16),  # half, as in the 7B runs
        optim=replace(stage2.optim, lr=Schedule(start=0.0, peak=0.0, end=2e-4, cosine=300)),
        run=replace(stage2.run, export_every=250, evaluate_every=250),
    )
