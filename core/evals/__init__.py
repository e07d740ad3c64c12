"""Reported evaluations of frozen backbones, one file each. Those in EVALS take a backbone and a folder of pictures."""

from collections.abc import Callable
from pathlib import Path

from core.evals.incontext import incontext
from core.evals.keypoints import keypoints
from core.evals.objects import objects
from core.evals.segmentation import segmentation
from core.evals.tracking import tracking
from core.models import Backbone

EVALS: dict[str, Callable[[Backbone, Path], dict[str, float]]] = {
    "incontext": incontext,
    "keypoints": keypoints,
    "objects": objects,
    "segmentation": segmentation,
    "tracking": tracking,
}
