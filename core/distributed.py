"""Start, stop, and the few things processes say to each other. One process needs no group: all is the identity.

Where several students are trained at once, each has some of the processes to itself (`divide`): a function that is
given no group then means those, and `everyone()` are all of them. With one student the two are the same.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

Group = dist.ProcessGroup | None  # None: the processes that train this process's student
_own: Group = None  # of this process, once `divide` was called
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """Which process this is, of how many, and the device it computes on."""

    rank: int
    size: int
    local_rank: int
    device: torch.device


def start(device: str | None = None, *, timeout: timedelta = timedelta(minutes=10)) -> World:
    """This process's place among those that torchrun started; a world of one without torchrun's environment.

    device: "cpu" or "cuda"; None takes CUDA where there is one. Processes talk over gloo on a CPU and over NCCL on
    CUDA. timeout: how long a process waits for the others, here and in every later exchange. Raises RuntimeError when
    they do not meet, ValueError for an environment or a device that cannot be.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0"))) if size > 1 else 0
    chosen = _choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # what "cuda" without a number means from here on, in torch's own code as well
    if dist.is_initialized():
        return World(rank(), dist.get_world_size(_own), local_rank, chosen)
    if size == 1:
        return World(0, 1, 0, chosen)
    if missing := [name for name in _VARIABLES if not os.environ.get(name)]:
        raise ValueError(f"WORLD_SIZE is {size} but {', '.join(missing)} is not set; start the processes with torchrun")
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"{size} processes train on cpu or cuda, not on {chosen.type}; start one process")
    try:
        if chosen.type == "cuda":
            dist.init_process_group("nccl", timeout=timeout, device_id=chosen)
        else:
            dist.init_process_group("gloo", timeout=timeout)
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise RuntimeError(
            f"process {os.environ['RANK']} of {size} could not meet the others at {place} within "
            f"{timeout.total_seconds():g} s; check that all {size} were started with the same address and that the "
            f"nodes reach it. torch says: {error}"
        ) from error
    return World(rank(), size, local_rank, chosen)


def _choose_device(device: str | None, local_rank: int) -> torch.device:
    """The device of this process: each process of a node its own GPU."""
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(kind)
    if chosen.type != "cuda":
        return chosen
    if not torch.cuda.is_available():
        raise ValueError(f"device {kind!r} was asked for, but this torch finds no CUDA; use device 'cpu'")
    index = local_rank if chosen.index is None else chosen.index
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank} of this node needs GPU {index}, and there are {torch.cuda.device_count()}; "
            "start no more processes a node than it has GPUs"
        )
    return torch.device("cuda", index)


def start_alone(world: World) -> None:
    """A process group of this one process, for libraries that cannot do without; nothing where there is a group."""
    if dist.is_initialized():
        return
    assert world.size == 1, "several processes meet in start()"
    dist.init_process_group(
        "nccl" if world.device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1
    )


def divide(sizes: Sequence[int]) -> int:
    """Gives every student so many of the processes, in order of rank; which student this process is for.

    All processes call it, once. Raises ValueError unless the sizes add up to all of them.
    """
    global _own
    count = size(everyone())
    if min(sizes, default=0) < 1 or sum(sizes) != count:
        raise ValueError(f"students with {', '.join(map(str, sizes))} processes need {sum(sizes)}, there are {count}")
    if len(sizes) == 1:
        return 0
    ends = list(accumulate(sizes))
    groups = [dist.new_group(list(range(end - length, end))) for end, length in zip(ends, sizes, strict=True)]
    mine = next(index for index, end in enumerate(ends) if rank(everyone()) < end)
    _own = groups[mine]
    return mine


def everyone() -> Group:
    """All processes, whichever student they train."""
    return dist.group.WORLD if dist.is_initialized() else None


def own() -> Group:
    """The processes that train this process's student; None where those are all."""
    return _own


def stop() -> None:
    """Leaves the process group, if there is one."""
    global _own
    _own = None
    if dist.is_initialized():
        dist.destroy_process_group()


def rank(group: Group = None) -> int:
    """This process's number in the group, from 0."""
    return dist.get_rank(group or _own) if dist.is_initialized() else 0


def size(group: Group = None) -> int:
    """How many processes the group has."""
    return dist.get_world_size(group or _own) if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes and prints, for its student."""
    return rank() == 0


def barrier() -> None:
    """Returns when every process has come here."""
    if size() > 1:
        dist.barrier(_own)


def all_sum(x: Shaped[Tensor, "*n"], group: Group = None) -> Shaped[Tensor, "*n"]:
    """The sum over processes, a new tensor without gradient."""
    total = x.detach().clone(memory_format=torch.contiguous_format)
    if size(group) > 1:
        dist.all_reduce(total, group=group or _own)
    return total


def all_mean(x: Shaped[Tensor, "*n"], group: Group = None) -> Shaped[Tensor, "*n"]:
    """The mean over processes, a new tensor without gradient."""
    return all_sum(x, group) / size(group)


def all_max(x: Shaped[Tensor, "*n"], group: Group = None) -> Shaped[Tensor, "*n"]:
    """The largest over processes, element by element, a new tensor without gradient."""
    top = x.detach().clone(memory_format=torch.contiguous_format)
    if size(group) > 1:
        dist.all_reduce(top, dist.ReduceOp.MAX, group=group or _own)
    return top


def gather(x: Shaped[Tensor, "B *n"], group: Group = None) -> Shaped[Tensor, "W B *n"]:
    """What each process has, by rank, without gradient; of the same shape on every process."""
    if size(group) == 1:
        return x.detach()[None]
    gathered = x.new_empty(size(group), *x.shape)
    dist.all_gather_single(gathered.flatten(0, 1), x.detach().contiguous(), group=group or _own)
    return gathered


def gather_with_grad(x: Shaped[Tensor, "B *n"], group: Group = None) -> Shaped[Tensor, "W_B *n"]:
    """All processes' rows in order of rank (W B, ...); of the same shape on every process.

    Backward sums over processes what each of them sends back for these rows, so the gradient is that of the sum of
    the processes' losses. Averaging gradients over processes (FSDP does) makes it that of their mean.
    """
    return x if size(group) == 1 else _Gather.apply(x, group or _own)


class _Gather(torch.autograd.Function):
    """All-gather whose backward is a reduce-scatter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        gathered = x.new_empty(size(group) * len(x), *x.shape[1:])
        dist.all_gather_single(gathered, x.contiguous(), group=group)
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        own = gradient.new_empty(len(gradient) // size(ctx.group), *gradient.shape[1:])
        dist.reduce_scatter_single(own, gradient.contiguous(), group=ctx.group)
        return own, None


def broadcast_object(value: Any, group: Group = None) -> Any:
    """What the first process of the group has, on all of them."""
    if size(group) == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, group=group or _own, group_src=0)
    return box[0]


def gather_objects(value: Any, group: Group = None) -> list[Any]:
    """What every process has, in order of rank, on all of them."""
    if size(group) == 1:
        return [value]
    values: list[Any] = [None] * size(group)
    dist.all_gather_object(values, value, group=group or _own)
    return values
