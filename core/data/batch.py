"""What one step of one process sees."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Crops of B images, crop-major: crop 0 of all images, then crop 1 of all images, ...

    global_crops (2 B, 3, h, w), local_crops (L B, 3, h, w), gram_crops (2 B, 3, H, W) or None, all normalised fp32;
    masks (2 B, P): True where the student sees the mask token.
    """

    global_crops: Tensor
    local_crops: Tensor
    gram_crops: Tensor | None
    masks: Tensor
    broken: tuple[str, ...] = ()  # images that could not be read and were replaced by others
    keys: Tensor | None = None  # (B,) with distill.views: which view of which image each is; -1: of a replacement

    @property
    def num_images(self) -> int:
        """B: two global crops an image."""
        return len(self.global_crops) // 2

    @cached_property
    def mask_indices(self) -> Int[Tensor, "m"]:
        """Positions of masked patches in the flattened (2 B P) grid."""
        return self.masks.flatten().nonzero().flatten()

    @cached_property
    def mask_weights(self) -> Float[Tensor, "m"]:
        """For every masked patch one over the number of masked patches in its crop."""
        counts = self.masks.sum(dim=1).clamp(min=1)
        return (1 / counts)[:, None].expand_as(self.masks)[self.masks]

    def to(self, device: str | torch.device) -> "Batch":
        """The same batch there; from pinned memory without waiting."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; torch's loader calls this."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {k: change(v) for k, v in tensors.items() if isinstance(v, Tensor)}
        return replace(self, **changed)

    def images(self, chosen: slice) -> "Batch":
        """The batch of some of its images."""

        def pick(crops: Tensor) -> Tensor:
            return crops.unflatten(0, (-1, self.num_images))[:, chosen].flatten(0, 1)

        return replace(
            self,
            global_crops=pick(self.global_crops),
            local_crops=pick(self.local_crops),
            gram_crops=None if self.gram_crops is None else pick(self.gram_crops),
            masks=pick(self.masks),
            keys=None if self.keys is None else self.keys[chosen],
        )
