"""Opens and writes videos: whatever people bring becomes upright RGB frames, one at a time, or a sentence why not.

Files are decoded by FFmpeg (PyAV), which is told which containers it may read and that it may open no second file:
a playlist that names other files or addresses is refused. A folder of pictures is a video too. Never more than a few
frames are in memory, however long the video.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from jaxtyping import UInt8
from PIL import Image

from workbench.images import MAX_PIXELS, SUFFIXES, BadImage, open_image

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,asf,gif,apng"
CONTAINER_NAMES = "MP4, MOV, WebM, MKV, AVI, MPEG, OGG, FLV, WMV or GIF"
CLOSED = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}  # a playlist could name a file of the server
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".ogv", ".gif")
FOLDER_RATE = 10.0  # frames a second of pictures in a folder, which say nothing of it
SQUARE = Fraction(1, 1)
Frame = UInt8[np.ndarray, "h w 3"]


class BadVideo(ValueError):
    """A video that cannot be used; the message is one sentence for the person who brought it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name


@dataclass(frozen=True)
class Video:
    """A video whose first frame could be read; the others are decoded when they are asked for."""

    path: Path
    name: str
    width: int  # of a frame as a person sees it: turned upright, with square pixels
    height: int
    rate: float  # frames a second

    def frames(self, *, every: int = 1, most: int | None = None) -> Iterator[Frame]:
        """Upright RGB frames (height, width, 3), uint8: each `every`-th, at most `most`.

        Raises BadVideo where the video breaks off in its middle: what came before is good. ValueError for an `every`
        below 1.
        """
        if every < 1:
            raise ValueError(f"every is 1 for each frame, 2 for each second one, ...; got {every}")
        source = _of_folder(self.path, self.name) if self.path.is_dir() else _of_file(self.path, self.name)
        taken = 0
        for number, frame in enumerate(source):
            if taken == most:
                return
            if number % every:
                continue
            if frame.shape[:2] != (self.height, self.width):
                raise BadVideo(
                    self.name,
                    f"frame {number} has {frame.shape[1]}x{frame.shape[0]} pixels and the first one "
                    f"{self.width}x{self.height}; all have to be of one size.",
                )
            taken += 1
            yield frame


def open_video(source: str | os.PathLike[str], *, name: str | None = None) -> Video:
    """The video in a file, or in a folder of pictures in the order of their names.

    Raises BadVideo with one sentence for everything that is none: missing, empty, broken, of an unknown container,
    without moving pictures, too large, or an internet address.
    """
    text = os.fspath(source)
    if re.match(r"\s*([a-z][a-z0-9+.-]+:|\\\\)", text, re.IGNORECASE):
        raise BadVideo("address", "videos are not fetched from the internet; download it first.")
    path = Path(text)
    name = name or path.name or "video"
    try:
        if not path.exists():
            raise BadVideo(name, "there is no file of this name.")
        if not path.is_dir() and not path.is_file():  # a pipe or a device would never end
            raise BadVideo(name, "this is neither a file nor a folder.")
        if path.is_file() and not path.stat().st_size:
            raise BadVideo(name, "the file is empty.")
    except OSError as error:
        raise BadVideo(name, f"the file cannot be read ({error.strerror or error}).") from None
    first = next(_of_folder(path, name) if path.is_dir() else _of_file(path, name), None)
    if first is None:
        raise BadVideo(
            name, "the folder holds no pictures." if path.is_dir() else "it holds no frame that can be read."
        )
    rate = FOLDER_RATE if path.is_dir() else _rate(path, name)
    return Video(path, name, first.shape[1], first.shape[0], rate)


def _of_folder(path: Path, name: str) -> Iterator[Frame]:
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
    for file in files:
        try:
            yield open_image(file).pixels
        except BadImage as bad:
            raise BadVideo(name, f"a picture cannot be used: {bad}") from None


def _open(path: Path, name: str) -> InputContainer:
    try:
        container = av.open(str(path.resolve()), container_options=CLOSED, metadata_errors="ignore")
    except (av.error.FFmpegError, ValueError, OSError):
        raise BadVideo(name, f"this is no video in a known format ({CONTAINER_NAMES}), or it is damaged.") from None
    if not container.streams.video:
        container.close()
        raise BadVideo(name, "there is no picture in it, only sound or nothing.")
    return container


def _rate(path: Path, name: str) -> float:
    with _open(path, name) as container:
        rate = container.streams.video[0].average_rate
    return min(max(float(rate), 1.0), 240.0) if rate else FOLDER_RATE


def _of_file(path: Path, name: str) -> Iterator[Frame]:
    with _open(path, name) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        _check_size(name, stream.codec_context.width, stream.codec_context.height)
        count = 0
        try:
            for frame in container.decode(stream):
                _check_size(name, frame.width, frame.height)
                yield _upright(frame, stream.sample_aspect_ratio or SQUARE)
                count += 1
        except (av.error.FFmpegError, ValueError, OSError) as error:
            if isinstance(error, BadVideo):
                raise
            raise BadVideo(name, f"the video is damaged: {count} frames could be read.") from None


def _check_size(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadVideo(name, f"{width}x{height} pixels a frame are too many; {MAX_PIXELS // 10**6} million are read.")


def _upright(frame: VideoFrame, aspect: Fraction) -> Frame:
    """A decoded frame as a person sees it: pixels made square, turned as the camera was held."""
    wide = max(1, round(frame.width * aspect)) if Fraction(1, 4) <= aspect <= 4 else frame.width
    pixels = frame.to_ndarray(format="rgb24", width=wide, height=frame.height)
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))


def write_video(path: str | os.PathLike[str], frames: Iterable[Frame], rate: float) -> Path:
    """The path of an MP4 (H.264, which browsers play) of these frames, all of one size, `rate` a second.

    The codec wants even sides, so an odd one loses its last row or column. Raises ValueError when there is no frame.
    """
    path = Path(path)
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = None
        for pixels in frames:
            height, width = (side // 2 * 2 for side in pixels.shape[:2])
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.options = {"crf": "20", "preset": "veryfast"}
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
            container.mux(stream.encode(frame))
        if stream is None:
            raise ValueError("a video needs at least one frame")
        container.mux(stream.encode())
    return path


def mask_picture(mask: UInt8[np.ndarray, "h w"], colors: Iterable[tuple[int, int, int]]) -> Image.Image:
    """A mask of numbers as an indexed picture, as DAVIS keeps them: 0 is black and the background, then `colors`."""
    picture = Image.frombytes("P", mask.shape[::-1], mask.tobytes())
    picture.putpalette([0, 0, 0, *(channel for color in colors for channel in color)])
    return picture
