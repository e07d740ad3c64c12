"""One device is the measure of all others. Run as a script, this file is one of several processes."""

import functools
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from core import distributed, parallel
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
    ParallelConfig,
)
from core.data.batch import Batch
from core.distill import SelfDistillation, build, build_head
from core.models.vit import VisionTransformer
from core.parallel import blocks_of, clip_gradients, copy_parameters, parallelize, update_ema
from core.schedules import rates_at

ALONE = distributed.World(0, 1, 0, torch.device("cpu"))
PLAIN = ParallelConfig(precision="fp32", compile=False)
IMAGES = 8  # over all processes


def tiny_config(arch: str = "vit_nano", *, drop_path: float = 0.0) -> Config:
    head = HeadConfig(prototypes=50, hidden=32, bottleneck=16)
    return Config(
        model=ModelConfig(arch=arch, drop_path=drop_path, layer_scale=0.1),
        dino=DinoConfig(head=head),
        ibot=IbotConfig(head=head),
        koleo=KoleoConfig(group=2),
        gram=GramConfig(use=True),
        crops=CropsConfig(sizes=(CropSizes(global_size=64, local_size=32, gram_size=64),), num_local=2),
        data=DataConfig(batch_size=IMAGES),
        parallel=PLAIN,
    )


def a_model(config: Config, settings: ParallelConfig = PLAIN, world: distributed.World = ALONE) -> SelfDistillation:
    """A run before its first step, the teachers a little away from the student."""
    torch.manual_seed(0)
    model = build(config)
    with torch.no_grad():
        for module in (model.student, model.teacher, model.gram_teacher):
            for parameter in module.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    parallelize(model, settings, world)
    return model


def a_batch(side: int = 64) -> Batch:
    noise = torch.Generator().manual_seed(1)
    wide = torch.randn(2 * IMAGES, 3, side, side, generator=noise)
    near = torch.randn(2 * IMAGES, 3, 32, 32, generator=noise)
    masks = torch.rand(2 * IMAGES, 16, generator=noise) < torch.linspace(0, 0.5, 2 * IMAGES)[:, None]
    return Batch(wide, near, wide + 0.1, masks)


def a_batch_for(arch: str) -> Batch:
    """Two images are enough for the 28 million parameters of the smallest ConvNeXt, whose cells are 32 pixels wide."""
    return a_batch(side=128).images(slice(2)) if arch == "convnext_tiny" else a_batch()


def backward(model: SelfDistillation, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The total loss over all processes and each gradient, whole."""
    torch.manual_seed(2)  # drop path
    rates = rates_at(20_000, model.config)
    total, _ = model(*model.look(batch, rates), rates)
    total.backward()
    gradients = {name: whole(p.grad) for name, p in model.student.named_parameters() if p.grad is not None}
    return distributed.all_mean(total), gradients


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name in found if not found[name].equal(expected[name])]


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of all gradients together, relative to their length."""
    assert found.keys() == expected.keys()
    apart = torch.stack([(found[name] - expected[name]).norm() for name in found]).norm()
    return float(apart / torch.stack([tensor.norm() for tensor in expected.values()]).norm())


@pytest.fixture
def own_group() -> Iterator[None]:
    """Leaves the process group of one that sharding makes."""
    yield
    distributed.stop()


@pytest.fixture(scope="module")
def plain() -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one process that has the whole batch."""
    return backward(a_model(tiny_config()), a_batch())


# One process


def test_alone_in_fp32_nothing_is_wrapped():
    model = a_model(tiny_config())
    assert not torch.distributed.is_initialized()
    assert not any(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("arch", "mode"),
    [
        ("vit_nano", "full"),
        ("vit_nano", "selective"),
        pytest.param("convnext_tiny", "selective", marks=pytest.mark.long),
    ],
)
def test_recomputing_changes_no_bit(arch, mode):
    """With drop path, whose draws must repeat; and it forgets what it is meant to forget."""
    config, batch = tiny_config(arch, drop_path=0.3), a_batch_for(arch)
    kept, results = [], []
    for settings in (PLAIN, replace(PLAIN, recompute=mode)):
        model = a_model(config, settings)
        names = [name for name, _ in model.named_parameters()]
        assert names == [name for name, _ in build(config).named_parameters()]
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            torch.manual_seed(2)
            model.student["backbone"]([batch.global_crops], [batch.masks], is_training=True)
        kept.append(sum(sizes.values()))
        results.append(backward(model, batch))
    assert results[0][0].equal(results[1][0])
    assert_equal(results[1][1], results[0][1])
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.parametrize("arch", ["vit_nano", pytest.param("convnext_tiny", marks=pytest.mark.long)])
def test_sharding_over_one_process_changes_no_bit(own_group, arch):
    config, batch = tiny_config(arch), a_batch_for(arch)
    loss, gradients = backward(a_model(config), batch)
    model = a_model(config)
    names = [name for name, _ in model.named_parameters()]
    parallel.shard([*model.student.values(), *model.teacher.values(), model.gram_teacher], "fp32", ALONE)
    assert names == [name for name, _ in model.named_parameters()]
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    found, sharded = backward(model, batch)
    assert found.equal(loss)
    assert_equal(sharded, gradients)


def test_bf16_computes_in_bf16_and_keeps_fp32(own_group, plain):
    """Parameters, gradients, buffers and rotary factors stay fp32; features and logits are bf16, and near."""
    loss, gradients = plain
    model = a_model(tiny_config(), replace(PLAIN, precision="bf16"))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    backbone = model.student["backbone"]
    periods, factors, features = backbone.rope_embed.exact_periods(), [], []

    def note(module: nn.Module, arguments: tuple, outputs: list[Tensor]) -> None:
        features.extend(tensor.dtype for tensor in (*arguments[0], *outputs))
        factors.extend(tensor.dtype for pair in arguments[1] for tensor in pair)

    for block in blocks_of(backbone):
        block.register_forward_hook(note)
    found, rounded = backward(model, a_batch())
    assert set(features) == {torch.bfloat16} and set(factors) == {torch.float32}
    assert backbone.rope_embed.periods.equal(periods)
    mask = backbone.blocks[0].attn.qkv.bias_mask
    assert mask.dtype == torch.float32 and mask.sum() == 256 and mask[128:256].sum() == 0
    assert all(gradient.dtype == torch.float32 for gradient in rounded.values())
    torch.testing.assert_close(found, loss, rtol=0.01, atol=0)
    assert 1e-4 < distance(rounded, gradients) < 0.1
    with torch.no_grad():
        (maps,) = model.teacher["backbone"].get_intermediate_layers(torch.randn(1, 3, 64, 64), reshape=True)
    assert maps.shape == (1, 128, 4, 4) and maps.dtype == torch.bfloat16


def test_a_teacher_sees_its_own_update(own_group):
    """A gathered copy that outlives the forward pass would hide what the moving average changed."""
    model = a_model(tiny_config(), replace(PLAIN, precision="bf16"))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model.teacher["backbone"](images)
        model.follow(0.0)
        after, student = model.teacher["backbone"](images), model.student["backbone"].eval()(images)
    assert not after.equal(before)
    assert after.equal(student)


def test_without_a_compiler_the_log_says_so(monkeypatch, caplog):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with caplog.at_level(logging.WARNING):
        model = a_model(tiny_config(), replace(PLAIN, compile=True))
    assert "parallel.compile is on, but no C++ compiler is installed" in caplog.text
    assert not any("forward" in vars(module) for module in model.modules())


def test_fp8_needs_its_hardware_and_bf16(monkeypatch):
    with pytest.raises(ValueError, match=r"compute capability 8\.9"):
        a_model(tiny_config(), replace(PLAIN, fp8=True))
    monkeypatch.setattr(parallel, "check_fp8", lambda device: None)
    with pytest.raises(ValueError, match=r"set parallel\.precision to 'bf16'"):
        a_model(tiny_config(), replace(PLAIN, fp8=True))


def test_bf16_on_a_device_without_it_is_refused():
    with pytest.raises(ValueError, match="use precision 'fp32'"):
        a_model(tiny_config(), replace(PLAIN, precision="bf16"), distributed.World(0, 1, 0, torch.device("mps")))


# What a step does to parameters


def a_student(seed: int = 0) -> nn.ModuleDict:
    torch.manual_seed(seed)
    student = nn.ModuleDict({"backbone": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), "head": nn.Linear(4, 2)})
    for parameter in student.parameters():
        parameter.grad = torch.randn_like(parameter)
    return student


@pytest.mark.parametrize("limit", [0.5, 2.0, 100.0])
def test_clipping_treats_each_part_as_torch_does(limit):
    student, reference = a_student(), a_student()
    norms = clip_gradients(student, limit)
    for name, module in reference.items():
        expected = torch.nn.utils.clip_grad_norm_(module.parameters(), limit)
        torch.testing.assert_close(norms[name], expected, rtol=1e-6, atol=0)
    for found, expected in zip(student.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-6, atol=0)


def test_without_a_limit_norms_are_measured_only():
    student, reference = a_student(), a_student()
    student["head"].zero_grad()
    norms = clip_gradients(student, 0.0)
    assert norms["head"] == 0 and norms["backbone"] > 0
    for found, expected in zip(student["backbone"].parameters(), reference["backbone"].parameters(), strict=True):
        assert found.grad.equal(expected.grad)


@pytest.mark.parametrize("momentum", [0.0, 0.4, 0.992, 1.0])
def test_the_moving_average_is_the_plain_loop(momentum):
    teacher, student, before = a_student(0), a_student(1), a_student(0)
    student["backbone"][1].running_mean.fill_(5)
    update_ema(teacher, student, momentum)
    for t, s, b in zip(teacher.parameters(), student.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(t, momentum * b + (1 - momentum) * s, rtol=1e-6, atol=1e-7)
        assert momentum < 1 or t.equal(b)
        assert momentum > 0 or t.equal(s)
    assert teacher["backbone"][1].running_mean.eq(0).all()  # a buffer


def test_copying_takes_parameters_and_leaves_buffers():
    target, source = a_student(0), a_student(1)
    source["backbone"][1].running_mean.fill_(5)
    copy_parameters(target, source)
    assert all(t.equal(s) for t, s in zip(target.parameters(), source.parameters(), strict=True))
    assert target["backbone"][1].running_mean.eq(0).all()


# Several processes


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_compute_what_one_does(run_processes, tmp_path, plain, size):
    """Loss and gradients, to fp32 rounding, with and without recomputing; norms, clipping and moving average."""
    loss, gradients = plain
    model = a_model(tiny_config())
    backward(model, a_batch())
    norms = clip_gradients(model.student, 0.5)
    update_ema(model.teacher, model.student, 0.9)
    copy_parameters(model.gram_teacher, model.teacher["backbone"])
    clipped = {name: parameter.grad for name, parameter in model.student.named_parameters()}
    expected = {"loss": loss, "gradients": gradients, "norms": norms, "clipped": clipped, "state": model.state_dict()}
    torch.save(expected, tmp_path / "expected.pt")
    run_processes(__file__, size, "compare", tmp_path / "expected.pt")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_compiled_parts_compute_the_same_in_two_processes(run_processes, tmp_path, plain):
    loss, gradients = plain
    torch.save({"loss": loss, "gradients": gradients}, tmp_path / "expected.pt")
    run_processes(__file__, 2, "compiled", tmp_path / "expected.pt", timeout=280)


@pytest.mark.long
def test_a_compiled_head_computes_the_same(run_processes):
    """All the way to machine code, for which blocks would take minutes. Elsewhere: here shapes are checked."""
    run_processes(__file__, 1, "compiled_head", "")


TOLERANCE = 2e-6  # of fp32 sums in another order, relative


def compare(file: Path) -> None:
    world = distributed.start("cpu", timeout=timedelta(seconds=200))
    expected = torch.load(file, weights_only=True)
    share = IMAGES // world.size
    batch = a_batch().images(slice(world.rank * share, (world.rank + 1) * share))

    model = a_model(tiny_config(), replace(PLAIN, recompute="selective"), world)
    names = [name for name, _ in build(tiny_config()).named_parameters()]
    assert names == [name for name, _ in model.named_parameters()]
    held = sum(parameter.to_local().numel() for parameter in model.parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    assert held < total / world.size * 1.2  # a row cannot be cut: cls_token lies on one process

    loss, gradients = backward(model, batch)
    torch.testing.assert_close(loss, expected["loss"], rtol=TOLERANCE, atol=0)
    assert distance(gradients, expected["gradients"]) < TOLERANCE
    norms = clip_gradients(model.student, 0.5)
    torch.testing.assert_close(norms, expected["norms"], rtol=TOLERANCE, atol=0)
    clipped = {name: whole(parameter.grad) for name, parameter in model.student.named_parameters()}
    assert distance(clipped, expected["clipped"]) < 2 * TOLERANCE
    update_ema(model.teacher, model.student, 0.9)
    copy_parameters(model.gram_teacher, model.teacher["backbone"])
    assert_equal({name: whole(tensor) for name, tensor in model.state_dict().items()}, expected["state"])

    # What an evaluation asks of a sharded teacher.
    reference = build(tiny_config()).teacher["backbone"]
    prefix = "teacher.backbone."
    reference.load_state_dict({k.removeprefix(prefix): v for k, v in expected["state"].items() if k.startswith(prefix)})
    assert isinstance(reference, VisionTransformer)
    images = a_batch().global_crops[:2]
    with torch.no_grad():
        found = model.teacher["backbone"].get_intermediate_layers(images, n=2, return_class_token=True)
        plain = reference.get_intermediate_layers(images, n=2, return_class_token=True)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    distributed.stop()


def compiled(file: Path) -> None:
    torch.compile = functools.partial(torch.compile, backend="aot_eager")  # everything but the C++ compiler
    world = distributed.start("cpu", timeout=timedelta(seconds=200))
    expected = torch.load(file, weights_only=True)
    share = IMAGES // world.size
    batch = a_batch().images(slice(world.rank * share, (world.rank + 1) * share))
    model = a_model(tiny_config(), replace(PLAIN, recompute="selective", compile=True), world)
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in build(tiny_config()).named_parameters()
    ]
    loss, gradients = backward(model, batch)
    torch.testing.assert_close(loss, expected["loss"], rtol=TOLERANCE, atol=0)
    assert distance(gradients, expected["gradients"]) < 2 * TOLERANCE
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    distributed.stop()


def compiled_head(_: Path) -> None:
    torch.manual_seed(0)
    head, x = build_head(tiny_config().dino.head, 128), torch.randn(4, 128)
    plain = head(x)
    parallel.compile_parts([head], torch.device("cpu"))
    torch.testing.assert_close(head(x), plain, rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


if __name__ == "__main__":
    warnings.simplefilter("error", FutureWarning)
    {"compare": compare, "compiled": compiled, "compiled_head": compiled_head}[sys.argv[1]](Path(sys.argv[2]))
