"""Students of frozen models: the model that comes with the project."""

from dataclasses import replace

from core.config import (
    Config,
    CropsConfig,
    CropSizes,
    DataConfig,
    DinoConfig,
    DistillConfig,
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
        steps=2000,
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

    Only photographs that are as large as that: with --data, which the first stage's small ones should not be in.
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
        steps=200,
        init=InitConfig(student="runs/embedded"),
        crops=replace(stage1.crops, sizes=sizes, global_scale=(0.5, 1.0)),
        data=replace(stage1.data, batch_size=8),
        optim=replace(
            stage1.optim,
            lr=Schedule(start=0.0, peak=2e-4, end=1e-5, warmup=15, cosine=None),
            momentum=constant(0.98),
        ),
        run=replace(stage1.run, log_every=10, checkpoint_every=50, evaluate_every=200, export_every=200),
        distill=replace(stage1.distill, views=0, chunk=4),
    )
