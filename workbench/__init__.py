"""Looking at models: the library behind the notebooks and apps."""

from core.dense.extract import extract
from core.models.weights import load_backbone as load
from workbench.images import open_image
from workbench.looks import look_at
from workbench.packs import make_pack, open_pack, save_pack

__all__ = ["extract", "load", "look_at", "make_pack", "open_image", "open_pack", "save_pack"]
