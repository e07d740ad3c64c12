"""Videos: frames are those that were written, and what is no video gets one sentence."""

import contextlib
import itertools
import re
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from workbench import video
from workbench.video import BadVideo, mask_picture, open_video, write_video


def picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A grey frame with a bright square that moves to the right."""
    pixels = np.full((height, width, 3), 60, np.uint8)
    pixels[16:32, 4 * number : 4 * number + 16] = (240, 200, 40)
    return pixels


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "square.mp4", map(picture, range(10)), 12.5)


def refused(path: Path | str, words: str) -> None:
    with pytest.raises(BadVideo) as caught:
        list(open_video(path).frames())
    told = str(caught.value)
    assert re.search(words, told), told
    assert told.endswith(".") and "\n" not in told and "Errno" not in told, told


def test_frames_come_back_in_their_order_at_their_own_size(clip):
    opened = open_video(clip)
    assert (opened.width, opened.height, opened.rate, opened.name) == (64, 48, 12.5, "square.mp4")
    frames = list(opened.frames())
    assert len(frames) == 10
    for number, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - picture(number)).mean() < 6  # H.264 at this size is not exact
        bright = (frame[24].mean(-1) > 120).nonzero()[0]
        assert abs(bright.min() - 4 * number) <= 1 and abs(bright.max() - (4 * number + 15)) <= 1


def test_some_frames_are_left_out(clip):
    some = list(open_video(clip).frames(every=3, most=2))
    assert [int((frame[24].mean(-1) > 120).nonzero()[0].min() / 4 + 0.5) for frame in some] == [0, 3]
    with pytest.raises(ValueError, match="every is 1"):
        next(open_video(clip).frames(every=0))


def test_of_a_long_video_no_more_is_turned_into_pictures_than_asked_for(tmp_path, monkeypatch):
    """What makes memory bounded."""
    made = []
    upright = video._upright
    monkeypatch.setattr(video, "_upright", lambda *given: made.append(1) or upright(*given))
    path = write_video(tmp_path / "long.mp4", (picture(n % 10) for n in range(200)), 25)
    assert len(list(itertools.islice(open_video(path).frames(), 3))) == 3
    assert len(made) == 4  # one to see whether it is a video at all


def test_a_folder_of_pictures_is_a_video_in_the_order_of_names(tmp_path):
    for number in (10, 2, 1):
        Image.fromarray(picture(number % 10)).save(tmp_path / f"{number:03}.png")
    (tmp_path / "notes.txt").write_text("left out")
    frames = list(open_video(tmp_path).frames())
    assert [np.array_equal(frame, picture(n)) for frame, n in zip(frames, (1, 2, 0), strict=True)] == [True] * 3


def test_a_telephone_held_upright_gives_upright_frames(tmp_path):
    """The container says how the camera was held; the frames inside are lying."""
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 5 * 4 + 8 + 8  # version, times, number, layer and volume: then nine numbers
    turn = [0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30]  # a quarter to the right
    data[at : at + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in turn)
    path.write_bytes(data)
    turned = open_video(path)
    assert (turned.width, turned.height) == (48, 64)
    wanted = np.rot90(picture(0), -1)
    assert np.abs(next(turned.frames()).astype(int) - wanted).mean() < 6


def test_what_is_no_video_gets_a_sentence(tmp_path, clip):
    for name, content, words in [
        ("empty.mp4", b"", "the file is empty"),
        ("notes.mp4", b"Buy milk.\n" * 200, "no video in a known format"),
        ("noise.webm", np.random.default_rng(0).bytes(20_000), "no video in a known format"),
        ("cut.mp4", clip.read_bytes()[:600], "no video in a known format|no frame that can be read|damaged"),
        ("page.mp4", b"<!doctype html><script>alert(1)</script>", "no video in a known format"),
    ]:
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, words)
    refused(tmp_path / "gone.mp4", "no file of this name")
    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", "holds no pictures")
    refused("https://example.org/a.mp4", "not fetched from the internet")
    refused("concat:a.mp4|b.mp4", "not fetched")


def test_a_playlist_cannot_make_the_server_read_another_file(tmp_path, clip):
    """FFmpeg follows such lists by itself: to files of the server, and to addresses."""
    lists = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{clip}\n#EXT-X-ENDLIST\n",
        "list.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{clip}\n#EXT-X-ENDLIST\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile {clip.name}\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        refused(tmp_path / name, "no video in a known format")


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    refused(path, "no picture in it")


def test_a_video_that_breaks_off_keeps_what_came_before(tmp_path):
    draw = np.random.default_rng(0)
    path = tmp_path / "noise.ts"
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(30):
            frame = av.VideoFrame.from_ndarray(draw.integers(0, 255, (48, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = []
    with contextlib.suppress(BadVideo):  # as some versions of the decoder say, where others just end
        for frame in open_video(path).frames():
            frames.append(frame)
    assert 5 < len(frames) < 25


def test_frames_of_two_sizes_are_refused_by_number(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "0.png")
    Image.fromarray(picture(0, 50, 64)).save(tmp_path / "1.png")
    refused(tmp_path, "frame 1 has 64x50 pixels and the first one 64x48")
    (tmp_path / "1.png").write_bytes(b"no picture")
    refused(tmp_path, "a picture cannot be used: 1.png")


def test_a_frame_too_large_to_hold_is_refused(clip, monkeypatch):
    monkeypatch.setattr("workbench.video.MAX_PIXELS", 3000)
    refused(clip, "64x48 pixels a frame are too many")


def test_odd_sides_lose_a_row_and_no_frame_is_no_video(tmp_path):
    path = write_video(tmp_path / "odd.mp4", [picture(n, 49, 65) for n in range(2)], 10)
    assert [frame.shape for frame in open_video(path).frames()] == [(48, 64, 3)] * 2
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "none.mp4", [], 10)


def test_a_mask_keeps_its_numbers_and_has_colours(tmp_path):
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    mask_picture(mask, [(1, 2, 3), (4, 5, 6)]).save(tmp_path / "mask.png")
    again = Image.open(tmp_path / "mask.png")
    np.testing.assert_array_equal(np.asarray(again), mask)
    np.testing.assert_array_equal(np.asarray(again.convert("RGB"))[0, :3], [[0, 0, 0], [1, 2, 3], [4, 5, 6]])
