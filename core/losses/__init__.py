"""The terms of the training objective; each is a function of features or logits."""

from collections.abc import Callable

from torch import Tensor

from core.losses.contrastive import contrastive
from core.losses.dino import dino_global, dino_local
from core.losses.features import features
from core.losses.gram import gram
from core.losses.ibot import ibot
from core.losses.koleo import koleo

LOSSES: dict[str, Callable[..., Tensor]] = {
    "dino_local": dino_local,
    "dino_global": dino_global,
    "ibot": ibot,
    "koleo": koleo,
    "gram": gram,
    "features": features,
    "contrastive": contrastive,
}
