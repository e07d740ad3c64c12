"""Whatever people bring becomes upright sRGB or one sentence; every file here is made in the test."""

import csv
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from core.dense.geometry import plan, stored_to_upright
from workbench.images import (
    MAX_PIXELS,
    MAX_SIDE,
    BadImage,
    Photo,
    list_samples,
    load_folder,
    open_image,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def marked(width: int = 7, height: int = 4) -> np.ndarray:
    """A picture in which every pixel is different: red counts columns, green counts rows."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width) * 30
    pixels[..., 1] = np.arange(height)[:, None] * 50
    pixels[..., 2] = 77
    return pixels


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def said(bad: BadImage) -> str:
    """The message, after checking that it is one sentence without a trace of the machinery."""
    text = str(bad)
    assert text.endswith(".") and "\n" not in text and "Error" not in text and "Traceback" not in text
    return text


# EXIF orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg"])
def test_every_orientation_is_turned_upright_as_pillow_does(tmp_path, orientation, suffix):
    pixels = np.kron(marked(), np.ones((16, 16, 1), np.uint8)) if suffix == "jpg" else marked()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    file = tmp_path / f"turned.{suffix}"
    Image.fromarray(pixels).save(file, exif=exif, **options)

    photo = open_image(file)

    assert photo.orientation == orientation
    assert (photo.stored_width, photo.stored_height) == (pixels.shape[1], pixels.shape[0])
    reference = Image.fromarray(pixels)
    reference.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(reference))
    assert photo.size == (upright.shape[1], upright.shape[0])
    np.testing.assert_allclose(photo.pixels.astype(int), upright, atol=3 if suffix == "jpg" else 0)
    assert photo.notes == ()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_stored_pixel_appears_where_the_geometry_says(tmp_path, orientation):
    stored = marked()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    photo = open_image(tmp_path / "turned.png")
    geometry = plan(photo.stored_width, photo.stored_height, 14, size=14, orientation=photo.orientation)
    assert photo.size == (geometry.width, geometry.height)
    for y in range(stored.shape[0]):
        for x in range(stored.shape[1]):
            across, down = stored_to_upright(geometry, x + 0.5, y + 0.5)
            np.testing.assert_array_equal(photo.pixels[int(down), int(across)], stored[y, x])


def test_orientation_survives_a_pillow_image_in_between(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(marked()).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        photo = open_image(image)
    assert photo.orientation == 6
    assert photo.digest == open_image(tmp_path / "turned.png").digest


@pytest.mark.parametrize(("code", "noted"), [(0, False), (9, True), (77, True)])
def test_undefined_orientations_leave_the_picture_as_stored(tmp_path, code, noted):
    exif = Image.Exif()
    exif[0x0112] = code
    Image.fromarray(marked()).save(tmp_path / "odd.png", exif=exif)
    photo = open_image(tmp_path / "odd.png")
    np.testing.assert_array_equal(photo.pixels, marked())
    assert photo.orientation == 1
    assert bool(photo.notes) == noted


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow grumbles about damage, as it may
def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    Image.fromarray(marked(64, 64) // 2).save(tmp_path / "odd.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert open_image(tmp_path / "odd.jpg").size == (64, 64)


# What a photo is


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tiff", "webp", "gif", "jpg", "avif"])
def test_all_ways_in_give_the_same_photo(tmp_path, suffix):
    image = Image.fromarray(noise(40, 30))
    file = tmp_path / f"one.{suffix}"
    image.save(file)
    expected = np.asarray(Image.open(file).convert("RGB"))
    with file.open("rb") as stream, Image.open(file) as pillow:
        photos = [open_image(way) for way in (file, str(file), file.read_bytes(), stream, pillow)]
    for photo in photos:
        np.testing.assert_array_equal(photo.pixels, expected)
    assert {photo.digest for photo in photos} == {open_image(expected).digest}
    assert {photo.size for photo in photos} == {(40, 30)}
    assert photos[0].name == photos[3].name == file.name
    assert photos[2].name == "picture"


def test_digest_tells_content_and_shape_apart():
    black = np.zeros((4, 6, 3), np.uint8)
    other = black.copy()
    other[3, 5, 2] = 1
    pictures = [black, other, black.reshape(6, 4, 3)]
    digests = {open_image(pixels).digest for pixels in pictures}
    assert len(digests) == 3
    assert all(len(digest) == 16 for digest in digests)
    assert open_image(black.copy(), name="another name").digest == open_image(black).digest


@pytest.mark.parametrize("orientation", [1, 3])
def test_pixels_belong_to_the_photo_alone(tmp_path, orientation):
    pixels = marked()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels)
    image.getexif().update(exif)
    photos = [open_image(pixels), open_image(image)]
    before = [photo.pixels.copy() for photo in photos]
    pixels[:] = 0
    image.paste((0, 0, 0), (0, 0, *image.size))
    for photo, kept in zip(photos, before, strict=True):
        np.testing.assert_array_equal(photo.pixels, kept)
        assert photo.pixels.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            photo.pixels[0, 0, 0] = 1


def test_a_given_name_wins():
    assert open_image(marked(), name="street").name == "street"


# Colours and depths


def test_cmyk_is_converted_as_pillow_does_and_said(tmp_path):
    image = Image.new("CMYK", (32, 32), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    image.save(tmp_path / "print.jpg", quality=100)
    photo = open_image(tmp_path / "print.jpg")
    np.testing.assert_allclose(photo.pixels.astype(int), np.broadcast_to(RED, (32, 32, 3)), atol=3)
    assert "CMYK" in photo.notes[0]


def test_inverted_cmyk_of_adobe_programs_is_not_a_negative(tmp_path):
    """Adobe writes the complement and says so in its APP14 segment, which Pillow also writes."""
    Image.new("CMYK", (32, 32), (0, 0, 0, 0)).save(tmp_path / "paper.jpg")
    content = (tmp_path / "paper.jpg").read_bytes()
    assert b"Adobe" in content[:200]
    np.testing.assert_array_equal(open_image(tmp_path / "paper.jpg").pixels, 255)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled_by_the_range_of_its_type(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257], [32768, 65278, 65407, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    photo = open_image(tmp_path / f"deep.{suffix}")
    expected = np.round(values / 257).astype(np.uint8)
    assert expected.tolist() == [[0, 0, 1, 1], [128, 254, 255, 255]]
    for channel in range(3):
        np.testing.assert_array_equal(photo.pixels[..., channel], expected)
    assert photo.notes == ("16 bits per channel were reduced to 8.",)


@pytest.mark.parametrize("order", ["I;16B", "I;16"])
def test_16_bit_tiff_of_either_byte_order(tmp_path, order):
    values = np.array([[0, 0x0101, 0x8080, 0xFFFF]], np.uint16)
    Image.frombytes(order, (4, 1), values.astype(">u2" if order == "I;16B" else "<u2").tobytes()).save(
        tmp_path / "deep.tiff"
    )
    assert open_image(tmp_path / "deep.tiff").pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_16_bit_colour_keeps_its_colours(tmp_path):
    values = np.array([[[65535, 0, 32896], [257, 65535, 0]]], ">u2")
    (tmp_path / "deep.png").write_bytes(png(2, 1, 16, 2, b"\0" + values.tobytes()))
    photo = open_image(tmp_path / "deep.png")
    np.testing.assert_allclose(photo.pixels.astype(int), values / 257, atol=1)
    assert photo.notes == ("16 bits per channel were reduced to 8.",)


def test_8_bit_files_have_no_note_about_depth(tmp_path):
    for suffix in ("png", "tiff", "bmp", "jpg"):
        Image.fromarray(noise(16, 16)).save(tmp_path / f"plain.{suffix}")
        assert open_image(tmp_path / f"plain.{suffix}").notes == ()


def test_floats_are_stretched_and_the_range_is_said(tmp_path):
    values = np.array([[-2.0, 0.0, 2.0, np.nan]], np.float32)
    Image.fromarray(values).save(tmp_path / "field.tiff")
    photo = open_image(tmp_path / "field.tiff")
    assert photo.pixels[0, :, 1].tolist() == [0, 128, 255, 0]
    assert "from -2 to 2" in photo.notes[0]
    assert "1 pixels without a finite value" in photo.notes[1]


def test_floats_without_spread_are_black_not_a_division_by_zero(tmp_path):
    Image.fromarray(np.full((2, 2), 3.5, np.float32)).save(tmp_path / "flat.tiff")
    assert open_image(tmp_path / "flat.tiff").pixels.max() == 0


def test_floats_without_a_finite_value_are_refused(tmp_path):
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "void.tiff")
    with pytest.raises(BadImage, match="no finite number") as bad:
        open_image(tmp_path / "void.tiff")
    said(bad.value)


def test_32_bit_integers_beyond_16_bits_are_refused(tmp_path):
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "labels.tiff")
    with pytest.raises(BadImage, match="from 0 to 70000") as bad:
        open_image(tmp_path / "labels.tiff")
    said(bad.value)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_transparency_shows_white(tmp_path, mode):
    image = Image.new("RGBA", (2, 1))
    image.putdata([(0, 0, 0, 0), (0, 0, 0, 255)])
    if mode == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([*RED, 0, 0, 0])
        image.putdata([0, 1])
        image.info["transparency"] = 0
    elif mode == "PA":
        image = Image.frombytes("PA", (2, 1), bytes([0, 0, 0, 255]))  # index, alpha
        image.putpalette([0, 0, 0])
    elif mode == "LA":
        image = image.convert("LA")
    if mode == "PA":
        photo = open_image(image)  # no file format keeps it
    else:
        image.save(tmp_path / "glass.png")
        photo = open_image(tmp_path / "glass.png")
    assert photo.pixels.tolist() == [[list(WHITE), [0, 0, 0]]]
    assert photo.notes == ("Transparent parts are shown on white.",)


def test_half_transparent_colours_are_mixed_with_white(tmp_path):
    Image.new("RGBA", (1, 1), (255, 0, 0, 128)).save(tmp_path / "glass.png")
    np.testing.assert_allclose(open_image(tmp_path / "glass.png").pixels[0, 0], (255, 127, 127), atol=1)


def test_an_opaque_alpha_channel_is_not_worth_a_note(tmp_path):
    Image.fromarray(marked()).convert("RGBA").save(tmp_path / "solid.png")
    photo = open_image(tmp_path / "solid.png")
    np.testing.assert_array_equal(photo.pixels, marked())
    assert photo.notes == ()


def test_palettes_and_bits_show_their_colours(tmp_path):
    palette = Image.new("P", (3, 1))
    palette.putpalette([*RED, *GREEN, *BLUE])
    palette.putdata([2, 1, 0])
    palette.save(tmp_path / "palette.png")
    assert open_image(tmp_path / "palette.png").pixels.tolist() == [[list(BLUE), list(GREEN), list(RED)]]
    bits = Image.fromarray(np.array([[True, False]]))
    bits.save(tmp_path / "bits.png")
    assert bits.mode == "1"
    assert open_image(tmp_path / "bits.png").pixels.tolist() == [[[255] * 3, [0] * 3]]


def test_lab_and_ycbcr_become_rgb():
    clay = (200, 120, 60)
    image = Image.new("RGB", (2, 2), clay)
    assert open_image(image.convert("YCbCr")).pixels[0, 0].tolist() == pytest.approx(clay, abs=2)
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    del lab.info["icc_profile"]  # scanners write Lab without one
    photo = open_image(lab)
    assert photo.pixels[0, 0].tolist() == pytest.approx(clay, abs=3)
    assert photo.notes == ("Lab colours were converted to sRGB.",)


# Colour profiles. The profile below is written by hand, so that what it means is known without a library.


def matrix_profile(red: tuple, green: tuple, blue: tuple, gamma: float, title: bytes) -> bytes:
    """An ICC version 2 profile: three primaries (XYZ relative to D50) and one exponent."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values: tuple) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(title) + 1) + title + b"\0" * (1 + 4 + 4 + 2 + 1 + 67)
    tags = {
        b"desc": described + b"\0" * (-len(described) % 4),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"wtpt": xyz((0.9642, 1.0, 0.8249)),
        b"rXYZ": xyz(red),
        b"gXYZ": xyz(green),
        b"bXYZ": xyz(blue),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    table, body, offset = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    size = 128 + len(table) + len(body)
    head = struct.pack(">I", size) + b"\0" * 4 + b"\x02\x10\0\0" + b"mntrRGB XYZ " + b"\0" * 12 + b"acsp"
    head += b"\0" * 28 + xyz((0.9642, 1.0, 0.8249))[8:]
    return head.ljust(128, b"\0") + table + body


SRGB_PRIMARIES = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))  # D50


def test_a_profile_with_swapped_primaries_swaps_the_colours(tmp_path):
    red, green, blue = SRGB_PRIMARIES
    profile = matrix_profile(green, red, blue, 2.2, b"Red is green")
    Image.new("RGB", (4, 4), RED).save(tmp_path / "odd.png", icc_profile=profile)
    photo = open_image(tmp_path / "odd.png")
    np.testing.assert_allclose(photo.pixels[0, 0].astype(int), GREEN, atol=3)
    assert photo.notes == ("Colours were converted from Red is green to sRGB.",)


def test_a_linear_profile_is_brightened_by_the_curve_of_srgb(tmp_path):
    profile = matrix_profile(*SRGB_PRIMARIES, 1.0, b"Linear light")
    Image.new("RGB", (4, 4), (64, 64, 64)).save(tmp_path / "linear.png", icc_profile=profile)
    light = 64 / 255
    expected = 255 * (1.055 * light ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    np.testing.assert_allclose(open_image(tmp_path / "linear.png").pixels[0, 0], expected, atol=1.5)


def test_an_srgb_profile_changes_nothing(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(noise(8, 8)).save(tmp_path / "usual.png", icc_profile=profile)
    photo = open_image(tmp_path / "usual.png")
    np.testing.assert_array_equal(photo.pixels, noise(8, 8))
    assert photo.notes == ()


def test_a_profile_of_another_kind_of_picture_is_left_out_and_said(tmp_path):
    profile = matrix_profile(*SRGB_PRIMARIES, 1.0, b"Linear light")
    Image.new("L", (4, 4), 64).save(tmp_path / "grey.png", icc_profile=profile)
    photo = open_image(tmp_path / "grey.png")
    assert photo.pixels.tolist() == [[[64] * 3] * 4] * 4
    assert "for RGB, not for this picture" in photo.notes[0]


def test_a_damaged_profile_is_left_out_and_said(tmp_path):
    Image.fromarray(marked()).save(tmp_path / "odd.png", icc_profile=b"no profile" * 20)
    photo = open_image(tmp_path / "odd.png")
    np.testing.assert_array_equal(photo.pixels, marked())
    assert photo.notes == ("The embedded colour profile is damaged and was left out.",)


# Several pictures in one file


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff", "mpo"])
def test_of_a_moving_picture_the_first_frame_is_taken_and_said(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    file = tmp_path / f"moving.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(file, save_all=True, append_images=frames[1:], **options)
    photo = open_image(file)
    np.testing.assert_allclose(photo.pixels.astype(int), np.broadcast_to(RED, (16, 16, 3)), atol=2)
    assert photo.notes == ("The file holds 3 pictures; the first is used.",)


# What is refused


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow grumbles about damage, as it may
def test_truncated_files_are_refused_at_every_length(tmp_path):
    for suffix in ("jpg", "png", "webp", "gif", "bmp", "tiff", "avif"):
        buffer = io.BytesIO()
        Image.fromarray(noise(64, 48)).save(buffer, format="JPEG" if suffix == "jpg" else suffix)
        whole = buffer.getvalue()
        for part in (8, 20, len(whole) // 3, len(whole) * 9 // 10):
            (tmp_path / f"cut.{suffix}").write_bytes(whole[:part])
            with pytest.raises(BadImage) as bad:
                open_image(tmp_path / f"cut.{suffix}")
            said(bad.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow grumbles about damage, as it may
def test_random_damage_gives_a_picture_or_a_sentence_and_nothing_else():
    random = np.random.default_rng(0)
    refused = 0
    for suffix in ("jpeg", "png", "webp", "gif", "bmp", "tiff"):
        buffer = io.BytesIO()
        Image.fromarray(noise(32, 24)).save(buffer, format=suffix)
        for _ in range(60):
            damaged = bytearray(buffer.getvalue())
            for place in random.integers(0, min(len(damaged), 400), 6):
                damaged[place] = random.integers(256)
            try:
                assert isinstance(open_image(bytes(damaged)), Photo)
            except BadImage as bad:
                refused += 1
                said(bad)
    assert refused > 50


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello, this is no picture at all", "not a picture in a known format; save it as JPEG"),
        (b"%PDF-1.7\n", "not a picture in a known format"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
            "not a picture in a known format",
        ),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC photographs cannot be read; export it as JPEG"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "begins like a JPEG file but cannot be read: damaged or cut short"),
    ],
)
def test_files_that_are_no_pictures_are_told_apart(tmp_path, content, reason):
    (tmp_path / "thing.jpg").write_bytes(content)
    with pytest.raises(BadImage, match=reason) as bad:
        open_image(tmp_path / "thing.jpg")
    assert said(bad.value).startswith("thing.jpg: ")
    with pytest.raises(BadImage, match=reason):
        open_image(io.BytesIO(content))


@pytest.mark.parametrize(("width", "height"), [(40_000, 40_000), (9_500, 9_500), (MAX_SIDE + 1, 1), (2**31 - 1,) * 2])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_large_pictures_are_refused_from_their_header(width, height):
    bomb = png(width, height, 8, 2, b"")  # holds no pixel: had it been decoded, it would be called damaged
    with pytest.raises(BadImage, match=r"too (large|many); up to 89 megapixels and 30000 pixels a side") as bad:
        open_image(bomb)
    said(bad.value)


def test_a_warning_of_pillow_turned_into_an_error_is_still_a_sentence():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadImage, match="too large"):
            open_image(png(9_500, 9_500, 8, 2, b""))


def test_the_largest_allowed_picture_is_opened():
    width = MAX_SIDE
    height = MAX_PIXELS // width
    rows = zlib.compressobj(1)
    packed = b"".join([rows.compress(b"\0" * (1 + (width + 7) // 8)) for _ in range(height)]) + rows.flush()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    file = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")
    assert open_image(file).size == (width, height)


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:9/cat.jpg",
        "https://example.org/cat.jpg",
        "HTTPS://EXAMPLE.ORG/cat.jpg",
        " ftp://example.org/cat.jpg",
        "file:///etc/hostname",
        "s3://bucket/cat.jpg",
        "data:image/png;base64,AAAA",
    ],
)
def test_addresses_are_refused_and_nothing_is_fetched(address, monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr("socket.socket.connect", never)
    with pytest.raises(BadImage, match="not fetched from the internet; download it first") as bad:
        open_image(address)
    said(bad.value)


def test_missing_files_folders_and_devices_are_refused(tmp_path):
    for path, reason in (
        (tmp_path / "gone.jpg", "there is no file of this name"),
        (tmp_path, "this is not a file"),
        ("/dev/null", "this is not a file"),
        ("nul\0byte.jpg", "there is no file of this name"),
    ):
        with pytest.raises(BadImage, match=reason) as bad:
            open_image(path)
        said(bad.value)
    with pytest.raises(BadImage) as bad:
        open_image(tmp_path / "gone.jpg")
    assert str(tmp_path) not in str(bad.value)  # the sentence is shown to others, and folders are nobody's business


@pytest.mark.parametrize("source", [3, None, [[1, 2]], io.StringIO("text")])
def test_other_objects_are_refused(source):
    with pytest.raises(BadImage):
        open_image(source)


# Arrays


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 255]], np.uint8), [[0] * 3, [255] * 3]),
        (np.array([[[9], [8]]], np.uint8), [[9] * 3, [8] * 3]),
        (np.array([[True, False]]), [[255] * 3, [0] * 3]),
        (np.array([[[0.0, 0.5, 1.0]]]), [[0, 128, 255]]),
        (np.array([[[0, 257, 65535]]], np.uint16), [[0, 1, 255]]),
        (np.array([[[1, 2, 3, 255], [1, 2, 3, 0]]], np.uint8), [[1, 2, 3], [255, 255, 255]]),
        (np.array([[[1, 2, 3]]], np.uint8)[:, ::-1], [[1, 2, 3]]),
    ],
)
def test_arrays_of_the_usual_kinds(values, expected):
    assert open_image(values).pixels.tolist() == [expected]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((2, 2, 2), np.uint8), "shape"),
        (np.zeros((3, 8, 8), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.zeros((1, MAX_SIDE + 1), np.uint8), "too many"),
        (np.array([[0.0, 1.5]]), "between 0 and 1"),
        (np.array([[0.0, np.nan]]), "between 0 and 1"),
        (np.zeros((2, 2), np.int64), "int64"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(values, reason):
    with pytest.raises(BadImage, match=reason) as bad:
        open_image(values)
    said(bad.value)


# Folders and samples


def test_a_folder_gives_its_pictures_in_order_and_reports_bad_ones(tmp_path):
    Image.fromarray(noise(5, 4)).save(tmp_path / "c.png")
    Image.fromarray(noise(6, 4)).save(tmp_path / "a.JPG")
    (tmp_path / "b.webp").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("left out")
    (tmp_path / ".hidden.png").write_bytes(b"left out")
    (tmp_path / "d.png").mkdir()
    found = list(load_folder(tmp_path))
    assert [item.name for item in found] == ["a.JPG", "b.webp", "c.png", "d.png"]
    assert [type(item) for item in found] == [Photo, BadImage, Photo, BadImage]


def test_a_missing_folder_is_refused_at_once(tmp_path):
    with pytest.raises(BadImage, match="no folder"):
        load_folder(tmp_path / "gone")


def test_every_sample_is_credited_free_and_as_described():
    samples = list_samples()
    folder = samples[0].path.parent
    pictures = {path.name for path in folder.iterdir() if path.suffix not in (".tsv", ".md")}
    assert pictures == {sample.path.name for sample in samples}
    assert len(samples) == len(pictures) >= 14
    for sample in samples:
        photo = open_image(sample.path)
        assert photo.size == (sample.width, sample.height), sample.path.name
        assert max(photo.size) <= 4096
        assert sample.licence in ("CC0 1.0", "CC BY 2.0", "CC BY 4.0", "CC BY-SA 4.0", "public domain")
        assert sample.licence_url.startswith("https://")
        version = sample.licence.removeprefix("CC ").lower().replace(" ", "/")
        assert "creativecommons" not in sample.licence_url or version.replace("cc0", "zero") in sample.licence_url
        assert all((sample.title, sample.author, sample.source, sample.original, sample.changes))
        for word in (sample.title, sample.author, sample.licence, sample.source, sample.changes):
            assert word in sample.credit


def test_samples_are_small_enough_to_be_cloned():
    folder = list_samples()[0].path.parent
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8_000_000


def test_two_samples_are_large_enough_for_the_high_resolution_views():
    assert [max(sample.width, sample.height) for sample in list_samples()].count(4096) == 2


def test_credits_are_plain_columns():
    """No field is quoted: a spreadsheet and a split at tabs read the same."""
    text = (list_samples()[0].path.parent / "credits.tsv").read_text(encoding="utf-8")
    assert list(csv.reader(io.StringIO(text), delimiter="\t")) == [line.split("\t") for line in text.splitlines()]
