"""Text beside dense features: dino.txt on a frozen backbone (paper section 5.3)."""

from core.text.model import DinoText, ImageFeatures, build_dino_text
from core.text.tokenizer import Tokenizer, clip_tokenizer

__all__ = ["DinoText", "ImageFeatures", "Tokenizer", "build_dino_text", "clip_tokenizer"]
