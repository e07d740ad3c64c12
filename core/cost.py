"""What a run costs, known before it starts: patches and arithmetic of a step, memory of a process, hours."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from core.config import Config, HeadConfig
from core.doctor.case import Case, Machine
from core.doctor.machine import activations_gib, checkpoint_gib, state_gib
from core.models import Backbone, build_backbone
from core.models.head import ProjectionHead


@dataclass(frozen=True)
class Cost:
    """Of a run on `world` processes.

    patches: that the student sees in a step, those of local crops too, means over crop sizes. flops: of a step's matrix
    products, forward and backward, teachers included, nothing counted twice for recomputing. Memory in GiB: of one
    process's models and optimizer, of what a step keeps for its backward pass (an estimate), of one checkpoint.
    """

    steps: int
    world: int
    parameters: int
    patches: float
    flops: float
    models_gib: float
    activations_gib: float
    checkpoint_gib: float

    def hours(self, tflops: float, mfu: float) -> float:
        """Of the whole run, where a process has so many TFLOP/s at their peak and reaches a share `mfu` of them."""
        return self.steps * self.flops / (self.world * tflops * 1e12 * mfu) / 3600


def training_cost(config: Config, world: int = 1) -> Cost:
    """The cost of a run, computed on the meta device. Raises ValueError where a frozen teacher alone decides it."""
    if config.distill.features:
        raise ValueError("the cost of frozen teachers is measured, not computed: gramscope distill --plan")
    backbone = build_backbone(config.model.arch, device="meta", **config.model.overrides())
    case = Case(config, world, None, Machine.here())
    shares = [size.probability for size in config.crops.sizes]
    patches = flops = 0.0
    for size, share in zip(config.crops.sizes, shares, strict=True):
        weight = share / sum(shares)
        seen = 2 * cells(backbone, size.global_size) + config.crops.num_local * cells(backbone, size.local_size)
        patches += weight * seen
        flops += weight * _flops_of_image(config, backbone, size.global_size, size.local_size, size.gram_size)
    batch = config.data.batch_size
    return Cost(
        steps=config.steps,
        world=world,
        parameters=sum(case.parameters.values()),
        patches=batch * patches,
        flops=batch * flops,
        models_gib=state_gib(case),
        activations_gib=activations_gib(case),
        checkpoint_gib=checkpoint_gib(case),
    )


def cells(backbone: Backbone, side: int) -> int:
    """Patches of a square crop."""
    assert backbone.patch_size is not None, "a network that says what its cells are"
    return (side // backbone.patch_size) ** 2


def _flops_of_image(config: Config, backbone: Backbone, wide: int, narrow: int, gram: int | None) -> float:
    """Of everything a step does with one image; a backward pass is twice a forward one."""
    local = config.crops.num_local
    once, small = forward_flops(backbone, wide), forward_flops(backbone, narrow) if local else 0.0
    masked = config.ibot.masked_crops * sum(config.ibot.mask_ratio) / 2 * cells(backbone, wide)
    dino, ibot = head_flops(config.dino.head, backbone), head_flops(config.ibot.head, backbone)
    student = 3 * (2 * once + local * small + (2 + local) * dino + 2 * masked * ibot)
    teacher = 2 * once + 2 * dino + 2 * masked * ibot
    anchor = 0.0
    if config.gram.use:
        patches, dim = cells(backbone, wide), backbone.embed_dim
        anchor = 2 * 2 * (3 + 1) * patches**2 * dim  # both matrices of two crops, and the student's backward
        if not config.gram.follow_ema:
            anchor += 2 * forward_flops(backbone, gram or wide)
    return student + teacher + anchor


def forward_flops(backbone: Backbone, side: int) -> float:
    """Of the matrix products of one square image's forward pass; `backbone` is on the meta device."""
    return _count(backbone, torch.empty(1, 3, side, side, device="meta"))


def head_flops(head: HeadConfig, backbone: Backbone) -> float:
    """Of one vector's way through a projection head."""
    with torch.device("meta"):
        module = ProjectionHead(
            backbone.embed_dim, head.prototypes, hidden=head.hidden, bottleneck=head.bottleneck, layers=head.layers
        )
    return _count(module, torch.empty(1, backbone.embed_dim, device="meta"))


def _count(module: nn.Module, x: Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(x)
    return float(counter.get_total_flops())
