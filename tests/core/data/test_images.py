import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from core.data import images
from core.data.images import ORIENTATION, BrokenImage, decode, to_rgb


def ramp(height: int = 12, width: int = 20) -> np.ndarray:
    """A picture in which every place looks different."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 20, columns * 12, (rows + columns) * 7], axis=-1).astype(np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x)),  # stored turned left; shown it is turned right
        (7, lambda x: x[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda x: np.rot90(x, -1)),
    ],
)
def test_pictures_stand_upright(orientation, undo):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo(ramp())))
    np.testing.assert_array_equal(np.asarray(decode(encoded(stored, exif=exif), "x.png")), ramp())


def test_an_unknown_orientation_leaves_the_picture_alone():
    exif = Image.Exif()
    exif[ORIENTATION] = 0
    np.testing.assert_array_equal(np.asarray(decode(encoded(Image.fromarray(ramp()), exif=exif), "x")), ramp())


def test_gray_becomes_three_equal_channels():
    gray = ramp()[..., 0]
    out = np.asarray(decode(encoded(Image.fromarray(gray)), "x.png"))
    np.testing.assert_array_equal(out, np.repeat(gray[..., None], 3, axis=-1))


def test_16_bits_are_scaled_and_not_cut_off():
    deep = (np.arange(0, 65536, 257, dtype=np.uint32)[:256].reshape(16, 16)).astype(np.uint16)
    out = np.asarray(decode(encoded(Image.fromarray(deep)), "x.png"))
    np.testing.assert_array_equal(out[..., 0], np.arange(256).reshape(16, 16))


def test_palettes_are_looked_up_and_transparency_is_dropped():
    picture = Image.fromarray(ramp()).quantize(16)
    expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode(encoded(picture, transparency=bytes([0] * 16)), "x.png")), expected)
    with_alpha = np.dstack([ramp(), np.zeros(ramp().shape[:2], np.uint8)])
    np.testing.assert_array_equal(np.asarray(decode(encoded(Image.fromarray(with_alpha)), "x.png")), ramp())


def test_cmyk_is_converted():
    picture = Image.fromarray(ramp()).convert("CMYK")
    out = decode(encoded(picture, "TIFF"), "x.tif")
    np.testing.assert_array_equal(np.asarray(out), np.asarray(picture.convert("RGB")))


def test_floating_point_has_no_known_range():
    with pytest.raises(BrokenImage, match=r"x\.tif: ValueError: a floating-point picture"):
        decode(encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "x.tif")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_what_is_cut_off_is_broken(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(BrokenImage, match=r"^a/b\.jpg: "):
        decode(data[: len(data) // 2], "a/b.jpg")


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\xff\xd8\xff" + bytes(50), b"\x89PNG\r\n\x1a\n" + bytes(60)])
def test_what_is_no_picture_is_broken(data):
    with pytest.raises(BrokenImage):
        decode(data, "x")


def test_pictures_that_would_fill_memory_are_not_decoded(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 239)
    with pytest.raises(BrokenImage, match="20x12 px; at most 239 pixels"):
        decode(encoded(Image.fromarray(ramp())), "x.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 240)
    assert decode(encoded(Image.fromarray(ramp())), "x.png").size == (20, 12)


def test_a_bomb_of_pillows_own_measure_is_broken():
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)  # 1.2 GB, were it decoded
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    bomb += struct.pack(">I", 10) + b"IDAT" + bytes(14)
    with pytest.raises(BrokenImage, match="DecompressionBombError"):
        decode(bomb, "bomb.png")


def test_rgb_is_handed_through():
    picture = Image.fromarray(ramp())
    assert to_rgb(picture) is picture


def test_broken_images_come_out_of_a_worker():
    error = pickle.loads(pickle.dumps(BrokenImage("a.jpg", "cut off")))
    assert (error.name, error.reason, str(error)) == ("a.jpg", "cut off", "a.jpg: cut off")
