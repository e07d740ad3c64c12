"""Which weights features come from."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from core.dense.store import weights_digest
from core.models import Backbone
from core.models.inference import fingerprint


@dataclass(frozen=True)
class ModelCard:
    """Which weights features come from, and under which terms; None where that is not known."""

    name: str
    weights: str | None = None  # of `core.dense.store.weights_digest`
    licence: str | None = None
    licence_url: str | None = None
    notice: str | None = None


def card_of(backbone: Backbone) -> ModelCard:
    """The card of a backbone's weights."""
    source = backbone.source
    if source is None:
        return ModelCard(type(backbone).__name__, _digest(backbone))
    licence = (source.licence, source.licence_url or None, source.licence_notice or None)
    return ModelCard(source.name, _digest(backbone), *licence)


_digests: WeakKeyDictionary[Backbone, tuple[object, str]] = WeakKeyDictionary()


def _digest(backbone: Backbone) -> str:
    """`weights_digest`, which reads every weight (0.1 s for a ViT-S), again only when one has changed."""
    if any(weights.is_inference() for weights in backbone.parameters()):  # these have no version
        return weights_digest(backbone)
    state = (fingerprint(backbone), backbone.pixel_mean, backbone.pixel_std)
    known = _digests.get(backbone)
    if known is None or known[0] != state:
        known = _digests[backbone] = (state, weights_digest(backbone))
    return known[1]
