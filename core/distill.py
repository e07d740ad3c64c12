"""Self-distillation: a student learns from its own moving average, and from an earlier teacher's Gram matrices.

One step is `look` (what the teachers see), then `forward` (what the student makes of it, as a loss), then, after the
optimizer, `follow` (the teacher moves towards the student). Paper sections 3.2 and 4.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.config import Config, HeadConfig
from core.data.batch import Batch
from core.losses import dino_global, dino_local, gram, ibot, koleo
from core.losses.gram import resize_tokens
from core.losses.sinkhorn import sinkhorn_knopp
from core.models import Backbone, build_backbone
from core.models.head import ProjectionHead
from core.models.layers import fuse_always
from core.parallel import copy_parameters, update_ema
from core.schedules import Rates

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Targets:
    """What the teachers saw of a batch: cls (2, B, K), patches (m, K') at masked places, gram (2 B, P, D) or None.

    features: what each frozen teacher of `distill.features` saw, (2 B, ...).
    """

    cls: Tensor | None
    patches: Tensor | None
    gram: Tensor | None = None
    features: tuple[Any, ...] = ()


class SelfDistillation(nn.Module):
    """Student, EMA teacher and, with Gram anchoring, the Gram teacher."""

    def __init__(self, config: Config, student: nn.ModuleDict, gram_teacher: Backbone | None = None) -> None:
        super().__init__()
        self.config = config
        self.student = student
        self.teacher = frozen(copy.deepcopy(student))
        self.gram_teacher = gram_teacher and frozen(gram_teacher)

    def train(self, mode: bool = True) -> "SelfDistillation":
        """Training mode is the student's alone: teachers neither drop paths nor use the norm of local crops."""
        super().train(False)
        self.student.train(mode)
        return self

    def frozen_teachers(self) -> list[nn.Module]:
        """Teachers that are no part of this module and of its checkpoints: none here."""
        return []

    @torch.no_grad()
    def look(self, batch: Batch, rates: Rates) -> tuple[Batch, Targets]:
        """The teachers look at the global crops, unmasked; with what they saw comes the batch that the student learns
        from, here the same one."""
        seen = self.teacher["backbone"](batch.global_crops, is_training=True)
        patches = seen["x_norm_patchtokens"].flatten(0, 1)[batch.mask_indices]
        cls = sinkhorn_knopp(self.teacher["dino_head"](seen["x_norm_clstoken"]), rates.teacher_temp)
        return batch, Targets(
            cls=cls.unflatten(0, (2, -1)),
            patches=sinkhorn_knopp(self.teacher["ibot_head"](patches), rates.teacher_temp),
            gram=self.gram_features(batch, seen["x_norm_patchtokens"]),
        )

    def forward(self, batch: Batch, targets: Targets, rates: Rates) -> tuple[Tensor, dict[str, Tensor]]:
        """The student looks once at all crops, globals masked: the total loss and its terms, unweighted."""
        crops, masks = [batch.global_crops, batch.local_crops], [batch.masks, None]
        wide, near = self.student["backbone"](crops, masks, is_training=True)
        return self.compare(wide, near, batch, targets, rates)

    def compare(
        self, wide: dict[str, Tensor], near: dict[str, Tensor], batch: Batch, targets: Targets, rates: Rates
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of what the student made of global (wide) and local (near) crops."""
        c = self.config
        assert targets.cls is not None and targets.patches is not None
        wide_cls, near_cls = wide["x_norm_clstoken"], near["x_norm_clstoken"]
        patches = wide["x_norm_patchtokens"]

        logits = self.student["dino_head"](torch.cat([wide_cls, near_cls])).unflatten(0, (-1, batch.num_images))
        masked = self.student["ibot_head"](patches.flatten(0, 1)[batch.mask_indices])
        spread = wide_cls.chunk(2)[: 1 if c.koleo.first_crop_only else 2]
        terms = {
            "dino_local": dino_local(logits[2:], targets.cls, c.dino.student_temp),
            "dino_global": dino_global(
                logits[:2], targets.cls, c.dino.student_temp, ignore_diagonal=c.dino.ignore_diagonal
            ),
            "ibot": ibot(masked, targets.patches, batch.mask_weights, len(wide_cls), c.ibot.student_temp),
            "koleo": torch.stack([koleo(cls, group_size=c.koleo.group, topk=c.koleo.topk) for cls in spread]).mean(),
        }
        pairs_global, pairs_local = (2 if c.dino.ignore_diagonal else 4), 2 * c.crops.num_local
        total = (
            c.dino.weight * pairs_local * rates.local_weight * terms["dino_local"]
            + c.dino.weight * pairs_global * terms["dino_global"]
        ) / (pairs_global + pairs_local)
        total = total + c.ibot.weight * terms["ibot"] + c.koleo.weight * len(spread) * terms["koleo"]
        if targets.gram is not None:
            terms["gram"] = self.gram_loss(patches, targets.gram, batch)
            total = total + rates.gram_weight * terms["gram"]
        return total, terms

    def gram_features(self, batch: Batch, seen: Float[Tensor, "B P D"]) -> Float[Tensor, "B P D"] | None:
        """Patch tokens whose similarities the student shall keep, on the student's grid."""
        if not self.config.gram.use:
            return None
        if self.gram_teacher is None:  # the EMA teacher itself, on the global crops
            return seen
        tokens = self.gram_teacher(batch.gram_crops, is_training=True)["x_norm_patchtokens"]
        return resize_tokens(tokens, seen.shape[1], antialias=self.config.gram.antialias)

    def gram_loss(self, student: Float[Tensor, "B P D"], teacher: Float[Tensor, "B P D"], batch: Batch) -> Tensor:
        """The Gram loss on the tokens that the configuration chooses."""
        g = self.config.gram
        if g.tokens != "all":
            chosen = batch.masks if g.tokens == "masked" else ~batch.masks
            student, teacher = student[chosen][None], teacher[chosen][None]
        return gram(student, teacher, normalized=g.normalized, level=g.level, negatives=g.negatives)

    def follow(self, momentum: float) -> None:
        """The teacher becomes momentum times itself plus the rest of the student."""
        update_ema(self.teacher, self.student, momentum)

    def prepare_gram_teacher(self, step: int) -> bool:
        """Copies the EMA teacher into the Gram teacher where the schedule says so before `step`; says whether it did.

        A function of the step alone, so that a resumed run needs no counter.
        """
        if self.gram_teacher is None or not gram_teacher_due(step, self.config):
            return False
        copy_parameters(self.gram_teacher, self.teacher["backbone"])
        return True


def gram_teacher_due(step: int, config: Config) -> bool:
    """Whether the Gram teacher is copied from the EMA teacher before this step, counted from 0."""
    g = config.gram
    if g.load_ema_at == step:
        return True
    if not g.refresh_every or step == 0 or step % g.refresh_every or step < g.refresh_first:
        return False
    first = max(g.refresh_first, 1)
    done = (step - 1) // g.refresh_every - (first - 1) // g.refresh_every  # refreshes before this one
    return g.refresh_max is None or done < g.refresh_max


def split(batch: Batch, targets: Targets, parts: int) -> list[tuple[Batch, Targets]]:
    """The batch and its targets in parts of equally many images, for gradient accumulation.

    Sinkhorn-Knopp has seen the whole batch by then, and every term is a mean over images, so the accumulated gradient
    is that of the whole batch. (KoLeo looks for neighbours within a part, or within its groups.)
    """
    if parts == 1:
        return [(batch, targets)]
    if batch.num_images % parts:
        raise ValueError(f"{batch.num_images} images do not make {parts} equal parts; change parallel.accumulate")
    images = torch.arange(2 * batch.num_images, device=batch.masks.device) % batch.num_images
    owner = images[batch.mask_indices // batch.masks.shape[1]]  # image of every masked patch
    size = batch.num_images // parts
    pieces = []
    for start in range(0, batch.num_images, size):
        chosen = slice(start, start + size)
        mine = (owner >= start) & (owner < start + size)
        part = replace(
            targets,
            cls=None if targets.cls is None else targets.cls[:, chosen],
            patches=None if targets.patches is None else targets.patches[mine],
            gram=of_images(targets.gram, chosen),
            features=tuple(type(seen)(*(of_images(x, chosen) for x in seen)) for seen in targets.features),
        )
        pieces.append((batch.images(chosen), part))
    return pieces


def of_images(seen: Tensor | None, chosen: slice) -> Tensor | None:
    """What was seen of the global crops of some images."""
    return None if seen is None else seen.unflatten(0, (2, -1))[:, chosen].flatten(0, 1)


def build(config: Config, *, device: str | torch.device = "cpu") -> SelfDistillation:
    """A freshly initialised student, its teacher with the same weights, and the frozen teachers there are to be."""
    backbone = build_backbone(config.model.arch, device=device, **config.model.overrides())
    heads = {"dino_head": config.dino.head, "ibot_head": config.ibot.head}
    student = nn.ModuleDict({"backbone": backbone})
    if config.distill.use:
        return taught(config, student, heads, device)
    student.update({name: build_head(head, backbone.embed_dim, device) for name, head in heads.items()})
    gram_teacher = None
    if config.gram.use and not config.gram.follow_ema:
        gram_teacher = copy.deepcopy(backbone)
    return SelfDistillation(config, student, gram_teacher).train()


def taught(
    config: Config, student: nn.ModuleDict, heads: dict[str, HeadConfig], device: str | torch.device
) -> SelfDistillation:
    """The same with frozen teachers, and with the heads that they ask for."""
    from core.taught import TaughtStudent, feature_heads, learns_alone, load_prototypes, load_teachers

    backbone = student["backbone"]
    assert isinstance(backbone, Backbone)
    dim = backbone.embed_dim
    prototypes = load_prototypes(config.distill.teacher, config) if config.distill.teacher else None
    if prototypes is not None or learns_alone(config):
        student.update({name: build_head(head, dim, device) for name, head in heads.items()})
    teachers = load_teachers(config)
    if teachers:
        student["features"] = feature_heads(config, dim, teachers)
    return TaughtStudent(config, student, prototypes, teachers).train()


def build_head(config: HeadConfig, dim: int, device: str | torch.device = "cpu") -> ProjectionHead:
    """A freshly initialised head; numbers that initialisation forgets show as NaN."""
    with torch.device("meta"):
        head = ProjectionHead(
            dim, config.prototypes, hidden=config.hidden, bottleneck=config.bottleneck, layers=config.layers
        )
    if torch.device(device).type == "meta":
        return head
    head = head.to_empty(device=device)
    for parameter in head.parameters():
        nn.init.constant_(parameter, float("nan"))
    head.init_weights()
    return head


def frozen(module: Module) -> Module:
    """The module in evaluation mode, its parameters without gradients; blocks may round as in training."""
    fuse_always(module)
    return module.requires_grad_(False).eval()
