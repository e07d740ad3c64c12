"""KoLeo: spreads embeddings evenly by the distance to the nearest neighbour (Sablayrolles et al. 2019; paper 3.2)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.distributed import ProcessGroup

from core.distributed import gather_with_grad, rank, size

EPS = 1e-8


def koleo(
    cls: Float[Tensor, "B D"],
    *,
    group_size: int | None = None,
    topk: int = 1,
    group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """Minus the mean log distance of each unit vector to its `topk` nearest ones among its group, fp32.

    group_size: how many images look for neighbours among each other, consecutive over all processes; None: those of
    this process. Raises ValueError when groups and processes do not fit or a group is too small to have neighbours.
    """
    batch = len(cls)
    group_size = batch if group_size is None else group_size
    if group_size <= topk:
        raise ValueError(f"KoLeo looks for {topk} neighbours among {group_size} images; use larger groups or batches")
    unit = F.normalize(cls.float(), dim=-1, eps=EPS)
    if group_size <= batch:
        if batch % group_size:
            raise ValueError(f"KoLeo groups of {group_size} do not divide the {batch} images of a process")
        queries = keys = unit.unflatten(0, (-1, group_size))
        first = 0
    else:
        world = size(group)
        if group_size % batch or (world * batch) % group_size:
            raise ValueError(
                f"KoLeo groups of {group_size} images must hold whole processes of {batch} and divide all "
                f"{world * batch} images"
            )
        keys = gather_with_grad(unit, group).unflatten(0, (-1, group_size))
        own, first = divmod(rank(group) * batch, group_size)
        keys, queries = keys[own : own + 1], unit[None]
    with torch.no_grad():
        cosine = queries @ keys.mT  # (groups, queries, keys)
        cosine.diagonal(first, dim1=-2, dim2=-1).fill_(-1)  # nobody is their own neighbour
        nearest = cosine.topk(topk, dim=-1).indices  # (groups, queries, topk)
    groups = torch.arange(len(keys), device=cls.device)[:, None, None]
    distance = F.pairwise_distance(queries[:, :, None], keys[groups, nearest], p=2, eps=EPS)
    return -(distance + EPS).log().mean()
