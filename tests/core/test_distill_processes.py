"""Two and four processes give the loss and the gradients of one on the same global batch."""

import sys
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from core import distributed
from core.config import Config, CropsConfig, CropSizes, DinoConfig, GramConfig, HeadConfig, IbotConfig, ModelConfig
from core.data.batch import Batch
from core.distill import SelfDistillation, build
from core.parallel import clip_gradients, parallelize
from core.schedules import Rates

HEAD = HeadConfig(prototypes=32, hidden=16, bottleneck=8)
RATES = Rates(
    lr=1e-3, last_layer_lr=1e-3, weight_decay=0.0, momentum=0.9, teacher_temp=0.05, local_weight=1.0, gram_weight=2.0
)
CONFIG = Config(
    model=ModelConfig(arch="vit_nano", patch_size=8, drop_path=0.0),
    dino=DinoConfig(head=HEAD),
    ibot=IbotConfig(head=HEAD),
    koleo=replace(Config().koleo, group=4),  # two processes of two images each
    gram=GramConfig(use=True),
    crops=CropsConfig(sizes=(CropSizes(global_size=32, local_size=16, gram_size=64),), num_local=3),
)
IMAGES = 8


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4])
def test_processes_give_the_loss_and_gradients_of_one(run_processes, size):
    assert run_processes(__file__, size) == ["done\n"] * size


def batch_of_all() -> Batch:
    """Crops with noise of different strength, and masks whose number differs from image to image."""
    draw = torch.Generator().manual_seed(3)
    masks = torch.zeros(2 * IMAGES, 16, dtype=torch.bool)
    for crop in range(2 * IMAGES):
        masks[crop, torch.randperm(16, generator=draw)[: (crop * 5) % 9 if crop % 3 else 0]] = True

    def noise(crops: int, side: int) -> torch.Tensor:
        return torch.randn(crops, 3, side, side, generator=draw) * torch.linspace(0.5, 2, crops)[:, None, None, None]

    return Batch(noise(2 * IMAGES, 32), noise(3 * IMAGES, 16), noise(2 * IMAGES, 64), masks)


def model() -> SelfDistillation:
    torch.manual_seed(0)
    made = build(CONFIG)
    with torch.no_grad():
        for name, parameter in made.student.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5 if "gamma" in name else 0.05)
    return made


def one_step(made: SelfDistillation, batch: Batch) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Terms, means over processes, and gradients as each process holds them."""
    total, terms = made(*made.look(batch, RATES), RATES)
    total.backward()
    values = {name: distributed.all_mean(value.detach()) for name, value in {"total": total, **terms}.items()}
    return values, {name: parameter.grad for name, parameter in made.student.named_parameters()}


def compare() -> None:
    whole = batch_of_all()
    terms, gradients = one_step(alone := model(), whole)
    norms = clip_gradients(alone.student, 0.0)

    world = distributed.start("cpu")
    each = IMAGES // world.size
    mine = whole.images(slice(world.rank * each, (world.rank + 1) * each))
    counts = distributed.gather_objects(int(mine.masks.sum()))
    assert len(set(counts)) > 1, "the test wants processes with different numbers of masked patches"

    # Gradients averaged by hand, nothing sharded.
    values, plain = one_step(model(), mine)
    for name, value in terms.items():
        assert_close(values[name], value.detach(), atol=1e-6, rtol=1e-6, msg=name)
    for name, value in gradients.items():
        close = float(1e-5 * value.abs().max()) + 1e-9
        assert_close(distributed.all_mean(plain[name]), value, atol=close, rtol=0, msg=name)

    # The same through FSDP2, which averages them itself.
    sharded = model()
    parallelize(sharded, replace(CONFIG.parallel, precision="fp32", compile=False), world)
    values, pieces = one_step(sharded, mine)
    for name, value in terms.items():
        assert_close(values[name], value.detach(), atol=1e-6, rtol=1e-6, msg=name)
    for name, value in gradients.items():
        close = float(1e-5 * value.abs().max()) + 1e-9
        assert_close(pieces[name].full_tensor(), value, atol=close, rtol=0, msg=name)
    for name, value in clip_gradients(sharded.student, 0.0).items():
        assert_close(torch.as_tensor(value), torch.as_tensor(norms[name]), atol=0, rtol=1e-5, msg=name)

    # And the teacher that follows.
    alone.follow(0.9)
    sharded.follow(0.9)
    teacher = dict(alone.teacher.named_parameters())
    for name, parameter in sharded.teacher.named_parameters():
        assert_close(parameter.full_tensor(), teacher[name], atol=1e-7, rtol=1e-6, msg=name)
    distributed.stop()
    print("done")


if __name__ == "__main__":
    assert len(sys.argv) == 1
    compare()
