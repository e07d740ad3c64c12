"""Views of captioned images as a frozen backbone sees them: each looked at once where they come again."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from core import distributed
from core.config import DataConfig
from core.data.augment import Boxes
from core.data.render import cut_by_kernel
from core.text.captions import Captioned
from core.text.config import TextConfig
from core.text.model import VisualModel

MEAN, STD = DataConfig().image_mean, DataConfig().image_std
RATIO = (3 / 4, 4 / 3)  # of a view's width and height, before it is squeezed into a square


class Views:
    """Tokens of the backbone, of random crops of images.

    With config.views each image has so many, kept in half precision in `folder`, which later runs of the same images
    and backbone find again; else every view is new.
    """

    def __init__(self, items: Sequence[Captioned], visual: VisualModel, config: TextConfig, folder: Path) -> None:
        self.items, self.visual, self.config, self.folder = list(items), visual, config, folder
        self._tokens: np.memmap | None = None
        self._known: np.memmap | None = None

    def of(self, rows: Sequence[int], step: int) -> Float[Tensor, "B N D"]:
        """A view of each of these images: which one depends on image and step alone."""
        if not self.config.views:
            keys = [(row, step) for row in rows]
            return self._look([self._crop(row, key) for row, (_, key) in zip(rows, keys, strict=True)])
        which = [int(self._numbers(row, step, 1)[0] * self.config.views) for row in rows]
        self._open()
        assert self._tokens is not None and self._known is not None
        new = [(row, view) for row, view in dict.fromkeys(zip(rows, which, strict=True)) if not self._known[row, view]]
        for start in range(0, len(new), 32):
            part = new[start : start + 32]
            seen = self._look([self._crop(row, view) for row, view in part]).half().numpy()
            for (row, view), tokens in zip(part, seen, strict=True):
                self._tokens[row, view] = tokens
                self._known[row, view] = 1
        found = np.stack([self._tokens[row, view] for row, view in zip(rows, which, strict=True)])
        return torch.from_numpy(found).float()

    def _look(self, crops: Sequence[Tensor]) -> Float[Tensor, "B N D"]:
        device = next(self.visual.backbone.parameters()).device
        shift, scale = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        pictures = (torch.stack(list(crops)).float() / 255 - shift) / scale
        return self.visual.look(pictures.to(device)).cpu()

    def _numbers(self, row: int, key: int, count: int) -> np.ndarray:
        name = int.from_bytes(hashlib.sha256(self.items[row].path.name.encode()).digest()[:8], "little")
        return np.random.default_rng([self.config.seed, name, key, count]).random(count)

    def _crop(self, row: int, key: int) -> Tensor:
        """A random square view, as torchvision's RandomResizedCrop draws it; the middle where ten tries do not fit."""
        with Image.open(self.items[row].path) as image:
            picture = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)
        height, width = picture.shape[-2:]
        numbers = self._numbers(row, key, 41)
        side = min(height, width)
        top, left, h, w = (height - side) // 2, (width - side) // 2, side, side
        low, high = self.config.crop_scale
        for area, shape, down, right in numbers[:40].reshape(10, 4):
            wanted = height * width * (low + area * (high - low))
            ratio = np.exp(np.log(RATIO[0]) + shape * (np.log(RATIO[1]) - np.log(RATIO[0])))
            wide, tall = round(float(np.sqrt(wanted * ratio))), round(float(np.sqrt(wanted / ratio)))
            if 0 < wide <= width and 0 < tall <= height:
                top, left, h, w = int(down * (height - tall + 1)), int(right * (width - wide + 1)), tall, wide
                break
        top_, left_, h_, w_ = (np.array([edge]) for edge in (top, left, h, w))
        boxes = Boxes(top_, left_, h_, w_, flip=np.array([numbers[40] < self.config.flip]))
        return cut_by_kernel([picture], boxes, self.config.image_size)[0]

    def _open(self) -> None:
        """The kept tokens, made if they are not there. Raises ValueError for those of other images or settings."""
        if self._tokens is not None:
            return
        count = len(self._look([self._crop(0, 0)])[0])
        shape = (len(self.items), self.config.views, count, self.visual.backbone.embed_dim)
        told = {
            "shape": list(shape),
            "images": hashlib.sha256("\n".join(item.path.name for item in self.items).encode()).hexdigest(),
            "settings": [self.config.seed, self.config.image_size, *self.config.crop_scale, self.config.flip],
            "backbone": self.config.backbone,
        }
        record = self.folder / "seen.json"
        if record.exists() and json.loads(record.read_text()) != told:
            raise ValueError(f"{self.folder} keeps what another run saw; delete it, or use another folder")
        files = ((self.folder / "tokens.f16", np.float16, shape), (self.folder / "known.u8", np.uint8, shape[:2]))
        if not record.exists() and distributed.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            for path, kind, size in files:
                np.memmap(path, kind, "w+", shape=size).flush()
            record.write_text(json.dumps(told))
        distributed.barrier()  # the others open what the main process has made
        self._tokens, self._known = (np.memmap(path, kind, "r+", shape=size) for path, kind, size in files)


def draw(items: Sequence[Captioned], config: TextConfig, step: int) -> tuple[list[int], list[int]]:
    """Images of a step, each at most once in a pass over all, and which of its captions each goes with."""
    count, batch = len(items), config.batch_size
    if batch > count:
        raise ValueError(f"a batch of {batch} needs as many images, there are {count}; lower batch_size")
    per_pass = count // batch
    order = np.random.default_rng([config.seed, step // per_pass]).permutation(count)
    rows = order[(step % per_pass) * batch : (step % per_pass + 1) * batch].tolist()
    chances = np.random.default_rng([config.seed, step, 1]).random(batch)
    return rows, [int(chance * len(items[row].captions)) for row, chance in zip(rows, chances, strict=True)]
