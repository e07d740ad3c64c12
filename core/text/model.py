"""dino.txt: images and texts in one space, whose second half patches share (paper section 5.3).

An image is its CLS token beside the mean of its patches, both after the vision head. So the second half of a text's
vector can be compared with every patch: that is where a phrase is.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.models import Backbone
from core.text.sentence import SentenceModel
from core.text.transformer import Projection, TextTransformer
from core.text.vision_head import VisionHead

TEMPERATURE = 0.07  # at the start: the learned scale is the logarithm of its inverse
LARGEST_SCALE = math.log(100)


class ImageFeatures(NamedTuple):
    """vector (B, E): CLS beside the mean patch. patches (B, P, E / 2): each after the head, not normalised.
    backbone_patches (B, P, D): as they came from the backbone, after its final norm."""

    vector: Tensor
    patches: Tensor
    backbone_patches: Tensor


class VisualModel(nn.Module):
    """The frozen backbone and the head that is trained."""

    def __init__(self, backbone: Backbone, head: VisionHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        backbone.requires_grad_(False)

    @property
    def patch_size(self) -> int:
        """Pixels of a patch's side. Raises ValueError for a backbone that has no patches of its own."""
        if self.backbone.patch_size is None:
            raise ValueError("text needs a backbone with patches: a ConvNeXt is given its patch_size")
        return self.backbone.patch_size

    def train(self, mode: bool = True) -> "VisualModel":
        """Training mode is the head's alone."""
        super().train(mode)
        self.backbone.eval()
        return self

    @torch.no_grad()
    def look(self, images: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B N D"]:
        """What the head is given: CLS, registers and patches of the last layer, normed."""
        seen = self.backbone(images, is_training=True)
        parts = [seen["x_norm_clstoken"][:, None], seen["x_storage_tokens"], seen["x_norm_patchtokens"]]
        return torch.cat([part for part in parts if part is not None and part.shape[1]], dim=1)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> ImageFeatures:
        """Features of what `look` returned, which may have been kept."""
        first = 1 + getattr(self.backbone, "num_registers", 0)
        seen = self.head(tokens)
        cls, patches = seen[:, 0], seen[:, first:]
        return ImageFeatures(torch.cat([cls, patches.mean(1)], dim=1), patches, tokens[:, first:])


class TextModel(nn.Module):
    """The text tower and its projection, read at the end of the text."""

    def __init__(self, backbone: TextTransformer, out_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = Projection(backbone.dim, out_dim)

    @torch.no_grad()
    def init_weights(self) -> None:
        self.backbone.init_weights()
        self.head.init_weights()

    def forward(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B E"]:
        """A vector a text: that of its last token, which has the largest number."""
        every = self.head(self.backbone(tokens))
        return every[torch.arange(len(tokens), device=tokens.device), tokens.argmax(1)]


class DinoText(nn.Module):
    """Both towers and the learned scale of their cosines. Names of tensors are those of the released file."""

    def __init__(self, visual: VisualModel, text: TextModel | SentenceModel) -> None:
        super().__init__()
        self.visual_model, self.text_model = visual, text
        self.logit_scale = nn.Parameter(torch.empty(1))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Everything that is trained; the backbone keeps its weights."""
        self.logit_scale.fill_(math.log(1 / TEMPERATURE))
        self.visual_model.head.init_weights()
        self.text_model.init_weights()

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """To be called after each step: cosines are multiplied by at most 100."""
        self.logit_scale.clamp_(0, LARGEST_SCALE)

    @property
    def scale(self) -> Float[Tensor, ""]:
        """What multiplies cosines."""
        return self.logit_scale.exp().reshape(())

    @property
    def out_dim(self) -> int:
        """Channels of the common space; patches have half of them."""
        return int(self.text_model.head.linear_projection.weight.shape[0])

    def encode_image(self, images: Float[Tensor, "B 3 h w"], *, normalize: bool = False) -> ImageFeatures:
        """Images as the backbone takes them: normalised colours, sides that its patches divide."""
        found = self.visual_model(self.visual_model.look(images))
        return found._replace(vector=F.normalize(found.vector, dim=-1)) if normalize else found

    def encode_text(self, tokens: Int[Tensor, "B N"], *, normalize: bool = False) -> Float[Tensor, "B E"]:
        """Texts as token numbers, padded with 0."""
        found = self.text_model(tokens)
        return F.normalize(found, dim=-1) if normalize else found

    def trained_state(self) -> dict[str, Tensor]:
        """Everything but the frozen backbone, as the release publishes it."""
        return {name: x for name, x in self.state_dict().items() if not name.startswith("visual_model.backbone.")}

    def load_trained(self, state: Mapping[str, Tensor]) -> None:
        """Fills everything but the backbone. Raises ValueError, naming what is missing or too much."""
        mine = self.trained_state()
        given = {name: x for name, x in state.items() if not name.startswith("visual_model.backbone.")}
        missing, surplus = sorted(mine.keys() - given.keys()), sorted(given.keys() - mine.keys())
        if missing or surplus:
            raise ValueError(f"not the weights of this model: missing {missing[:3]}, too much {surplus[:3]}")
        wrong = [
            f"{n} {tuple(given[n].shape)}, here {tuple(x.shape)}" for n, x in mine.items() if given[n].shape != x.shape
        ]
        if wrong:
            raise ValueError(f"weights of another size: {'; '.join(wrong[:3])}")
        self.load_state_dict(given, strict=False)


def build_dino_text(
    backbone: Backbone,
    *,
    out_dim: int | None = None,
    head_depth: int = 2,
    head_drop_path: float = 0.3,
    vocabulary: int = 49_408,
    context: int = 77,
    text_dim: int = 1280,
    text_heads: int = 20,
    text_depth: int = 24,
) -> DinoText:
    """The model on a backbone, with numbers as at the start of training; defaults are those of the release.

    Any backbone with CLS and patch tokens will do; head and blocks take its width and number of heads.
    """
    dim = backbone.embed_dim
    heads = getattr(backbone, "num_heads", None) or max(dim // 64, 1)
    out_dim = 2 * dim if out_dim is None else out_dim
    head = VisionHead(dim, heads, out_dim=out_dim, depth=head_depth, drop_path=head_drop_path)
    tower = TextTransformer(
        vocabulary=vocabulary, context=context, dim=text_dim, num_heads=text_heads, depth=text_depth
    )
    model = DinoText(VisualModel(backbone, head), TextModel(tower, out_dim))
    model.init_weights()
    return model
