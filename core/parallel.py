"""How one step is spread over devices. The only file that knows FSDP2; models are written for one device.

Always in this order, because each step wraps what the one before left: eight-bit products, recomputation, compilation,
sharding. Everything happens in place and no parameter changes its name.
"""

import functools
import importlib.util
import logging
import shutil
import warnings
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from core import distributed
from core.config import ParallelConfig
from core.distributed import World
from core.fp8 import check_fp8, use_fp8
from core.models import Backbone
from core.models.convnext import ConvNeXt

if TYPE_CHECKING:
    from core.distill import SelfDistillation

log = logging.getLogger(__name__)


def parallelize(model: "SelfDistillation", config: ParallelConfig, world: World) -> None:
    """Prepares student and teachers, in place, for the devices of this world.

    In a world of one with fp32 nothing is sharded. bf16 always goes through FSDP2, if need be over one process, so
    that its meaning is the same everywhere: parameters, optimizer and gradient sums stay fp32, forward and backward
    compute in bf16. The model may lie on the CPU: sharding brings it to the device a block at a time, so a device never
    holds the whole of it. On `meta`, `to_empty` and a checkpoint must follow.
    """
    teachers = [*model.teacher.values(), *([] if model.gram_teacher is None else [model.gram_teacher])]
    modules = [*model.student.values(), *teachers]
    backbones = [module for module in modules if _is_backbone(module)]
    if config.fp8:
        check_fp8(world.device)
        if config.precision != "bf16":
            raise ValueError(
                f"parallel.fp8 multiplies bf16 numbers; set parallel.precision to 'bf16', got {config.precision!r}"
            )
        for backbone in backbones:
            for index, block in enumerate(blocks_of(backbone)):
                use_fp8(block, f"block {index}")
    if config.recompute != "none":
        for block in blocks_of(backbones[0]):  # the student's: teachers have no backward
            recompute(block, selective=config.recompute == "selective")
    if config.compile:
        compile_parts(modules, world.device)
    if world.size > 1 or config.precision == "bf16":
        shard(modules, config.precision, world)
    elif not next(model.parameters()).is_meta:
        model.to(world.device)
    for teacher in model.frozen_teachers():
        place_frozen(teacher, config, world)


def _is_backbone(module: nn.Module) -> TypeGuard[Backbone]:
    return isinstance(module, Backbone)


def blocks_of(backbone: Backbone) -> list[nn.Module]:
    """The residual blocks of a backbone, first to last."""
    if isinstance(backbone, ConvNeXt):
        return [block for stage in backbone.stages for block in stage.children()]
    return list(backbone.blocks)


# Recompute


def recompute(block: nn.Module, *, selective: bool) -> None:
    """Makes a block forget its activations and compute them again in backward; random draws repeat.

    selective: results of matrix products and attention are kept, the cheap rest is computed again.
    """
    forward = block.forward
    options: dict[str, Any] = {"use_reentrant": False}
    if selective:
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep_products)

    def recomputed(*arguments: Any) -> Any:
        return checkpoint(forward, *arguments, **options)

    block.forward = recomputed


_aten = torch.ops.aten
_KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten._scaled_mm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten.convolution.default,
}


def _keep_products(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


# Compile


def compile_parts(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Compiles every block and every head, or says in the log why it cannot."""
    if missing := _missing_compiler(device):
        log.warning("parallel.compile is on, but %s: models run uncompiled", missing)
        return
    torch._dynamo.config.recompile_limit = 64  # blocks share their code: student, teachers, crop sizes add up
    for module in modules:
        for part in blocks_of(module) if _is_backbone(module) else [module]:
            # The method, not the module: FSDP's hooks stay outside, and names of parameters as they are.
            part.forward = torch.compile(part.forward)


def _missing_compiler(device: torch.device) -> str | None:
    """What keeps torch.compile from working here."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    if device.type == "cpu":
        compilers = ("g++", "clang++", "c++", "cl")
        return None if any(map(shutil.which, compilers)) else f"no C++ compiler is installed ({', '.join(compilers)})"
    return f"torch does not compile for device {device.type!r} here"


# Shard


def shard(modules: Iterable[nn.Module], precision: str, world: World, *, group: distributed.Group = None) -> None:
    """Spreads every parameter over the processes by its first dimension (FSDP2), each block and each head a unit.

    group: the processes; without it those of the student.

    Units are gathered just before they compute and dropped right after, in backward once more. So a teacher, which has
    no backward, never keeps a gathered copy that its moving average would leave behind.
    """
    if world.device.type not in ("cpu", "cuda"):
        raise ValueError(f"precision {precision!r} needs cpu or cuda, got {world.device.type}; use precision 'fp32'")
    # Every block returns a view, which is in order as long as nobody writes into it.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    distributed.start_alone(world)
    mesh = _mesh(group or distributed.own() or distributed.everyone(), world)
    reduced = precision == "bf16"
    policy: dict[str, Any] = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if reduced else {}
    outer = MixedPrecisionPolicy(**policy)
    # What enters a block is bf16 already, except the rotary factors, which keep the precision they were made in.
    inner = MixedPrecisionPolicy(**policy, cast_forward_inputs=False)
    for module in modules:
        if _is_backbone(module):
            blocks = [fully_shard(b, mesh=mesh, mp_policy=inner, reshard_after_forward=True) for b in blocks_of(module)]
            _prefetch(blocks)
        fully_shard(module, mesh=mesh, mp_policy=outer, reshard_after_forward=True)
        if _is_backbone(module):
            register_fsdp_forward_method(module, "get_intermediate_layers")


def place_frozen(teacher: nn.Module, config: ParallelConfig, world: World) -> None:
    """A frozen teacher on the device; with several processes its backbone is spread over all, whichever student."""
    backbones = [module for module in teacher.modules() if _is_backbone(module)]
    if config.compile:
        compile_parts(backbones, world.device)
    many = distributed.size(distributed.everyone()) > 1
    if backbones and (many or config.precision == "bf16"):
        shard(backbones, config.precision, world, group=distributed.everyone())
    if not any(parameter.is_meta for parameter in teacher.parameters()):
        teacher.to(world.device)


def _mesh(group: distributed.Group, world: World) -> DeviceMesh:
    """The processes of a group in a row."""
    assert group is not None, "start_alone makes a group where there is none"
    return DeviceMesh.from_group(group, world.device.type, mesh_dim_names=("shard",))


def _prefetch(blocks: list[FSDPModule]) -> None:
    """While one block computes, its neighbour is gathered."""
    for block, following in pairwise(blocks):
        block.set_modules_to_forward_prefetch([following])
        following.set_modules_to_backward_prefetch([block])


# What a training step does to sharded parameters


@torch.no_grad()
def clip_gradients(student: nn.ModuleDict, max_norm: float) -> dict[str, Float[Tensor, ""]]:
    """The gradient norm of each sub-module over all processes, before each was scaled down to `max_norm`.

    max_norm 0 measures only.
    """
    gradients = {
        name: [_local(p.grad) for p in module.parameters() if p.grad is not None] for name, module in student.items()
    }
    squares = [_square_sum(tensors, student) for tensors in gradients.values()]
    norms = distributed.all_sum(torch.stack(squares)).sqrt()  # a process alone holds all; else each its shards
    if max_norm:
        for tensors, norm in zip(gradients.values(), norms, strict=True):
            if tensors:
                torch._foreach_mul_(tensors, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return dict(zip(gradients, norms, strict=True))


def _square_sum(tensors: list[Tensor], student: nn.Module) -> Float[Tensor, ""]:
    if not tensors:
        return torch.zeros((), device=next(student.parameters()).device)
    return torch.stack(torch._foreach_norm(tensors)).square().sum()


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Every parameter of the teacher becomes momentum times itself plus the rest of the student's; buffers stay."""
    targets, sources = _pairs(teacher, student)
    torch._foreach_lerp_(targets, sources, 1 - momentum)


@torch.no_grad()
def copy_parameters(target: nn.Module, source: nn.Module) -> None:
    """Every parameter of the target takes the value of the source's; buffers stay."""
    torch._foreach_copy_(*_pairs(target, source))


def _pairs(first: nn.Module, second: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """This process's part of the parameters of two modules of the same kind, in the same order."""
    left, right = dict(first.named_parameters()), dict(second.named_parameters())
    assert list(left) == list(right), "parameters of the two modules differ in name or order"
    return [_local(p) for p in left.values()], [_local(p) for p in right.values()]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
