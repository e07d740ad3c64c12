"""Batches of a run, step by step: read, augmented and masked in worker processes, each a function of its step alone."""

import itertools
import signal
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from core.config import Config, CropSizes
from core.data import open_source
from core.data.augment import Views, draw_views
from core.data.batch import Batch
from core.data.images import BrokenImage
from core.data.masks import batch_masks
from core.data.order import MASKS, Order, choose, generator
from core.data.render import render
from core.models import build_backbone
from core.models.convnext import ConvNeXt

ATTEMPTS = 64  # images in a row that may be broken before a source counts as unreadable
AHEAD = 2  # batches that each worker prepares


@dataclass(frozen=True)
class Originals:
    """A batch whose crops are still to be cut, on the device: the pixels of B pictures, one behind the other."""

    pixels: UInt8[Tensor, "n"]
    sides: tuple[tuple[int, int], ...]  # height and width
    views: Views
    sizes: CropSizes
    masks: Tensor
    broken: tuple[str, ...]
    keys: Tensor | None = None

    def pin_memory(self) -> "Originals":
        """The same in page-locked memory; torch's loader calls this."""
        return replace(self, pixels=self.pixels.pin_memory(), masks=self.masks.pin_memory())

    def render(self, config: Config, device: str | torch.device) -> Batch:
        """The finished batch, made on the device."""
        pixels = self.pixels.to(device, non_blocking=True)
        lengths = [3 * height * width for height, width in self.sides]
        flat = zip(pixels.split(lengths), self.sides, strict=True)
        pictures = [part.view(3, height, width) for part, (height, width) in flat]
        crops = _render(config, pictures, self.views, self.sizes, matrices=True)
        return Batch(*crops, self.masks.to(device, non_blocking=True), self.broken, self.keys)


def _render(
    config: Config, pictures: list[Tensor], views: Views, sizes: CropSizes, *, matrices: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    data = config.data
    return render(pictures, views, config.crops, sizes, data.image_mean, data.image_std, matrices=matrices)


class Steps(Dataset):
    """What one process sees, by step. Every item is a function of the configuration, the step and the rank."""

    def __init__(self, config: Config, *, rank: int, size: int) -> None:
        data = config.data
        if not data.sources:
            raise ValueError("data.sources is empty; name at least one folder, set of shards or saved data set")
        self.config, self.rank = config, rank
        self.sources = [open_source(source) for source in data.sources]
        self.order = Order(
            [len(source) for source in self.sources],
            [source.weight for source in data.sources],
            [source.homogeneous for source in data.sources],
            batch_size=data.batch_size,
            seed=config.seed,
        )
        self.part = part_of(config, rank, size)
        self.cell = mask_cell(config)

    def __getitem__(self, step: int) -> Batch | Originals:
        config, crops = self.config, self.config.crops
        sizes = crops.sizes[choose([size.probability for size in crops.sizes], step, config.seed)]
        pictures, broken, replaced = self.pictures(step)
        positions, keys = step * config.data.batch_size + np.arange(self.part.start, self.part.stop), None
        if config.distill.views:
            positions = self.views_at(step)  # the same numbers then make the same crops
            keys = torch.from_numpy(np.where(replaced, -1, positions))
        heights, widths = (np.array([picture.shape[axis] for picture in pictures]) for axis in (1, 2))
        views = draw_views(crops, sizes, positions, heights, widths, seed=config.seed)
        masks = self.masks(step, sizes)
        if config.data.augment_on == "device":
            pixels = torch.cat([picture.flatten() for picture in pictures])
            sides = tuple(zip(heights.tolist(), widths.tolist(), strict=True))
            return Originals(pixels, sides, views, sizes, masks, broken, keys)
        return Batch(*_render(config, pictures, views, sizes, matrices=False), masks, broken, keys)

    def masks(self, step: int, sizes: CropSizes) -> Tensor:
        """(2 B, P) for the global crops of this process.

        With frozen teachers they are drawn for `distill.chunk` images at a time, and so are the same on any number of
        processes: students of unequal numbers of them see the same batches.
        """
        ibot, side = self.config.ibot, sizes.global_size // self.cell
        each = self.part.stop - self.part.start
        images = self.config.distill.chunk if self.config.distill.use else each
        drawn = [
            batch_masks(
                2 * images,
                (side, side),
                generator(self.config.seed, MASKS, step, number),
                masked_crops=ibot.masked_crops,
                mask_ratio=ibot.mask_ratio,
                shift=ibot.mask_shift,
            )
            for number in range(self.part.start // images, self.part.stop // images)
        ]
        pairs = np.concatenate([masks.reshape(2, images, -1) for masks in drawn], axis=1)
        return torch.from_numpy(pairs.reshape(2 * each, -1))

    def views_at(self, step: int) -> Int[np.ndarray, "B"]:
        """Which of all views of all images stands where, with distill.views of them an image, one a pass."""
        place = self.order.at(step)
        sources, positions = place.sources[self.part], place.positions[self.part]
        sizes = np.array(self.order.sizes)
        first = np.concatenate([[0], np.cumsum(sizes)])[sources]
        passes = positions // sizes[sources]
        count = self.config.distill.views
        return (first + self.order.images(place, self.part)) * count + passes % count

    def pictures(self, step: int) -> tuple[list[Tensor], tuple[str, ...], list[bool]]:
        """The images of a step, the names of those that were broken, and at which places others stand for them."""
        place, broken = self.order.at(step), []
        pictures: list[Tensor] = []
        replaced: list[bool] = []
        indices = self.order.images(place, self.part)
        for number, (source, index) in enumerate(zip(place.sources[self.part], indices, strict=True)):
            for attempt in range(ATTEMPTS):
                try:
                    picture = self.sources[source].read(int(index))
                    pictures.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
                    replaced.append(attempt > 0)
                    break
                except BrokenImage as error:
                    broken.append(str(error))
                    at = self.part.start + number
                    index = self.order.images(place, slice(at, at + 1), attempt + 1)[0]
            else:
                raise ValueError(f"{ATTEMPTS} images in a row could not be read, the last one {broken[-1]}")
        return pictures, tuple(broken), replaced


def part_of(config: Config, rank: int, size: int) -> slice:
    """Which images of a step a process loads: equal parts that follow each other.

    With frozen teachers parts are whole chunks, and where these do not divide evenly the last ones overlap: students
    exchange their images anyway. Raises ValueError where that does not work out.
    """
    batch = config.data.batch_size
    if not config.distill.use:
        if batch % size:
            raise ValueError(f"data.batch_size {batch} is not a multiple of the {size} processes")
        return slice(rank * (batch // size), (rank + 1) * (batch // size))
    chunk = config.distill.chunk
    if batch % chunk:
        raise ValueError(f"data.batch_size {batch} is not a multiple of distill.chunk, {chunk} images")
    each = -(-batch // (size * chunk)) * chunk
    start = min(rank * each, batch - each)
    return slice(start, start + each)


def mask_cell(config: Config) -> int:
    """Pixels of a crop along the side of what one mask token stands for: a patch, in a ConvNeXt a cell of its last map.

    With distill.student_scale those of the crop as it comes, before the student's is resized. Raises ValueError for
    crops that are no whole number of patches, or do not fit into each other.
    """
    crops, scale = config.crops, config.distill.student_scale
    if crops.local_in_global and (crops.num_local % 2 or any(s.local_size > s.global_size for s in crops.sizes)):
        raise ValueError("crops.local_in_global needs an even num_local, and local crops no larger than global ones")
    backbone = build_backbone(config.model.arch, device="meta", **config.model.overrides())
    patch = backbone.output_stride if isinstance(backbone, ConvNeXt) else backbone.patch_size
    cell = round(patch / scale)
    if cell * scale != patch:
        raise ValueError(f"patches of {patch} px at distill.student_scale {scale:g} are no whole pixels of the crops")
    if isinstance(backbone, ConvNeXt):  # drops a remainder itself
        return cell
    for sizes in crops.sizes:
        for name, side in (("global", sizes.global_size), ("local", sizes.local_size), ("Gram", sizes.gram_size or 0)):
            if side % cell:
                raise ValueError(f"{name} crops of {side} px are no whole patches of {cell}; take {side - side % cell}")
    return cell


class Endless(Sampler[int]):
    """Steps from the first one on."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


class Loader:
    """Iterates over batches from a step on, for ever. Close it, or use it in a `with`, and its workers are gone."""

    def __init__(self, config: Config, *, first_step: int, rank: int, size: int, device: str | torch.device) -> None:
        workers = config.data.workers
        loader = DataLoader(
            Steps(config, rank=rank, size=size),
            batch_size=None,
            sampler=Endless(first_step),
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            collate_fn=_unchanged,
            worker_init_fn=_start_worker,
            pin_memory=torch.device(device).type == "cuda",
            generator=torch.Generator(),  # otherwise starting it would draw from the run's own random numbers
        )
        self.config, self.device = config, device
        self._items: Iterator[Batch | Originals] | None = iter(loader)
        # Called by close, when the loader is forgotten, or at the end of the program. torch's iterator has such an end
        # of its own, but not while the traceback of an error knows it, and none when the program ends.
        self._end = weakref.finalize(self, getattr(self._items, "_shutdown_workers", _nothing))

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        if self._items is None:
            raise StopIteration
        if self.config.data.workers:
            item = next(self._items)
        else:
            with _one_thread():
                item = next(self._items)
        return item.render(self.config, self.device) if isinstance(item, Originals) else item.to(self.device)

    def close(self) -> None:
        """Ends the workers."""
        self._items = None
        self._end()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Many small operations: a second thread costs more than it does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def batches(
    config: Config, *, first_step: int = 0, rank: int = 0, size: int = 1, device: str | torch.device = "cpu"
) -> Loader:
    """The batches of one process from a step on, on a device."""
    return Loader(config, first_step=first_step, rank=rank, size=size, device=device)


def _unchanged(item: Any) -> Any:
    return item


def _nothing() -> None:
    pass


def _start_worker(number: int) -> None:
    torch.set_num_threads(1)  # processes share the cores already
    # Terminals and schedulers signal the whole group. The main process decides what follows, and it still needs its
    # workers when it wants to finish a step and save; they end with it.
    for name in (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])):
        signal.signal(name, signal.SIG_IGN)
