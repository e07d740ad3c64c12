"""The official recipes: what the released configuration files say.

Where the paper prints something else the docstring names it and how to get it. The release counts lengths in "epochs"
of E steps, whatever the size of the data: E is 1000 in the 7B files and 1250 in the others, and the products below show
the arithmetic. Its batch sizes are per GPU, ours are global. Not here, because the release does not have them: the
students' million steps and their 250k of cool-down, the satellite models.

The paper mixes in steps of one source alone: `SourceConfig(path, homogeneous=0.1)` for ImageNet-1k. Official recipes
come without sources, since nobody else has those images.
"""

from collections.abc import Sequence
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
)
from core.schedules import Schedule, constant


def vitl() -> Config:
    """ViT-L/16 with every default of the release: 125,000 steps at 224 pixels, batch 2048.

    Blur acts with the probabilities (0, 0.9, 0.5) of the released code; `with_byol_blur` gives the intended ones.
    KoLeo looks at both global crops (paper: the first, `koleo.first_crop_only`). Rotary positions are computed in bf16,
    as released training always did; `model.rope_dtype` float32 is what the released models run with afterwards.
    The file leaves the number of GPUs open; 32 of 64 images, as on ImageNet-1k.
    """
    epoch = 1250
    return Config(
        name="vitl",
        steps=100 * epoch,
        model=ModelConfig(
            arch="vit_large",
            patch_size=16,
            drop_path=0.3,
            layer_scale=1e-5,
            num_registers=0,
            norm_eps=1e-6,
            mask_k_bias=False,
            untie_global_and_local_cls_norm=False,
            rope_dtype="bfloat16",
        ),
        data=DataConfig(batch_size=64 * 32, workers=10),
        optim=OptimConfig(
            lr=Schedule(start=0.0, peak=1e-3, end=1e-6, warmup=10 * epoch, cosine=None, inclusive=True),
            scaling="sqrt_1024",
            weight_decay=Schedule(start=0.04, peak=0.04, end=0.4, cosine=None, inclusive=True),
            momentum=Schedule(start=0.992, peak=0.992, end=1.0, cosine=None, inclusive=True),
            teacher_temp=Schedule(start=0.04, peak=0.07, end=0.07, warmup=30 * epoch, inclusive=True),
            freeze_last_layer=1 * epoch,
            betas=(0.9, 0.999),
            clip=3.0,
            layer_decay=0.9,
            patch_embed_lr=0.2,
        ),
        run=RunConfig(checkpoint_every=3750, keep=3, export_every=12_500),
    )


def vitl_imagenet1k() -> Config:
    """ViT-L/16 on ImageNet-1k, 32 GPUs of 64 images: the released file claims 82.2 k-NN and 83.3 linear.

    The same numbers as `vitl`; the file differs from the defaults only in how it reads the data. Give the training
    images with --data.
    """
    return replace(vitl(), name="vitl_imagenet1k")


def vit7b_pretrain() -> Config:
    """Stage 1 of the 7B model: a million steps at 256 pixels, constant rates after 100,000 steps, batch 4096.

    As the released file, in particular EMA 0.994 (paper, appendix C: 0.999), the iBOT head's hidden width of 4096
    (8192) and KoLeo on both global crops (on the first one); `vit7b_paper` has the printed values. The file's local
    KoLeo on 16 images a GPU is written here as groups of 16, so that it does not change with the number of processes.
    No horizontal flips. Rotary positions in bf16, as the released code computes them although this file asks for fp32.
    """
    epoch = 1000
    rate = 5e-5  # times 4 sqrt(4096 / 1024) = 4e-4, which the paper prints
    return Config(
        name="vit7b_pretrain",
        steps=1000 * epoch,
        model=ModelConfig(
            arch="vit_7b",
            patch_size=16,
            drop_path=0.4,
            layer_scale=1e-5,
            num_registers=4,
            norm_eps=1e-5,
            mask_k_bias=True,
            untie_global_and_local_cls_norm=True,
            rope_rescale=2.0,
            rope_dtype="bfloat16",
        ),
        dino=DinoConfig(head=HeadConfig(prototypes=262_144, hidden=8192, bottleneck=512)),
        ibot=IbotConfig(head=HeadConfig(prototypes=98_304, hidden=4096, bottleneck=384)),
        koleo=KoleoConfig(weight=0.1, group=16),
        crops=CropsConfig(sizes=(CropSizes(global_size=256, local_size=112),), flip=0.0),
        data=DataConfig(batch_size=16 * 256, workers=10),
        optim=OptimConfig(
            lr=Schedule(start=0.0, peak=rate, end=rate, warmup=100 * epoch),
            scaling="sqrt_1024",
            weight_decay=constant(0.04),
            momentum=constant(0.994),
            teacher_temp=Schedule(start=0.04, peak=0.07, end=0.07, warmup=100 * epoch),
            freeze_last_layer=5 * epoch,
            betas=(0.9, 0.99),
            clip=30.0,
            layer_decay=0.98,
            patch_embed_lr=0.2,
        ),
        parallel=ParallelConfig(precision="bf16", compile=True, recompute="selective", fp8=True),
        run=RunConfig(checkpoint_every=1000, keep=3, keep_every=50_000, export_every=12_500),
    )


def vit7b_paper() -> Config:
    """Stage 1 of the 7B model as printed in the paper's appendix C."""
    return replace(as_in_paper(vit7b_pretrain()), name="vit7b_paper")


def vit7b_gram() -> Config:
    """Stage 2 of the 7B model: 200,000 steps of Gram anchoring to an early teacher of stage 1, seen at 512 pixels.

    Continues from `init.student`, a stage 1 run; `gram.teacher` is that run's teacher of step 100,000 to 200,000 (paper
    section 4.2: alike; at 1,000,000 worse). The released file counts on from step 1,000,000 and has to be resumed in
    the folder of stage 1; here the count starts at 0, so its warm-ups are over and what it starts at step 1,000,000
    (weight of the Gram loss from 0 to 2, of local crops from 1 to 0.5, both in 1000 steps; teacher of every 10,000
    steps, three times) starts at 0. AdamW's moments start anew; with betas (0.9, 0.99) they last a hundred steps.
    EMA 0.999. Gram crops have neither colour changes nor blur.
    """
    epoch = 1000
    stage1 = vit7b_pretrain()
    return replace(
        stage1,
        name="vit7b_gram",
        steps=(1200 - 1000) * epoch,
        init=replace(stage1.init, student="runs/vit7b_pretrain"),
        dino=replace(stage1.dino, local_weight=Schedule(start=1.0, peak=1.0, end=0.5, cosine=1 * epoch)),
        gram=GramConfig(
            use=True,
            teacher="runs/vit7b_pretrain@200000",
            weight=Schedule(start=0.0, peak=0.0, end=2.0, cosine=1 * epoch),
            refresh_every=10_000,
            refresh_first=1_010_000 - 1000 * epoch,
            refresh_max=3,
            normalized=True,
            level="image",
        ),
        crops=replace(
            stage1.crops,
            sizes=(CropSizes(global_size=256, local_size=112, gram_size=512),),
            gram_distorted=False,
        ),
        optim=replace(
            stage1.optim,
            lr=constant(3e-5),  # times 8 = 2.4e-4
            momentum=constant(0.999),
            teacher_temp=constant(0.07),
            freeze_last_layer=0,
        ),
        parallel=replace(stage1.parallel, recompute="full"),
    )


def vit7b_highres() -> Config:
    """Stage 3 of the 7B model: mixed crops of 512 and 768 pixels, 30,000 steps, batch 2048.

    Continues from `init.student`, a stage 2 run, whose last teacher is the Gram teacher as well, this time for good;
    that both are the same is meant here. The rate climbs over the first 10,000 steps (the paper's whole stage). Gram
    crops have 1.5 times the side of the global ones. File and paper have local crops of 168 pixels, which 16 does not
    divide: the released patch embedding drops the last 8 rows and columns. They are 160 here, the same 10 x 10 patches.
    """
    epoch = 1000
    stage2 = vit7b_gram()
    mix = (
        (512, 112, 768, 0.3),
        (768, 112, 1152, 0.3),
        (768, 160, 1152, 0.3),  # 168 in the file
        (768, 224, 1152, 0.05),
        (768, 336, 1152, 0.05),
    )
    return replace(
        stage2,
        name="vit7b_highres",
        steps=30 * epoch,
        init=replace(stage2.init, student="runs/vit7b_gram"),
        dino=replace(stage2.dino, local_weight=constant(0.5)),
        gram=replace(
            stage2.gram,
            teacher="runs/vit7b_gram",
            weight=constant(1.5),
            refresh_every=0,
            refresh_first=0,
            refresh_max=None,
        ),
        crops=replace(stage2.crops, sizes=mixed(mix)),
        data=replace(stage2.data, batch_size=8 * 256, workers=2),
        optim=replace(
            stage2.optim,
            lr=Schedule(start=0.0, peak=0.0, end=1.25e-5, cosine=10 * epoch),  # times 4 sqrt(2) = 7.07e-5
        ),
        run=replace(stage2.run, checkpoint_every=250),
    )


def as_in_paper(config: Config) -> Config:
    """A 7B configuration with what appendix C of the paper prints where the released files differ.

    KoLeo on the first global crop, EMA 0.999, hidden width 8192 in the iBOT head, a schedule of 10,000 steps at high
    resolution. Raises ValueError for another architecture, of which the paper prints nothing.
    """
    if config.model.arch != "vit_7b":
        raise ValueError(f"the paper prints the values of vit_7b, not of {config.model.arch}")
    return replace(
        config,
        steps=10_000 if len(config.crops.sizes) > 1 else config.steps,
        koleo=replace(config.koleo, first_crop_only=True, group=16),
        ibot=replace(config.ibot, head=replace(config.ibot.head, hidden=8192)),
        optim=replace(config.optim, momentum=constant(0.999)),
    )


def with_byol_blur(config: Config) -> Config:
    """The configuration with BYOL's probabilities of blur, which the released code inverts for the global crops."""
    return replace(config, crops=replace(config.crops, blur=(1.0, 0.1, 0.5)))


def mixed(mix: Sequence[tuple[int, int, int, float]]) -> tuple[CropSizes, ...]:
    """One entry a row of global side, local side, side of the Gram crop, probability."""
    return tuple(
        CropSizes(global_size=seen, local_size=local, gram_size=gram, probability=share)
        for seen, local, gram, share in mix
    )
