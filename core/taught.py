"""A student of frozen teachers: the paper's distillation through prototypes (section 5.2), and of features, ours.

Every process shows the teachers its own share of a step's images, whichever student it trains. What they saw, and the
crops, then go round: each student gets all images of the step, shared out among the processes that train it. So the
teachers cost B / N images a process on N processes, however many students there are.

Learning a run's prototypes, the student sees its crops unmasked (as released), and iBOT compares the places that would
have been masked; the moving average of the student then teaches nobody, and is what is evaluated and exported. Where
only features are learned, the objective of self-distillation is there as well, as far as its weights are not 0: the
moving average teaches as ever, and the student sees masks.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core import distributed
from core.checkpoint import load_teacher
from core.config import Config, HeadConfig
from core.data import open_source
from core.data.batch import Batch
from core.data.loader import mask_cell, part_of
from core.distill import SelfDistillation, Targets
from core.losses.sinkhorn import sinkhorn_knopp
from core.models.head import ProjectionHead
from core.schedules import Rates
from core.seen import SeenStore
from core.teachers import (
    BackboneTeacher,
    FeatureHead,
    FeatureHeads,
    FrozenTeacher,
    Seen,
    load_frozen,
    resized,
    see_grid,
)

HEADS = {"dino_head": "dino", "ibot_head": "ibot"}


class TaughtStudent(SelfDistillation):
    """Student, its moving average, and the frozen teachers, which no checkpoint holds."""

    def __init__(
        self,
        config: Config,
        student: nn.ModuleDict,
        prototypes: "PrototypeTeacher | None",
        teachers: dict[str, FrozenTeacher],
    ) -> None:
        super().__init__(config, student)
        self.cell = mask_cell(config)
        # In a list, so that they are no sub-modules: state dicts and checkpoints are the student's.
        self._frozen: list[Any] = [prototypes, teachers]
        self.store = open_store(config) if config.distill.keep else None

    @property
    def prototypes(self) -> "PrototypeTeacher | None":
        """The run whose prototypes are the targets, if there is one."""
        return self._frozen[0]

    @property
    def teachers(self) -> dict[str, FrozenTeacher]:
        """The teachers of features, by name."""
        return self._frozen[1]

    @property
    def heads_of_features(self) -> FeatureHeads:
        """What compares the student's tokens with each teacher's."""
        heads = self.student["features"]
        assert isinstance(heads, FeatureHeads)
        return heads

    def frozen_teachers(self) -> list[nn.Module]:
        """All of them."""
        return [*([] if self.prototypes is None else [self.prototypes]), *self.teachers.values()]

    @property
    def alone(self) -> bool:
        """Whether the student's own moving average teaches prototypes as well."""
        return self.prototypes is None and learns_alone(self.config)

    @torch.no_grad()
    def look(self, batch: Batch, rates: Rates) -> tuple[Batch, Targets]:
        """What the frozen teachers see of this process's images goes round; comes back: this process's part of the
        student's batch, and what they saw of that."""
        chunk = self.config.distill.chunk
        pieces = [self.see_or_remember(batch, slice(at, at + chunk)) for at in range(0, batch.num_images, chunk)]
        seen = {name: _joined([piece[name] for piece in pieces]) for name in pieces[0]}
        batch, seen = go_round(batch, seen, self.config)
        found = {name: Seen(*(seen.get(f"{name}.{kind}") for kind in Seen._fields)) for name in self.teachers}
        if found:
            self.heads_of_features.settle_on(found)
        cls = patches = None
        if self.alone:
            _, own = super().look(replace(batch, global_crops=self.as_seen(batch.global_crops)), rates)
            cls, patches = own.cls, own.patches
        elif self.prototypes is not None:
            places = seen["ibot_head"].flatten(0, 1)[batch.mask_indices]
            cls = sinkhorn_knopp(self.prototypes.logits("dino_head", seen["dino_head"]), rates.teacher_temp)
            patches = sinkhorn_knopp(self.prototypes.logits("ibot_head", places), rates.teacher_temp)
            cls = cls.unflatten(0, (2, -1))
        return batch, Targets(cls=cls, patches=patches, features=tuple(found.values()))

    def see_or_remember(self, batch: Batch, images: slice) -> dict[str, Tensor]:
        """What the teachers see of some images, looked up where they saw these views before."""
        if self.store is None or batch.keys is None:
            return self.see(batch, images)
        keys, device = batch.keys[images].cpu(), batch.global_crops.device
        seen = self.store.read(keys) or self.store.write(keys, self.see(batch, images))
        return {name: x.to(device) for name, x in seen.items()}

    def see(self, batch: Batch, images: slice) -> dict[str, Tensor]:
        """By name what the teachers see of the global crops of some images, each (2 c, ...)."""
        crops = batch.global_crops.unflatten(0, (2, -1))[:, images].flatten(0, 1)
        grid = (crops.shape[-2] // self.cell, crops.shape[-1] // self.cell)
        data = self.config.data
        seen: dict[str, Tensor] = {}
        if self.prototypes is not None:
            seen |= self.prototypes.bottlenecks(see_grid(self.prototypes.features, crops, grid, data))
        for teacher, (name, module) in zip(self.config.distill.features, self.teachers.items(), strict=True):
            what = see_grid(module, crops, grid if teacher.sees == "grid" else None, data)
            wanted = {"cls": teacher.cls and what.cls, "patches": teacher.patches and what.patches}
            seen |= {f"{name}.{kind}": x for kind, x in wanted.items() if isinstance(x, Tensor)}
        return seen

    def forward(self, batch: Batch, targets: Targets, rates: Rates) -> tuple[Tensor, dict[str, Tensor]]:
        """The student looks once at all crops: the total loss and its terms, unweighted."""
        crops = [self.as_seen(crops) for crops in (batch.global_crops, batch.local_crops) if len(crops)]
        masks = [batch.masks if self.alone else None, None][: len(crops)]
        wide, *near = self.student["backbone"](crops, masks, is_training=True)
        total: Tensor = wide["x_norm_clstoken"].new_zeros(())
        terms: dict[str, Tensor] = {}
        if targets.cls is not None:
            total, terms = self.compare(wide, near[0], batch, targets, rates)
        rows, columns = (side // self.cell for side in batch.global_crops.shape[-2:])
        patches = wide["x_norm_patchtokens"].unflatten(1, (rows, columns))
        if self.teachers:
            seen = dict(zip(self.teachers, targets.features, strict=True))
            losses = self.heads_of_features(wide["x_norm_clstoken"], patches, seen)
            for teacher, (name, found) in zip(self.config.distill.features, losses.items(), strict=True):
                for kind, loss in found.items():
                    terms[f"{name}_{kind}"] = loss
                    total = total + getattr(teacher, kind) * loss
        return total, terms

    def as_seen(self, crops: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 hh ww"]:
        """Crops at the size at which the student sees them."""
        scale = self.config.distill.student_scale
        return resized(crops, (round(crops.shape[-2] * scale), round(crops.shape[-1] * scale)))

    def follow(self, momentum: float) -> None:
        """The moving average becomes momentum times itself plus the rest of the student; what was measured of the
        teachers' features goes along, so that an export has it."""
        super().follow(momentum)
        if self.teachers:
            for ours, theirs in zip(
                self.teacher["features"].buffers(), self.student["features"].buffers(), strict=True
            ):
                ours.copy_(theirs)

    def prepare_gram_teacher(self, step: int) -> bool:
        """There is none."""
        return False


def open_store(config: Config) -> SeenStore:
    """The folder that keeps what the teachers saw of the run's views. Raises ValueError for one of other teachers."""
    distill, images = config.distill, sum(len(open_source(source)) for source in config.data.sources)
    about = {
        "seed": config.seed,
        "teacher": distill.teacher,
        "features": [asdict(teacher) for teacher in distill.features],
        "views": distill.views,
        "cell": mask_cell(config),
        "crops": asdict(config.crops),
        "sources": [asdict(source) for source in config.data.sources],
        "normalisation": [config.data.image_mean, config.data.image_std],
    }
    return SeenStore(Path(distill.keep).expanduser(), images * distill.views, json.loads(json.dumps(about)))


def learns_alone(config: Config) -> bool:
    """Whether a student of features is taught by its own moving average, too."""
    return not config.distill.teacher and (config.dino.weight > 0 or config.ibot.weight > 0)


class PrototypeTeacher(nn.Module):
    """A run's teacher with its heads: through these the student learns what the run's prototypes mean."""

    def __init__(self, features: BackboneTeacher, heads: dict[str, ProjectionHead]) -> None:
        super().__init__()
        self.features, self.heads = features, nn.ModuleDict(heads)

    def bottlenecks(self, seen: Seen) -> dict[str, Tensor]:
        """(n, b) of the CLS tokens and (n, P, b') of the patches: narrow, so that little goes round."""
        assert seen.cls is not None and seen.patches is not None
        tokens = {"dino_head": seen.cls, "ibot_head": seen.patches.flatten(1, 2)}
        return {name: self.heads[name](x, no_last_layer=True) for name, x in tokens.items()}

    def logits(self, head: str, bottlenecks: Float[Tensor, "*n b"]) -> Float[Tensor, "*n K"]:
        """One logit a prototype."""
        return self.heads[head](bottlenecks, only_last_layer=True)


def load_prototypes(name: str, config: Config) -> PrototypeTeacher:
    """The teacher of a run with its heads. Raises ValueError when it has none, or other prototypes than the student."""
    backbone, states = load_teacher(name)
    heads = {}
    for part, term in HEADS.items():
        if part not in states:
            raise ValueError(
                f"{name} has no {part}, and without heads there are no prototypes to learn; name it in "
                "distill.features to learn its features instead"
            )
        head = head_of(states[part])
        wanted: HeadConfig = getattr(config, term).head
        if head.last_layer.out_features != wanted.prototypes:
            raise ValueError(
                f"the {part} of {name} has {head.last_layer.out_features} prototypes, the student's is to have "
                f"{wanted.prototypes}: give {term}.head.prototypes the teacher's number"
            )
        heads[part] = head
    return PrototypeTeacher(BackboneTeacher(backbone), heads).requires_grad_(False).eval()


def head_of(state: dict[str, Tensor]) -> ProjectionHead:
    """The projection head that these tensors are of."""
    layers = [state[key] for key in sorted(k for k in state if k.startswith("mlp.") and k.endswith(".weight"))]
    last = state["last_layer.weight"]
    with torch.device("meta"):
        head = ProjectionHead(
            layers[0].shape[1], len(last), hidden=len(layers[0]), bottleneck=last.shape[1], layers=len(layers)
        )
    head.load_state_dict(state, assign=True)
    return head


def load_teachers(config: Config) -> dict[str, FrozenTeacher]:
    """The teachers of features by short names. Raises ValueError when two have the same or one lacks what is asked."""
    teachers: dict[str, FrozenTeacher] = {}
    for wanted in config.distill.features:
        name = Path(wanted.name).name.partition(".")[0].replace("@", "_")
        if name in teachers:
            raise ValueError(f"two teachers are called {name}; rename one of the files")
        teacher = load_frozen(wanted.name)
        if (wanted.cls and not teacher.cls_dim) or (wanted.patches and not teacher.patch_dim):
            raise ValueError(f"{name} has no {'patch' if teacher.cls_dim else 'global'} features; give them weight 0")
        teachers[name] = teacher
    return teachers


def feature_heads(config: Config, dim: int, teachers: dict[str, FrozenTeacher]) -> FeatureHeads:
    """A head for each teacher of features, freshly initialised."""
    heads = {}
    for wanted, (name, teacher) in zip(config.distill.features, teachers.items(), strict=True):
        widths = (teacher.cls_dim if wanted.cls else 0, teacher.patch_dim if wanted.patches else 0)
        heads[name] = FeatureHead(dim, *widths, config.distill.settle)
        heads[name].init_weights()
    return FeatureHeads(heads)


def _joined(pieces: list[Tensor]) -> Tensor:
    """Chunks of images, each crop-major (2 c, ...), as one crop-major tensor (2 B, ...)."""
    return torch.cat([piece.unflatten(0, (2, -1)) for piece in pieces], dim=1).flatten(0, 1)


def go_round(batch: Batch, seen: dict[str, Tensor], config: Config) -> tuple[Batch, dict[str, Tensor]]:
    """Every process's images and what was seen of them to all; kept is this process's part of its student's batch.

    Raises ValueError when a student's processes do not divide the batch.
    """
    everyone, size = distributed.everyone(), distributed.size()
    processes = distributed.size(everyone)
    if processes == 1:
        return batch, seen
    images, total = batch.num_images, config.data.batch_size
    if total % size:
        raise ValueError(f"data.batch_size {total} is not a multiple of the {size} processes of {config.name}")
    wanted = torch.arange(total // size) + distributed.rank() * (total // size)
    owner = wanted // images
    place = wanted - torch.tensor([part_of(config, int(rank), processes).start for rank in owner])

    def pass_on(x: Tensor) -> Tensor:
        if not len(x):
            return x
        everything = distributed.gather(x.unflatten(0, (-1, images)), everyone)  # (W, crops, images, ...)
        return everything.transpose(0, 1)[:, owner, place].flatten(0, 1)

    moved = replace(
        batch,
        global_crops=pass_on(batch.global_crops),
        local_crops=pass_on(batch.local_crops),
        gram_crops=None,
        masks=pass_on(batch.masks.to(torch.uint8)).bool(),
        keys=None,  # the teachers have looked
    )
    return moved, {name: pass_on(x) for name, x in seen.items()}
