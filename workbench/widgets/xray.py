"""The token X-ray as a notebook widget: lengths, CLS and registers of one photograph, with and without position."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import traitlets
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from core.dense.packs import Pack, open_pack, pack_features
from core.dense.position import RANK, position_basis, without
from core.models import Backbone
from workbench.draw import COLORMAPS
from workbench.looks import Look
from workbench.packs import make_pack
from workbench.views import draw_pane
from workbench.widgets.host import PackWidget

CHANNELS = 8  # that are listed


class TokenXray(PackWidget):
    """What the tokens of one photograph are like: lengths with outliers, cosines to CLS and to each register.

        view = TokenXray(look)
        view = TokenXray(look, backbone=backbone)    # and what depends on the place alone, which can be taken out
        view.stripped = True

    Sources are looks, packs, or paths of .dfp files. `channels` are the channels that carry most of the energy, `share`
    is the share of the variance between patches that position explains.
    """

    _entry = "xray.js"
    stripped = traitlets.Bool(False).tag(sync=True)
    share = traitlets.Float(None, allow_none=True).tag(sync=True)
    channels: Any = traitlets.List().tag(sync=True)
    colormap = traitlets.Enum(list(COLORMAPS), "viridis").tag(sync=True)

    def __init__(
        self, source: Look | Pack | str | Path, *, backbone: Backbone | None = None, rank: int = RANK, **state: Any
    ) -> None:
        pack = (
            source if isinstance(source, Pack) else make_pack(source) if isinstance(source, Look) else open_pack(source)
        )
        features = source.features if isinstance(source, Look) else pack.features()
        packs, share = [pack], None
        if backbone is not None:
            basis = position_basis(backbone, features.geometry, rank=rank, layer=features.layer, norm=features.norm)
            rest, share = without(features.patches, basis, features.valid)
            photo = source.photo if isinstance(source, Look) else str(pack.picture["name"])
            packs.append(
                pack_features(replace(features, patches=rest), pack.model, photo, labels={"without": "position"})
            )
        super().__init__(packs=packs, share=share, channels=top_channels(features.patches[features.valid]), **state)

    def still(self) -> Image.Image:
        """The photograph in the colours of how alike each patch is to CLS."""
        return Image.fromarray(draw_pane(self.packs, {"pack": 0, "show": "photo"}))

    @traitlets.validate("stripped")
    def _possible(self, proposal: Any) -> bool:
        if proposal.value and len(self.packs) < 2:
            raise traitlets.TraitError("give the backbone, TokenXray(look, backbone=...), to take position out")
        return proposal.value


def top_channels(rows: Float[Tensor, "N D"], count: int = CHANNELS) -> list[list[float]]:
    """The channels that carry most of the features' energy, as [channel, share], largest first."""
    energy = rows.double().square().sum(0)
    shares, found = (energy / energy.sum().clamp(min=torch.finfo(torch.float64).tiny)).topk(min(count, len(energy)))
    return [[int(channel), float(share)] for channel, share in zip(found, shares, strict=True)]
