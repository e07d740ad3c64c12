"""Pictures on the page: how they are shown, and files that one page may read while another is drawing the same."""

import hashlib
import os
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder
from jaxtyping import UInt8
from PIL import Image


def picture(elem_id: str, alt_text: str, value: UInt8[np.ndarray, "h w 3"] | None = None) -> gr.Image:
    """A picture to look at, and to click where an event says so; give it what `served` returns."""
    shown = None if value is None else served(value)
    return gr.Image(
        shown, show_label=False, container=False, interactive=False, buttons=[], label=alt_text, elem_id=elem_id,
        elem_classes="picture", alt_text=alt_text,
    )  # fmt: skip


def served(pixels: UInt8[np.ndarray, "h w 3"], format: str = "jpeg") -> str:
    """The path of a file that the page can show: JPEG for photographs, "png" where colours are read off.

    Left to itself, Gradio writes equal pictures to the same file anew each time, and a page that is just reading it
    gets half of it. Here a file appears whole, once.
    """
    content = BytesIO()
    options: dict[str, Any] = {"quality": 90, "subsampling": 0} if format == "jpeg" else {"compress_level": 1}
    Image.fromarray(pixels).save(content, format, **options)
    folder = Path(get_upload_folder()).resolve() / hashlib.sha256(content.getbuffer()).hexdigest()
    file = folder / f"image.{format}"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.getbuffer())
        os.replace(part, file)
    return str(file)
