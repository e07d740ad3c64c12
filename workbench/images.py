"""Opens pictures safely: whatever people bring becomes upright 8-bit sRGB, or one sentence that says why not.

Sizes are checked in the header, before anything is decoded; only the listed formats are tried, none of which
calls an outside program; addresses are refused, so nothing is ever fetched. Whatever is changed on the way
(colours converted, transparency filled, frames left out) is written down in `Photo.notes`.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageCms

FORMATS = {  # name in Pillow -> suffixes; Pillow opens a phone's two-picture JPEG (MPO) under JPEG
    "JPEG": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "PPM": (".ppm", ".pgm", ".pbm"),
}
FORMAT_NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or PPM"
SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes}
MAX_PIXELS = 89_000_000  # just below the size at which Pillow itself begins to warn; 267 MB as RGB
MAX_SIDE = 30_000
MAX_STREAM_BYTES = 600_000_000  # 16-bit RGB of MAX_PIXELS without compression
SIGNATURES = {  # first bytes by which a damaged file still says what it was
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"RIFF": "WebP",
}

Source = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | np.ndarray


class BadImage(ValueError):
    """A picture that cannot be used; the message is one sentence for the person who brought it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name


@dataclass(frozen=True, eq=False)  # two photographs are compared by their digest
class Photo:
    """A picture as a person sees it, with what the geometry needs to know about its file."""

    pixels: UInt8[np.ndarray, "H W 3"]  # upright sRGB, read-only
    stored_width: int  # pixels of the file, before the orientation is applied
    stored_height: int
    orientation: int = 1  # EXIF tag 0x0112, 1 to 8
    name: str = "picture"
    notes: tuple[str, ...] = ()  # what was changed on the way, one sentence each

    @property
    def size(self) -> tuple[int, int]:
        """Upright width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits that name size and pixels: equal pictures from different files share them."""
        content = hashlib.sha256(f"{self.pixels.shape}".encode())
        content.update(self.pixels.data)
        return content.hexdigest()[:16]


def open_image(source: Source, *, name: str | None = None) -> Photo:
    """The photo in a file, an open binary file, bytes, a Pillow image or an array.

    Arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, uint16, bool or floats from 0 to 1. Of a
    moving picture the first frame is taken. Raises BadImage with one sentence for everything that is not a
    usable picture: missing, empty, cut short, of an unknown format, too large, or an internet address.
    """
    name = name or _name_of(source)
    if isinstance(source, np.ndarray):
        return _photo_from_array(source, name)
    if isinstance(source, Image.Image):
        return _decode(source, name)
    if isinstance(source, str | os.PathLike):
        with _open_file(os.fspath(source), name) as file:
            return _open_stream(file, name)
    if isinstance(source, bytes):
        return _open_stream(io.BytesIO(source), name)
    if hasattr(source, "read"):
        return _open_stream(_seekable(source, name), name)
    raise BadImage(name, f"a {type(source).__name__} is not a picture; give a file, a Pillow image or an array.")


def load_folder(folder: str | os.PathLike[str]) -> Iterator[Photo | BadImage]:
    """The pictures of a folder in the order of their names; a BadImage in place of each that cannot be used.

    Files are chosen by suffix, hidden ones and sub-folders are left out. Raises BadImage when there is no
    such folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise BadImage(path.name, "there is no folder of this name.")
    return _each(sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != "."))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A photograph that comes with the project, and whom to thank for it."""

    path: Path
    title: str
    width: int
    height: int
    licence: str
    licence_url: str
    author: str
    source: str
    original: str  # name of the file at the source
    changes: str

    @property
    def credit(self) -> str:
        """The line to show beside the picture."""
        return f"{self.title}. {self.author}, {self.licence} ({self.source}; changes: {self.changes})"


def list_samples() -> list[Sample]:
    """The photographs that come with the project, in the order in which they are offered."""
    folder = Path(__file__).parent / "samples"
    head, *rows = (folder / "credits.tsv").read_text(encoding="utf-8").splitlines()
    samples = []
    for row in rows:
        record = dict(zip(head.split("\t"), row.split("\t"), strict=True))
        size = {side: int(record.pop(side)) for side in ("width", "height")}
        samples.append(Sample(path=folder / record.pop("file"), **size, **record))  # type: ignore[arg-type]
    return samples


# Opening


def _name_of(source: Source) -> str:
    if isinstance(source, str | os.PathLike):
        return Path(os.fspath(source)).name or "picture"
    given = getattr(source, "filename", None) or getattr(source, "name", None)
    return Path(given).name if isinstance(given, str) and given else "picture"


def _each(files: list[Path]) -> Iterator[Photo | BadImage]:
    for file in files:
        try:
            yield open_image(file)
        except BadImage as bad:
            yield bad


def _open_file(path: str, name: str) -> IO[bytes]:
    if re.match(r"\s*([a-z][a-z0-9+.-]+://|data:)", path, re.IGNORECASE):
        raise BadImage("address", "pictures are not fetched from the internet; download it first.")
    try:
        if not os.path.exists(path):
            raise BadImage(name, "there is no file of this name.")
        if not os.path.isfile(path):  # a pipe or a device would never end
            raise BadImage(name, "this is not a file; choose a picture inside it.")
        return open(path, "rb")
    except (OSError, ValueError) as error:  # no permission, or a zero byte in the name
        if isinstance(error, BadImage):
            raise
        raise BadImage(name, f"the file cannot be opened ({getattr(error, 'strerror', None) or error}).") from error


def _seekable(source: IO[bytes], name: str) -> IO[bytes]:
    """The rest of a stream in memory: sockets and uploads cannot seek, and decoders must."""
    content = source.read(MAX_STREAM_BYTES + 1)
    if not isinstance(content, bytes):
        raise BadImage(name, "the file is open as text; open it in binary mode.")
    if len(content) > MAX_STREAM_BYTES:
        raise BadImage(name, f"the file is larger than {MAX_STREAM_BYTES // 1_000_000} MB; save it smaller.")
    return io.BytesIO(content)


def _open_stream(file: IO[bytes], name: str) -> Photo:
    start = file.read(32)
    file.seek(0)
    if not start:
        raise BadImage(name, "the file is empty.")
    Image.init()  # registers the formats that were installed with this Pillow
    try:
        image = Image.open(file, formats=[form for form in FORMATS if form in Image.OPEN])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(name, f"the picture is too large; {_limits()}") from error
    except Exception as error:  # a damaged header can raise anything
        raise BadImage(name, _why_unreadable(start)) from error
    with image:
        return _decode(image, name)


def _why_unreadable(start: bytes) -> str:
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"mif1", b"msf1"):
        return "HEIC photographs cannot be read; export it as JPEG."
    for signature, kind in SIGNATURES.items():
        if start.startswith(signature):
            return f"it begins like a {kind} file but cannot be read: damaged or cut short; copy it again."
    return f"this is not a picture in a known format; save it as {FORMAT_NAMES}."


def _limits() -> str:
    return (
        f"up to {MAX_PIXELS // 1_000_000} megapixels and {MAX_SIDE} pixels a side can be opened; "
        "shrink or crop it first."
    )


def _check_size(name: str, width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise BadImage(name, f"the picture is empty ({width}x{height} pixels).")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise BadImage(name, f"{width}x{height} pixels are too many; {_limits()}")


# From a Pillow image to upright sRGB


def _decode(image: Image.Image, name: str) -> Photo:
    _check_size(name, *image.size)
    notes: list[str] = []
    try:
        _note_frames(image, notes)
        _note_depth(image, notes)
        profile = image.info.get("icc_profile")
        # Pillow turns TIFF files upright while it loads them, and no others; afterwards their tag is gone.
        asked = _orientation(image, notes) if image.format == "TIFF" else None
        image.load()
        orientation = asked or _orientation(image, notes)
        turned = asked not in (None, 1) and _orientation(image, []) == 1
        rgb = _to_srgb(_to_plain(image, name, notes), profile, notes)
    except BadImage:
        raise
    except Exception as error:  # decoders of damaged files raise anything from SyntaxError to struct.error
        raise BadImage(name, "the picture is damaged or cut short; copy or save it again.") from error
    pixels = np.asarray(rgb)
    return _photo(pixels if turned else _upright(pixels, orientation), orientation, name, notes)


def _photo(upright: UInt8[np.ndarray, "H W 3"], orientation: int, name: str, notes: list[str]) -> Photo:
    pixels = np.ascontiguousarray(upright)  # never the caller's memory: Pillow copied it
    pixels.flags.writeable = False
    height, width = pixels.shape[:2]
    stored = (height, width) if orientation >= 5 else (width, height)
    return Photo(pixels, *stored, orientation=orientation, name=name, notes=tuple(notes))


def _note_frames(image: Image.Image, notes: list[str]) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.tell() == 0:
        notes.append(f"The file holds {frames} pictures; the first is used.")


def _note_depth(image: Image.Image, notes: list[str]) -> None:
    """Pillow keeps the upper 8 of 16 bits of colour files by itself; only the decoder's name tells."""
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    if image.mode in ("RGB", "RGBA", "LA", "CMYK") and any("16" in str(argument) for argument in arguments):
        notes.append("16 bits per channel were reduced to 8.")


def _orientation(image: Image.Image, notes: list[str]) -> int:
    try:
        code = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF beside a sound picture
        notes.append("The EXIF data is damaged; the picture is shown as it is stored.")
        return 1
    if code in range(1, 9):
        return int(code)
    if code:  # 0 is what cameras write when they do not know
        notes.append(f"The EXIF orientation {code!r} is not defined; the picture is shown as it is stored.")
    return 1


def _upright(stored: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "H W 3"]:
    """The stored pixels turned as EXIF 2.32 (tag Orientation) asks."""
    if orientation >= 5:
        stored = stored.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        stored = stored[:, ::-1]
    if orientation in (3, 4, 7, 8):
        stored = stored[::-1]
    return stored


def _to_plain(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    """The picture with 8 bits a channel and no transparency, in mode L, RGB, CMYK or LAB."""
    if image.mode.startswith("I"):
        return Image.fromarray(_narrow_integers(np.asarray(image), name, notes))
    if image.mode == "F":
        return Image.fromarray(_narrow_floats(np.asarray(image), name, notes))
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        if layers.getchannel("A").getextrema()[0] < 255:  # type: ignore[operator]
            notes.append("Transparent parts are shown on white.")
        white = Image.new("RGBA", layers.size, "white")
        return Image.alpha_composite(white, layers).convert("RGB")
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _narrow_integers(values: Shaped[np.ndarray, "H W"], name: str, notes: list[str]) -> UInt8[np.ndarray, "H W"]:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise BadImage(name, f"its integers run from {low} to {high}, and only 0 to 65535 can be shown.")
    notes.append("16 bits per channel were reduced to 8.")
    return _from_16_bits(values)


def _from_16_bits(values: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 257 is 255, rounded to nearest


def _narrow_floats(values: Shaped[np.ndarray, "H W"], name: str, notes: list[str]) -> UInt8[np.ndarray, "H W"]:
    """Floats in files have no agreed range, so the finite ones are stretched from black to white."""
    finite = np.isfinite(values)
    if not finite.any():
        raise BadImage(name, "it holds no finite number.")
    low, high = float(values[finite].min()), float(values[finite].max())
    notes.append(f"Floating-point values from {low:.4g} to {high:.4g} were stretched to black and white.")
    if not finite.all():
        notes.append(f"{np.count_nonzero(~finite)} pixels without a finite value are shown black.")
    span = np.float64(high) - low or 1.0
    scaled = (np.where(finite, values, low).astype(np.float64) - low) / span * 255
    return np.round(scaled).astype(np.uint8)


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """The picture in sRGB, by its embedded profile where it has one that says something else."""
    source = _embedded_profile(image, profile, notes)
    if source is None and image.mode == "LAB":
        source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        notes.append("Lab colours were converted to sRGB.")
    if source is None:
        if image.mode == "CMYK":
            notes.append("CMYK colours were converted to RGB without a colour profile.")
        return image.convert("RGB")
    srgb = ImageCms.createProfile("sRGB")
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    converted = ImageCms.profileToProfile(image, source, srgb, renderingIntent=intent, outputMode="RGB")
    assert converted is not None  # None only for conversion in place
    return converted


def _embedded_profile(image: Image.Image, profile: bytes | None, notes: list[str]) -> ImageCms.ImageCmsProfile | None:
    if not profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        title = ImageCms.getProfileDescription(source).strip()
        space = source.profile.xcolor_space.strip()
    except (OSError, TypeError, ImageCms.PyCMSError):
        notes.append("The embedded colour profile is damaged and was left out.")
        return None
    if {"GRAY": "L", "Lab": "LAB"}.get(space, space) != image.mode:
        notes.append(f"The embedded colour profile is for {space}, not for this picture, and was left out.")
        return None
    if "srgb" in title.lower():
        return None
    notes.append(f"Colours were converted from {title or 'the embedded profile'} to sRGB.")
    return source


# Arrays


def _photo_from_array(values: np.ndarray, name: str) -> Photo:
    shape = tuple(values.shape)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise BadImage(name, f"an array of shape {shape} is not a picture; expected (H, W) or (H, W, 1, 3 or 4).")
    _check_size(name, shape[1], shape[0])
    notes: list[str] = []
    narrow = _narrow_array(values, name, notes)
    if narrow.ndim == 3 and narrow.shape[2] == 1:
        narrow = narrow[:, :, 0]
    rgb = _to_plain(Image.fromarray(narrow), name, notes).convert("RGB")
    return _photo(np.asarray(rgb), 1, name, notes)


def _narrow_array(values: np.ndarray, name: str, notes: list[str]) -> UInt8[np.ndarray, "..."]:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint16:
        notes.append("16 bits per channel were reduced to 8.")
        return _from_16_bits(values)
    if np.issubdtype(values.dtype, np.floating):
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise BadImage(name, "an array of floats must lie between 0 and 1; scale it or give uint8.")
        return np.round(values.astype(np.float64) * 255).astype(np.uint8)
    raise BadImage(name, f"an array of {values.dtype} is not a picture; give uint8, uint16 or floats from 0 to 1.")
