"""The weights that a run begins with: drawn, taken from elsewhere, or cut out of a wider model."""

import logging
from typing import Any

import torch
from torch import Tensor

from core import distributed
from core.checkpoint import load_teacher
from core.config import Config
from core.data.loader import Loader, mask_cell
from core.distill import SelfDistillation
from core.models.narrow import narrow
from core.models.vit import VisionTransformer
from core.teachers import BackboneTeacher, resized, shown

LOG = logging.getLogger(__name__)


def start_from(model: SelfDistillation, config: Config) -> None:
    """Puts in the weights that the configuration names; the EMA teacher starts as a copy of the student."""
    if config.init.narrow:
        source = cut_out(model, config)
    elif config.init.student:
        backbone, heads = load_teacher(config.init.student)
        weights = {"backbone": backbone.state_dict(), **(heads if config.init.heads else {})}
        for name, state in weights.items():
            if name in model.student:  # a student may have no use for a head
                model.student[name].load_state_dict(state)
        source = backbone.source
    else:
        return
    model.teacher.load_state_dict(model.student.state_dict())
    for network in (model.student, model.teacher):
        network["backbone"].source = source  # the licence goes along into every export


def cut_out(model: SelfDistillation, config: Config) -> Any:
    """The student as a narrower form of `init.narrow`, fitted on crops of the run's first steps; returns the source.

    One process of the student does it and tells the others. Raises ValueError for models of other shapes.
    """
    wide, thin = load_teacher(config.init.narrow)[0], model.student["backbone"]
    if not isinstance(wide, VisionTransformer) or not isinstance(thin, VisionTransformer):
        raise ValueError(f"only a ViT can be cut out of a ViT; init.narrow {config.init.narrow} or the student is none")
    state = None
    if distributed.is_main():
        crops = first_crops(config, config.init.narrow_images)
        cell = mask_cell(config)
        grid = (crops.shape[-2] // cell, crops.shape[-1] // cell)
        scale = config.distill.student_scale
        seen = resized(crops, (round(crops.shape[-2] * scale), round(crops.shape[-1] * scale)))
        missed = narrow(wide, thin, seen, shown(BackboneTeacher(wide), crops, grid, config.data))
        LOG.info("cut out of %s; missed after each block: %s", config.init.narrow, " ".join(f"{x:.3f}" for x in missed))
        state = thin.state_dict()
    thin.load_state_dict(distributed.broadcast_object(state))
    return wide.source


def first_crops(config: Config, count: int) -> Tensor:
    """Global crops (count, 3, h, w) of the run's first batches, the same on every process."""
    found: list[Tensor] = []
    with Loader(config, first_step=0, rank=0, size=1, device="cpu") as loader:
        for batch in loader:
            found.append(batch.global_crops)
            if sum(map(len, found)) >= count:
                break
    if len({crops.shape[1:] for crops in found}) > 1:  # several sizes are drawn from step to step: keep the first
        found = [crops for crops in found if crops.shape == found[0].shape]
    return torch.cat(found)[:count]


def load_gram_teacher(model: SelfDistillation, config: Config) -> None:
    """Puts in the Gram teacher that the configuration names."""
    if model.gram_teacher is not None and config.gram.teacher:
        backbone, _ = load_teacher(config.gram.teacher)
        model.gram_teacher.load_state_dict(backbone.state_dict())
