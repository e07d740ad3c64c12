"""Every knob of training text beside a frozen backbone, and named runs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.config import read_as
from core.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A run of `core.text.train`. Lengths in steps, sizes in pixels, the batch is global."""

    name: str = "text"
    seed: int = 11
    steps: int = 50_000
    backbone: str = ""  # weights by name or path, or a run
    sources: tuple[str, ...] = ()  # folders with captions, see core.text.captions
    batch_size: int = 8192
    image_size: int = 224
    crop_scale: tuple[float, float] = (0.08, 1.0)  # of a view's share of the picture's area
    flip: float = 0.5
    views: int = 0  # 0: every view is new; else an image has so many, which the backbone looks at once
    tower: Literal["clip", "minilm"] = "clip"  # minilm: a pretrained sentence encoder, frozen; this project's own
    text_dim: int = 1280
    text_heads: int = 20
    text_depth: int = 24
    context: int = 77
    out_dim: int | None = None  # None: twice the backbone's width
    head_depth: int = 2
    head_drop_path: float = 0.3
    lr: Schedule = Schedule(start=0.0, peak=7e-4, end=0.0, warmup=2000, cosine=None)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-4  # not on norms, biases and the scale
    gram_weight: float = 0.0  # on the distance of the head's Gram matrices from the backbone's
    gram_share: float = 1.0  # of patches that take part in it
    log_every: int = 10
    checkpoint_every: int = 500
    evaluate_every: int = 5000

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale is a range within 0 to 1, got {self.crop_scale}")
        if not 0 < self.gram_share <= 1:
            raise ValueError(f"gram_share is a share above 0, got {self.gram_share}")
        for what in ("steps", "batch_size", "image_size", "log_every", "checkpoint_every"):
            if getattr(self, what) < 1:
                raise ValueError(f"{what} is at least 1, got {getattr(self, what)}")


def official() -> TextConfig:
    """dino.txt on ViT-L as the released configuration has it: 50,000 steps of 8192 pairs; its pairs are not public."""
    return TextConfig(name="official", backbone="dinov3_vitl16")


def captions_minilm() -> TextConfig:
    """For two cores and some thousand captions: linear projections of a frozen backbone and of a frozen MiniLM.

    This project's own: a text tower cannot be trained from so few captions, a projection can. The paper's two blocks
    over the patches did not help: on `gramscope_vitt16` recall was the same, and the mean IoU on COCO 0.008 beside
    0.020 (chance: 0.006). Every image has a few views, which the backbone looks at once.
    """
    return TextConfig(
        name="captions_minilm",
        steps=300,
        backbone="dinov2_vits14_saliency",
        batch_size=64,
        image_size=168,
        crop_scale=(0.4, 1.0),
        views=2,
        tower="minilm",
        out_dim=768,
        head_depth=0,
        head_drop_path=0.0,
        lr=Schedule(start=0.0, peak=2e-3, end=0.0, warmup=20, cosine=None),
        weight_decay=0.05,
        checkpoint_every=50,
        evaluate_every=300,
    )


RECIPES: dict[str, Callable[[], TextConfig]] = {"official": official, "captions_minilm": captions_minilm}


def recipe(name: str) -> TextConfig:
    """The configuration of a named run. Raises ValueError for an unknown name and lists the known ones."""
    if name not in RECIPES:
        raise ValueError(f"no text recipe called {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name]()


def load_config(folder: Path) -> TextConfig:
    """The configuration in a run's folder."""
    return read_as(TextConfig, (folder / "config.json").read_text(encoding="utf-8"))
