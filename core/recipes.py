"""Named complete runs: each a short function that returns a `Config`, listed in RECIPES.

Official ones say what the released configuration files say; where the paper prints something else the docstring names
it and how to get it. The release counts lengths in "epochs" of E steps, whatever the size of the data: E is 1000 in the
7B files and 1250 in the others, and the products below show the arithmetic. Its batch sizes are per GPU, ours are
global. Not here, because the release does not have them: the students' million steps and their 250k of cool-down, the
satellite models. Several students at once are in `core.sets`.

The paper mixes in steps of one source alone: `SourceConfig(path, homogeneous=0.1)` for ImageNet-1k. Official recipes
come without sources, since nobody else has those images.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from core.config import (
    Config,
    CropsConfig,
    CropSizes,
    DataConfig,
    DinoConfig,
    DistillConfig,
    GramConfig,
    HeadConfig,
    IbotConfig,
    InitConfig,
    KoleoConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    SourceConfig,
    TeacherConfig,
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
        crops=replace(stage2.crops, sizes=_sizes(mix)),
        data=replace(stage2.data, batch_size=8 * 256, workers=2),
        optim=replace(
            stage2.optim,
            lr=Schedule(start=0.0, peak=0.0, end=1.25e-5, cosine=10 * epoch),  # times 4 sqrt(2) = 7.07e-5
        ),
        run=replace(stage2.run, checkpoint_every=250),
    )


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
    stage1 = nano_pretrain()
    steps = stage1.steps // 5  # as 200,000 of 1,000,000
    return replace(
        stage1,
        name="nano_gram",
        steps=steps,
        init=replace(stage1.init, student="runs/nano_pretrain"),
        dino=replace(stage1.dino, local_weight=Schedule(start=1.0, peak=1.0, end=0.5, cosine=100)),
        gram=GramConfig(
            use=True,
            teacher="runs/nano_pretrain@2000",
            weight=Schedule(start=0.0, peak=0.0, end=2.0, cosine=100),
            refresh_every=steps // 4,
            refresh_first=steps // 4,
            refresh_max=3,
        ),
        crops=replace(
            stage1.crops,
            sizes=(CropSizes(global_size=64, local_size=32, gram_size=128),),
            gram_distorted=False,
        ),
        optim=replace(
            stage1.optim,
            lr=constant(6e-4),  # 3/5 of stage 1, as in the 7B runs
            momentum=constant(0.999),
            freeze_last_layer=0,
        ),
    )


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
        crops=replace(stage2.crops, sizes=_sizes(mix)),
        data=replace(stage2.data, batch_size=16),  # half, as in the 7B runs
        optim=replace(stage2.optim, lr=Schedule(start=0.0, peak=0.0, end=2e-4, cosine=300)),
        run=replace(stage2.run, export_every=250, evaluate_every=250),
    )


def embedded() -> Config:
    """ViT-Ti/16 for the project itself: patches from DINOv2 ViT-S/14, categories from EfficientNet-Lite2; two cores.

    This project's own recipe, not the paper's: neither teacher has prototypes, so features are distilled. The saliency-
    tuned DINOv2 knows where things are, EfficientNet what they are (its vectors, and its coarse map at a third of the
    weight). The student starts cut out of the DINOv2 (init.narrow), which leaves training to mend what that lost. Every
    image has four views that come again, looked at by the teachers once (distill.keep names the folder, about 90 kB a
    view). Give photographs with --data; teachers need pip install 'gramscope[teachers]'.
    """
    return Config(
        name="embedded",
        steps=6000,
        model=ModelConfig(
            arch="vit_tiny", patch_size=16, drop_path=0.0, layer_scale=0.1, num_registers=4, rope_rescale=2.0
        ),
        dino=DinoConfig(weight=0.0),
        ibot=IbotConfig(weight=0.0),
        koleo=KoleoConfig(weight=0.0),
        crops=CropsConfig(
            sizes=(CropSizes(global_size=128, local_size=64),),
            num_local=0,
            global_scale=(0.3, 1.0),
            jitter=0.5,
            grayscale=0.05,
            solarize=0.0,
            blur=(0.0, 0.3, 0.0),
        ),
        data=DataConfig(sources=(SourceConfig(path="tiny"),), batch_size=48, workers=1),
        optim=OptimConfig(
            lr=Schedule(start=0.0, peak=1e-3, end=1e-5, warmup=200, cosine=None),
            scaling="none",
            weight_decay=constant(0.05),
            momentum=constant(0.998),
            teacher_temp=constant(0.04),
            freeze_last_layer=0,
            betas=(0.9, 0.98),
            clip=3.0,
            layer_decay=1.0,
            patch_embed_lr=1.0,
        ),
        parallel=ParallelConfig(precision="fp32", compile=False),
        run=RunConfig(log_every=20, checkpoint_every=250, keep=2, export_every=1000, evaluate_every=1000),
        distill=DistillConfig(
            features=(
                TeacherConfig(name="dinov2_vits14_saliency", cls=0.0, patches=1.0),
                TeacherConfig(name="efficientnet_lite2", cls=1.0, patches=0.3, sees="crop"),
            ),
            chunk=16,
            views=4,
        ),
        init=InitConfig(narrow="dinov2_vits14_saliency"),
    )


def embedded_highres() -> Config:
    """The second stage of `embedded`: crops of 256 and 384 pixels, so that maps hold on large photographs.

    Name the run that it continues with --init.student RUN.
    """
    stage1 = embedded()
    sizes = (
        CropSizes(global_size=256, local_size=64, probability=0.7),
        CropSizes(global_size=384, local_size=64, probability=0.3),
    )
    return replace(
        stage1,
        name="embedded_highres",
        steps=1000,
        init=InitConfig(student="runs/embedded"),
        crops=replace(stage1.crops, sizes=sizes, global_scale=(0.5, 1.0)),
        data=replace(stage1.data, batch_size=8),
        optim=replace(stage1.optim, lr=Schedule(start=0.0, peak=3e-4, end=1e-5, warmup=50, cosine=None)),
        run=replace(stage1.run, evaluate_every=500, export_every=500),
        distill=replace(stage1.distill, views=0, chunk=4),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "vitl": vitl,
    "vitl_imagenet1k": vitl_imagenet1k,
    "vit7b_pretrain": vit7b_pretrain,
    "vit7b_paper": vit7b_paper,
    "vit7b_gram": vit7b_gram,
    "vit7b_highres": vit7b_highres,
    "smoke": smoke,
    "nano_pretrain": nano_pretrain,
    "nano_gram": nano_gram,
    "nano_highres": nano_highres,
    "embedded": embedded,
    "embedded_highres": embedded_highres,
}


def recipe(name: str) -> Config:
    """The configuration of a named run. Raises ValueError for an unknown name and lists the known ones."""
    if name not in RECIPES:
        raise ValueError(f"no recipe called {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name]()


def summary(name: str) -> str:
    """The first sentence of a recipe's docstring."""
    return (RECIPES[name].__doc__ or "").strip().partition("\n")[0]


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


def with_data(config: Config, paths: Sequence[str]) -> Config:
    """The configuration reading these paths; as many as it had keep what was said of their shares."""
    if not paths:
        return config
    before = config.data.sources
    if len(before) == len(paths):
        kept = zip(before, paths, strict=True)
        sources = tuple(replace(source, path=path, kind="auto") for source, path in kept)
    else:
        sources = tuple(SourceConfig(path=path) for path in paths)
    return replace(config, data=replace(config.data, sources=sources))


def with_teachers(config: Config, names: Sequence[str]) -> Config:
    """The configuration learning the features of these frozen models; as many as it had keep what was said of them."""
    if not names:
        return config
    before = config.distill.features
    if len(before) == len(names):
        features = tuple(replace(teacher, name=name) for teacher, name in zip(before, names, strict=True))
    else:
        features = tuple(TeacherConfig(name=name) for name in names)
    return replace(config, distill=replace(config.distill, features=features))


def _sizes(mix: Sequence[tuple[int, int, int, float]]) -> tuple[CropSizes, ...]:
    """One entry a row of global side, local side, side of the Gram crop, probability."""
    return tuple(
        CropSizes(global_size=seen, local_size=local, gram_size=gram, probability=share)
        for seen, local, gram, share in mix
    )
