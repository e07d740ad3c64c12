"""A clip: its frames and features, and what is taken home."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.dense.geometry import patch_centre, plan
from core.evals.tracking import to_mask
from core.models import build_backbone
from workbench.clips import COLORS, answer, fine_mask, list_clips, open_clip, read, save_masks, save_video, written
from workbench.video import BadVideo, open_video


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return build_backbone("vit_nano", patch_size=8, depth=1).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Seven frames of 96 x 64 pixels with a red square that moves to the right over grey noise."""
    folder = tmp_path_factory.mktemp("frames")
    noise = np.random.default_rng(0).integers(90, 110, (64, 96, 3), np.uint8)
    for number in range(7):
        frame = noise.copy()
        frame[24:40, 8 + 8 * number : 24 + 8 * number] = (220, 30, 30)
        Image.fromarray(frame).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def clip(folder, backbone):
    return open_clip(folder, backbone, size=96)


@pytest.fixture(scope="module")
def found(clip):
    mask = torch.zeros(8, 12, dtype=torch.long)
    mask[3:5, 1:3] = 1
    rules = {"context": 3, "radius": 3, "topk": 2, "temperature": 0.1}
    return answer(clip, None, {"0": written(mask)}, rules)


def test_frames_are_looked_at_once_each_at_their_own_aspect(folder, backbone, clip):
    told = []
    short = open_clip(folder, backbone, size=96, every=2, most=3, progress=lambda *said: told.append(said))
    assert (len(clip), clip.features.shape, clip.features.dtype) == (7, (7, 8, 12, 128), torch.float16)
    assert len(short) == 3 and told == [(number, 3, "frames") for number in (1, 2, 3)]
    assert torch.equal(short.features[1], clip.features[2])
    assert short.notes == ("The first 3 frames are used, of a longer video.",) and clip.notes == ()
    assert clip.colors.shape == (7, 8, 12, 3)


def test_a_clip_without_features_shows_frames_and_says_what_is_missing(folder, backbone):
    clip = open_clip(folder, backbone, size=96, look=False)
    assert len(clip) == 7 and clip.features is None
    with pytest.raises(ValueError, match="opened without features"):
        clip.follower  # noqa: B018


def test_a_clip_that_breaks_off_is_shorter_and_says_so(folder, backbone, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "4.png").write_bytes(b"no picture")
    clip = open_clip(tmp_path, backbone, size=96)
    assert len(clip) == 4 and "4.png" in clip.notes[0] and clip.notes[0].endswith("The clip ends there.")
    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.raises(BadVideo, match="a picture cannot be used: 0"):
        open_clip(tmp_path, backbone)


def test_cancelling_is_raising(folder, backbone):
    def stop(done, total, what):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_clip(folder, backbone, size=96, progress=stop)


def test_the_square_is_followed_and_taken_home(clip, found, tmp_path):
    inside = [found.masks[frame, 3:5, 1 + frame : 3 + frame].float().mean() for frame in range(7)]
    assert min(inside) == 1
    with zipfile.ZipFile(save_masks(clip, found, tmp_path / "masks.zip")) as archive:
        assert archive.namelist() == [f"{frame:05}.png" for frame in range(7)]
        for frame in range(7):
            mask = np.asarray(Image.open(io.BytesIO(archive.read(f"{frame:05}.png"))))
            assert mask.shape == (64, 96) and set(np.unique(mask)) == {0, 1}
            assert mask[32, 16 + 8 * frame] == 1
    video = open_video(save_video(clip, found, tmp_path / "clip.mp4"))
    first = next(video.frames())
    red, _, blue = first[32, 16].astype(int)
    assert blue > 90 and red < 180, "blue of the first object lies over the red square"
    assert np.abs(first[5, 80].astype(int) - 100).max() < 25


def test_a_fine_mask_is_that_of_the_evaluation_where_nothing_is_padded():
    labels = torch.rand(4, 6, 3, generator=torch.Generator().manual_seed(0))
    geometry = plan(96, 64, 16)
    np.testing.assert_array_equal(fine_mask(labels, geometry, 96, 64), to_mask(labels, 64, 96))


def test_a_fine_mask_over_padding_shows_patches_where_they_lie():
    geometry = plan(100, 64, 16, size=100)
    labels = torch.zeros(geometry.rows, geometry.cols, 2)
    labels[..., 0] = 0.5
    labels[1, 2, 1] = 1
    mask = fine_mask(labels, geometry, 50, 32)  # half the size
    assert mask.shape == (32, 50)
    rows, cols = mask.nonzero()
    x, y = patch_centre(geometry, 1, 2)
    assert abs(cols.mean() + 0.5 - x / 2) < 0.6 and abs(rows.mean() + 0.5 - y / 2) < 0.6


@pytest.mark.parametrize("digits", ["", "0" * 95, "0" * 95 + "8", "0" * 95 + "x", "٣" * 96])
def test_marks_that_a_page_made_up_are_refused(digits):
    with pytest.raises(ValueError, match="a mark is 96 digits from 0 to 7"):
        read(digits, 8, 12)


def test_marks_are_written_and_read():
    mask = torch.randint(0, 8, (8, 12), generator=torch.Generator().manual_seed(0))
    assert torch.equal(read(written(mask), 8, 12), mask)


def test_clips_that_come_along_are_small_credited_and_may_be_passed_on():
    for sample in list_clips():
        video = open_video(sample.path)
        assert (video.width, video.height) == (sample.width, sample.height)
        assert sample.path.stat().st_size < 1_500_000
        assert sample.licence == "Apache 2.0" and sample.licence_url.startswith("https://")
        assert all((sample.title, sample.author, sample.source, sample.original, sample.changes))


def test_the_colours_are_those_of_the_page():
    text = (Path(__file__).parents[2] / "workbench" / "widgets" / "follow.js").read_text()
    assert str([f"#{r:02x}{g:02x}{b:02x}" for r, g, b in COLORS]).replace("'", '"') in text
