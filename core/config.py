"""Every knob of a training run, with its default and where that comes from.

Defaults are those of the released code unless a remark says otherwise; lengths are in steps. A value is checked once,
in the class that knows its meaning. Constructors elsewhere take plain arguments, so they work without any of this.
"""

import json
import types
import typing
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from core.schedules import Schedule, constant

Kind = TypeVar("Kind")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The student's backbone, and with it the teacher's. None leaves what the table of backbones says."""

    arch: str = "vit_large"
    patch_size: int | None = None
    drop_path: float = 0.3
    layer_scale: float | None = 1e-5
    num_registers: int | None = None
    norm_eps: float | None = None  # 1e-6 in the ViT-L runs of the release, 1e-5 in those with bf16 norms
    mask_k_bias: bool | None = None
    untie_global_and_local_cls_norm: bool | None = None
    rope_shift: float | None = None
    rope_jitter: float | None = None
    rope_rescale: float | None = None  # 2.0 in the 7B runs (paper: RoPE-box jittering)
    rope_dtype: Literal["float32", "bfloat16"] | None = None  # released code trains in bf16 whatever its config says

    def overrides(self) -> dict[str, Any]:
        """Constructor arguments for `core.models.build_backbone`."""
        import torch

        named = {name: value for name, value in asdict(self).items() if name != "arch" and value is not None}
        if self.layer_scale is None:
            named["layer_scale"] = None
        if self.rope_dtype is not None:
            named["rope_dtype"] = getattr(torch, self.rope_dtype)
        return named


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """A projection head: `layers` linear layers to a bottleneck, then prototypes."""

    prototypes: int = 65536
    hidden: int = 2048
    bottleneck: int = 256
    layers: int = 3


@dataclass(frozen=True, kw_only=True)
class DinoConfig:
    """The global objective: CLS of every crop against the teacher's CLS of the other global crops."""

    weight: float = 1.0
    head: HeadConfig = HeadConfig()
    student_temp: float = 0.1
    ignore_diagonal: bool = True  # a global crop is not compared with the teacher's view of itself
    local_weight: Schedule = constant(1.0)


@dataclass(frozen=True, kw_only=True)
class IbotConfig:
    """The local objective: masked patches against the teacher's unmasked ones."""

    weight: float = 1.0
    head: HeadConfig = HeadConfig()
    student_temp: float = 0.1
    masked_crops: float = 0.5  # share of global crops that are masked
    mask_ratio: tuple[float, float] = (0.1, 0.5)  # share of patches, spread evenly over the masked crops
    mask_shift: bool = False  # roll each mask by a random offset

    def __post_init__(self) -> None:
        low, high = self.mask_ratio
        if not (0 <= self.masked_crops <= 1 and 0 <= low <= high <= 1):
            raise ValueError(f"masked_crops and mask_ratio are shares, got {self.masked_crops} and {self.mask_ratio}")


@dataclass(frozen=True, kw_only=True)
class KoleoConfig:
    """Spreads CLS tokens: each is pushed from its nearest neighbour within a group."""

    weight: float = 0.1  # multiplied by the number of crops it sees, as released
    group: int | None = None  # images a group, across processes; None: the images of one process
    topk: int = 1
    first_crop_only: bool = False  # paper, appendix C; released code: both global crops


@dataclass(frozen=True, kw_only=True)
class GramConfig:
    """Gram anchoring (paper section 4): the student's patch similarities stay near an earlier teacher's."""

    use: bool = False
    weight: Schedule = constant(1.0)
    teacher: str = ""  # weights or a run folder ("RUN@STEP") to load before the first step
    load_ema_at: int | None = None  # instead: copy the EMA teacher before this step
    follow_ema: bool = False  # the EMA teacher itself is the Gram teacher, on the global crops
    refresh_every: int = 0  # 0: never; else copy the EMA teacher every so many steps
    refresh_first: int = 0
    refresh_max: int | None = None
    normalized: bool = True
    level: Literal["image", "batch"] = "image"
    negatives: Literal["keep", "drop", "drop_teacher"] = "keep"
    tokens: Literal["all", "masked", "unmasked"] = "all"
    antialias: bool = False  # of the bicubic down-sampling of a larger teacher map; off in every released run
    stats: bool = False  # log the loss on masked and unmasked tokens apart

    def __post_init__(self) -> None:
        if self.tokens != "all" and self.level == "image":
            raise ValueError(
                "gram.tokens 'masked' and 'unmasked' need gram.level 'batch': images then differ in number"
            )


@dataclass(frozen=True, kw_only=True)
class CropSizes:
    """Sides in pixels, drawn together for a whole step with this probability."""

    global_size: int = 224
    local_size: int = 96
    gram_size: int | None = None
    probability: float = 1.0


@dataclass(frozen=True, kw_only=True)
class CropsConfig:
    """Multi-crop augmentation: two global crops and `num_local` local ones of every image."""

    sizes: tuple[CropSizes, ...] = (CropSizes(),)
    num_local: int = 8
    global_scale: tuple[float, float] = (0.32, 1.0)  # share of the image's area
    local_scale: tuple[float, float] = (0.05, 0.32)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8  # probability of the colour jitter
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    # First global, second global, local crops. Released code; it inverts the argument of the first two, and BYOL,
    # which it follows, has (1.0, 0.1, 0.5).
    blur: tuple[float, float, float] = (0.0, 0.9, 0.5)
    solarize: float = 0.2  # second global crop only
    share_jitter: bool = False  # one colour jitter of the whole image before all crops
    gram_distorted: bool = True  # Gram crops share the global crop's colours; off in the 7B runs
    local_in_global: bool = False  # local crops are patch-aligned windows of the global ones

    def __post_init__(self) -> None:
        total = sum(size.probability for size in self.sizes)
        if not self.sizes or abs(total - 1) > 1e-6:
            raise ValueError(f"the probabilities of crops.sizes sum to {total:g}, expected 1")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where images lie. The path may be a folder, a tar or zip (or a pattern of them), or a saved data set."""

    path: str
    kind: str = "auto"  # an entry of core.data.DATASETS
    split: str = "train"
    name: str = ""  # only images of this part, where the source has parts (column `source` of an index.tsv)
    weight: float = 1.0  # in heterogeneous batches, times its number of images
    homogeneous: float = 0.0  # share of steps that take a whole batch from this source alone


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images and how they reach the model."""

    sources: tuple[SourceConfig, ...] = ()
    batch_size: int = 2048  # over all processes
    workers: int = 10  # a process
    augment_on: Literal["worker", "device"] = "worker"
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0:
            raise ValueError(f"batch_size is at least 1 and workers at least 0, got {self.batch_size}, {self.workers}")
        if sum(source.homogeneous for source in self.sources) > 1:
            raise ValueError("the homogeneous shares of data.sources sum to more than 1")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with layer-wise decay of the learning rate."""

    lr: Schedule = Schedule(start=0.0, peak=1e-3, end=1e-6, warmup=12_500, cosine=None, inclusive=True)
    scaling: Literal["sqrt_1024", "linear_256", "none"] = "sqrt_1024"
    weight_decay: Schedule = Schedule(start=0.04, peak=0.04, end=0.4, cosine=None, inclusive=True)
    momentum: Schedule = Schedule(start=0.992, peak=0.992, end=1.0, cosine=None, inclusive=True)
    teacher_temp: Schedule = Schedule(start=0.04, peak=0.07, end=0.07, warmup=37_500, inclusive=True)
    freeze_last_layer: int = 1250
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 3.0  # norm of backbone and of each head apart; 0 switches clipping off
    layer_decay: float = 0.9
    patch_embed_lr: float = 0.2


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How one step is spread over devices; core.parallel is the only reader."""

    precision: Literal["fp32", "bf16"] = "bf16"  # of the forward pass; parameters and optimizer stay fp32
    compile: bool = True
    recompute: Literal["none", "selective", "full"] = "none"  # activation checkpointing, a block at a time
    fp8: bool = False  # linear layers of the backbone, on hardware that has it (H100)
    accumulate: int = 1  # parts a process's batch is split into for the student; the result stays the same


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run writes and when."""

    log_every: int = 10
    checkpoint_every: int = 3750
    keep: int = 3  # newest checkpoints
    keep_every: int = 0  # besides those, every so many steps for good
    export_every: int = 12_500  # teacher/<step>.safetensors
    probe_every: int = 0  # probes/<step>/*.dfp, and the teacher with them
    probes: int = 8  # images, from the validation split where there is one
    probe_size: int | None = None  # long side in pixels; None: the image's own
    evaluate_every: int = 0  # k-NN on the labelled validation split, where the source has one
    masks: str = ""  # folder of images and masks ("pets": one here): in-context mIoU and object AUC, with k-NN
    masks_size: int = 448  # side in pixels of the squares that its images are squeezed into
    nonfinite: Literal["stop", "skip"] = "stop"  # skip: leave the update out, stop at the third in a row
    tensorboard: bool = False
    wandb: str = ""  # project name


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Where weights come from before the first step. Empty: from scratch."""

    student: str = ""  # a run folder ("RUN" or "RUN@STEP") with heads, or weights of a backbone alone
    heads: bool = True  # take the heads as well where the source has them
    narrow: str = ""  # a wider ViT: the student is cut out of it and fitted to it (core/models/narrow.py)
    narrow_images: int = 800  # crops of the first steps that it is fitted on


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A frozen model to whose features the student's are drawn; this project's own, not the paper's."""

    name: str  # an entry of core.teachers.TEACHERS, weights, or a run ("RUN", "RUN@STEP")
    cls: float = 1.0  # weight on the distance of the vectors of whole crops; 0: not compared
    patches: float = 1.0  # weight on the distance of the maps; 0: not compared
    sees: Literal["grid", "crop"] = "grid"  # as many cells as the student has patches, or the crop's own pixels


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Frozen teachers. Without any the student learns from its own moving average."""

    teacher: str = ""  # a run with heads: its prototypes take the place of the moving average's (paper section 5.2)
    features: tuple[TeacherConfig, ...] = ()
    chunk: int = 4  # images that a teacher looks at together; what it sees then depends on no number of processes
    student_scale: float = 1.0  # the student sees the crops this much larger or smaller
    settle: int = 100  # steps over which the mean and deviation of the teachers' features are measured
    views: int = 0  # 0: every view of an image is new; else an image has so many, which come again pass after pass
    keep: str = ""  # folder for what the teachers saw of them, so that each is looked at once

    @property
    def use(self) -> bool:
        """Whether there is a frozen teacher."""
        return bool(self.teacher or self.features)

    def __post_init__(self) -> None:
        if self.keep and not self.views:
            raise ValueError("distill.keep needs distill.views: views that never come again are not worth keeping")
        if self.chunk < 1 or self.student_scale <= 0 or self.settle < 1:
            raise ValueError(
                f"distill.chunk, student_scale and settle are positive, got {self.chunk}, {self.student_scale}, "
                f"{self.settle}"
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    """One complete run."""

    name: str = "custom"
    seed: int = 0
    steps: int = 125_000
    model: ModelConfig = ModelConfig()
    dino: DinoConfig = DinoConfig()
    ibot: IbotConfig = IbotConfig()
    koleo: KoleoConfig = KoleoConfig()
    gram: GramConfig = GramConfig()
    distill: DistillConfig = DistillConfig()
    crops: CropsConfig = CropsConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    parallel: ParallelConfig = ParallelConfig()
    run: RunConfig = RunConfig()
    init: InitConfig = InitConfig()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is at least 1, got {self.steps}")
        if self.init.student and self.init.narrow:
            raise ValueError("a student starts from init.student or is cut out of init.narrow, not both")
        if self.gram.use and self.distill.use:
            raise ValueError(
                "frozen teachers and Gram anchoring do not go together, in the paper neither: gram.use off"
            )
        needs_crops = self.gram.use and not self.gram.follow_ema
        without = [size for size in self.crops.sizes if (size.gram_size is None) == needs_crops]
        if without and self.gram.use:
            what = "needs" if needs_crops else "with gram.follow_ema takes no"
            raise ValueError(f"gram.use {what} gram_size in every entry of crops.sizes")


def to_json(config: Any) -> str:
    """A configuration as text, every knob written out."""
    return json.dumps(asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """The configuration that `to_json` wrote. Raises ValueError for unknown keys and for values of another kind."""
    return read_as(Config, text)


def read_as(kind: type[Kind], text: str) -> Kind:
    """The same for another dataclass of settings."""
    return _read(kind, json.loads(text), "config")


def load_config(path: str | Path) -> Config:
    """The configuration of a run folder or of a config.json."""
    path = Path(path)
    return from_json((path / "config.json" if path.is_dir() else path).read_text(encoding="utf-8"))


def _read(kind: Any, value: Any, where: str) -> Any:
    """`value`, out of JSON, as the annotated type `kind`."""
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is a table of settings, got {value!r}")
        hints = typing.get_type_hints(kind)
        known = [field.name for field in fields(kind)]
        if unknown := sorted(set(value) - set(known)):
            raise ValueError(f"{where} has no setting {', '.join(unknown)}; known: {', '.join(known)}")
        return kind(**{name: _read(hints[name], value[name], f"{where}.{name}") for name in value})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _read(next(option for option in arguments if option is not type(None)), value, where)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} is one of {', '.join(map(repr, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or (arguments[-1] is not ... and len(value) != len(arguments)):
            raise ValueError(f"{where} is a list of {kind}, got {value!r}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        return tuple(_read(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} is of type {kind.__name__}, got {value!r}")
    return value
