"""A picture out of bytes, as training sees it: upright, RGB, 8 bits a channel."""

import io
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif", ".avif")
MAX_PIXELS = 120_000_000  # 360 MB decoded; a worker holds a whole batch of originals
ORIENTATION = 0x0112  # EXIF


class BrokenImage(ValueError):
    """An image that cannot be read, with its name and the reason."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that it survives the way out of a worker
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@runtime_checkable
class Source(Protocol):
    """Images by number. Copies of one in several processes read independently of each other."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Image.Image:
        """The image, RGB. Raises BrokenImage, which names it."""
        ...

    def name(self, index: int) -> str:
        """Where the image lies, for people."""
        ...

    def label(self, index: int) -> str | None:
        """The class of the image, where the source knows it."""
        ...


def decode(data: bytes, name: str) -> Image.Image:
    """The picture in a file's bytes. Raises BrokenImage for what is no picture, is cut off, or is too large."""
    try:
        picture = Image.open(io.BytesIO(data))
        if picture.width * picture.height > MAX_PIXELS:  # before anything is decoded
            raise BrokenImage(name, f"{picture.width}x{picture.height} px; at most {MAX_PIXELS} pixels are read")
        picture.load()
        return to_rgb(picture)
    except BrokenImage:
        raise
    except MemoryError:
        raise
    except UnidentifiedImageError as error:  # its own text holds an address
        raise BrokenImage(name, "no picture in a known format") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error and more
        raise BrokenImage(name, f"{type(error).__name__}: {error}") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Upright and RGB. Transparency is dropped and 16 bits are scaled to 8. Raises ValueError for floating point."""
    if picture.getexif().get(ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode == "RGB":
        return picture
    if picture.mode == "F":
        raise ValueError("a floating-point picture, whose range is unknown; store it with 8 or 16 bits")
    if picture.mode.startswith("I"):  # Pillow's own conversion cuts off everything above 255
        deep = np.asarray(picture).astype(np.int64)
        return Image.fromarray((deep.clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")
