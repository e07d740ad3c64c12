"""A clip: some frames of a video with their features, ready to follow things in; and what is taken home from it.

Frames come one at a time: of each its features stay, in half precision, and a small picture to look at.
"""

import io
import itertools
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, UInt8
from PIL import Image
from torch import Tensor

from core.dense.color import ColorBasis, fit_basis, to_rgb
from core.dense.extract import Progress, extract
from core.dense.follow import Followed, Follower, Rules, grown
from core.dense.geometry import Cell, Geometry, grid_box
from core.dense.inputs import picture_geometry
from core.models import Backbone
from workbench.images import Sample
from workbench.video import BadVideo, Video, mask_picture, open_video, write_video

SHOWN = 640  # pixels of the long side of the pictures that are kept
MOST = 60  # frames
PALE = 0.55  # how much of an object's colour lies over it in an exported video
# Okabe and Ito's, which colour-blind people tell apart; the darkest first, for most photographs are bright.
COLORS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233), (240, 228, 66))
OBJECTS = len(COLORS)


@dataclass(frozen=True, eq=False, kw_only=True)
class Clip:
    """Frames, the grid of patches over them, and what a backbone says of each, in half precision."""

    name: str
    rate: float  # frames a second, of those that were taken
    geometry: Geometry
    pictures: list[bytes]  # JPEG, long side at most SHOWN
    features: Float[Tensor, "T H W D"] | None = None  # None: nobody has looked yet
    notes: tuple[str, ...] = ()  # what was left out, one sentence each

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def seen(self) -> Float[Tensor, "T H W D"]:
        """The features; ValueError where there are none yet."""
        if self.features is None:
            raise ValueError("this clip was opened without features; open it with open_clip(source, backbone)")
        return self.features

    @cached_property
    def follower(self) -> Follower:
        return Follower(self.seen)

    @cached_property
    def basis(self) -> ColorBasis:
        """The colours of the first frame, for all of them: a part keeps its colour while it moves."""
        return fit_basis(self.seen[0].float())

    @cached_property
    def colors(self) -> UInt8[np.ndarray, "T H W 3"]:
        """Every patch in the colours of `basis`."""
        return np.stack([to_rgb(self.basis, frame.float()).numpy() for frame in self.seen])

    def picture(self, frame: int) -> UInt8[np.ndarray, "h w 3"]:
        return np.asarray(Image.open(io.BytesIO(self.pictures[frame])).convert("RGB"))


def open_clip(
    source: str | Path | Video,
    backbone: Backbone,
    *,
    size: int = 448,
    every: int = 1,
    most: int = MOST,
    layer: int = -1,
    look: bool = True,
    progress: Progress | None = None,
) -> Clip:
    """The clip of a video file or a folder of pictures: at most `most` frames, each `every`-th, at their own aspect.

    size: long side of the model input in pixels. look: False leaves the features out, which take nearly all of the
    time. A video that breaks off is a shorter clip, and `notes` say so. progress is told after every frame, and cancels
    by raising. Raises BadVideo, with one sentence, for what is no video;
    ValueError for a size that the backbone does not take.
    """
    video = source if isinstance(source, Video) else open_video(source)
    pictures: list[bytes] = []
    features: list[Tensor] = []
    notes: list[str] = []
    geometry: Geometry | None = None
    frames = video.frames(every=every, most=most + 1)
    for number in itertools.count():
        try:
            frame = next(frames, None)
        except BadVideo as bad:
            if not pictures:
                raise
            notes.append(f"{bad} The clip ends there.")
            break
        if frame is None:
            break
        if number == most:
            notes.append(f"The first {most} frames are used, of a longer video.")
            break
        geometry = geometry or picture_geometry(backbone, frame, size=size, layer=layer)
        if look:
            features.append(extract(backbone, frame, geometry=geometry, layer=layer, tile=0).patches.half())
        pictures.append(_small(frame))
        if progress:
            progress(number + 1, most, "frames")
    if geometry is None:
        raise BadVideo(video.name, "it holds no frame that can be read.")
    return Clip(
        name=video.name, rate=video.rate / every, geometry=geometry, pictures=pictures,
        features=torch.stack(features) if look else None, notes=tuple(notes),
    )  # fmt: skip


def _small(frame: UInt8[np.ndarray, "h w 3"]) -> bytes:
    picture = Image.fromarray(frame)
    picture.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=82)
    return file.getvalue()


def list_clips() -> list[Sample]:
    """The videos that come with the project, with their credits."""
    folder = Path(__file__).parent / "videos"
    head, *rows = (folder / "credits.tsv").read_text(encoding="utf-8").splitlines()
    clips = []
    for row in rows:
        record: dict[str, Any] = dict(zip(head.split("\t"), row.split("\t"), strict=True))
        for side in ("width", "height"):
            record[side] = int(record[side])
        clips.append(Sample(path=folder / record.pop("file"), **record))
    return clips


def fine_mask(labels: Float[Tensor, "H W K"], geometry: Geometry, width: int, height: int) -> UInt8[np.ndarray, "h w"]:
    """Soft labels as a mask of a whole frame: enlarged bilinearly, then the likeliest (paper, appendix D.5)."""
    left, top, right, bottom = grid_box(geometry)
    scale_x, scale_y = width / geometry.width, height / geometry.height
    wide, high = max(1, round((right - left) * scale_x)), max(1, round((bottom - top) * scale_y))
    large = F.interpolate(labels.permute(2, 0, 1)[None], (high, wide), mode="bilinear", align_corners=False)[0]
    found = large.argmax(dim=0).to(torch.uint8).numpy()
    x, y = round(-left * scale_x), round(-top * scale_y)
    return np.ascontiguousarray(found[y : y + height, x : x + width])


def save_masks(clip: Clip, found: Followed, path: str | Path) -> Path:
    """A zip with a PNG for every frame, 00000.png on: numbers of objects, as DAVIS keeps them."""
    height, width = clip.picture(0).shape[:2]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # PNGs are packed already
        for frame, labels in enumerate(found.labels):
            file = io.BytesIO()
            mask_picture(fine_mask(labels, clip.geometry, width, height), COLORS).save(file, "PNG")
            archive.writestr(f"{frame:05}.png", file.getvalue())
    return Path(path)


def save_video(clip: Clip, found: Followed, path: str | Path) -> Path:
    """An MP4 of the clip with the objects in their colours."""
    return write_video(path, painted(clip, found), clip.rate)


def painted(clip: Clip, found: Followed) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Every frame with the objects in their colours."""
    table = np.array([(0, 0, 0), *COLORS], np.float32)
    for frame, labels in enumerate(found.labels):
        picture = clip.picture(frame)
        mask = fine_mask(labels, clip.geometry, picture.shape[1], picture.shape[0])
        strength = PALE * (mask > 0)[..., None]
        yield (picture * (1 - strength) + table[mask] * strength).astype(np.uint8)


def written(mask: Integer[Tensor, "H W"]) -> str:
    """A mask on the grid of patches as the digits of its objects, row after row: how the view keeps marks."""
    return "".join(map(str, mask.flatten().tolist()))


def read(digits: str, rows: int, cols: int) -> Integer[Tensor, "H W"]:
    """The mask that `written` wrote; ValueError for one of another grid, or with an object that there cannot be."""
    if len(digits) != rows * cols or not digits.isascii() or not digits.isdigit() or max(digits) > str(OBJECTS):
        raise ValueError(f"a mark is {rows * cols} digits from 0 to {OBJECTS}, one for each of {rows}x{cols} patches")
    return torch.tensor([int(digit) for digit in digits]).unflatten(0, (rows, cols))


# What a view of a clip is told, in notebooks, in the app and in saved files: plain JSON and bytes.


def clip_state(clip: Clip) -> dict[str, Any]:
    """What a view has to know of a clip; its pictures and colours are in `clip_blobs`."""
    return {
        "name": clip.name,
        "rate": clip.rate,
        "geometry": clip.geometry.to_dict(),
        "ends": np.cumsum([len(picture) for picture in clip.pictures]).tolist(),  # of each picture in "pictures"
        "looked": clip.features is not None,
        "notes": list(clip.notes),
    }


def clip_blobs(clip: Clip) -> dict[str, bytes]:
    """The frames as JPEG, one after the other, and three bytes of colour for every patch, if anybody has looked."""
    colors = {"colors": clip.colors.tobytes()} if clip.features is not None else {}
    return {"pictures": b"".join(clip.pictures)} | colors


def result_state(found: Followed | None, version: int) -> dict[str, Any]:
    """What a view has to know of what was followed; `version` tells it to fetch the rest anew."""
    if found is None:
        return {}
    return {
        "version": version,
        "first": min(found.marks),
        "labels": found.labels.shape[-1],
        "topk": found.rules.topk,
        "marks": {str(frame): written(mask) for frame, mask in found.marks.items()},
        "rules": rules_state(found.rules),
    }


def result_blobs(found: Followed | None) -> dict[str, bytes]:
    """Labels as bytes, 255 for certain, and the votes: who (int32, -1 for nobody) and how much (uint16 of 65535)."""
    if found is None:
        return {}
    return {
        "labels": (found.labels * 255).round().to(torch.uint8).numpy().tobytes(),
        "voters": found.voters.numpy().astype("<i4").tobytes(),
        "weights": (found.weights * 65535).round().numpy().astype("<u2").tobytes(),
    }


def rules_state(rules: Rules) -> dict[str, Any]:
    return asdict(rules)


def answer(
    clip: Clip,
    former: Followed | None,
    marks: Mapping[str, str],
    rules: Mapping[str, Any],
    progress: Progress | None = None,
) -> Followed:
    """What a view asks for: its marks carried on, from the first change; ValueError with a sentence for people."""
    rows, cols = clip.geometry.rows, clip.geometry.cols
    masks = {int(frame): read(digits, rows, cols) for frame, digits in marks.items()}
    known = {name: rules[name] for name in ("context", "radius", "topk", "temperature")}
    chosen = Rules(
        context=int(known["context"]), topk=int(known["topk"]), temperature=float(known["temperature"]),
        radius=None if known["radius"] is None else float(known["radius"]),
    )  # fmt: skip
    return clip.follower.follow(masks, chosen, former=former, progress=progress)


def grown_mark(clip: Clip, frame: int, cell: Cell, threshold: float) -> str:
    """The patches that hang together with one and resemble it, as ones among zeros."""
    if not 0 <= frame < len(clip):
        raise ValueError(f"there is no frame {frame}; the clip has 0 to {len(clip) - 1}")
    return written(grown(clip.seen[frame].float(), cell, threshold).long())
