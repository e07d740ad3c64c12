"""The model of a text run, as at its start or with what it learned, and the tokenizer that goes with it."""

from pathlib import Path

from safetensors.torch import load_file

from core.checkpoint import load_teacher
from core.models import Backbone
from core.text.config import TextConfig, load_config
from core.text.model import DinoText, VisualModel, build_dino_text
from core.text.tokenizer import Tokenize, clip_tokenizer
from core.text.vision_head import VisionHead

WEIGHTS = "text.safetensors"
PRETRAINED = Path(__file__).parent / "pretrained"  # finished runs that come with the project


def build(config: TextConfig) -> tuple[DinoText, Tokenize]:
    """With the backbone's weights and all else as at the start of training."""
    backbone, _ = load_teacher(config.backbone)
    if config.tower == "minilm":
        return _with_sentences(backbone, config)
    model = build_dino_text(
        backbone,
        out_dim=config.out_dim,
        head_depth=config.head_depth,
        head_drop_path=config.head_drop_path,
        context=config.context,
        text_dim=config.text_dim,
        text_heads=config.text_heads,
        text_depth=config.text_depth,
    )
    return model, clip_tokenizer(config.context)


def _with_sentences(backbone: Backbone, config: TextConfig) -> tuple[DinoText, Tokenize]:
    """With MiniLM as a frozen text tower and a projection that is trained."""
    from core.text.sentence import SentenceModel, SentenceTokenizer, load_minilm

    dim = backbone.embed_dim
    heads = getattr(backbone, "num_heads", None) or max(dim // 64, 1)
    out_dim = 2 * dim if config.out_dim is None else config.out_dim
    head = VisionHead(dim, heads, out_dim=out_dim, depth=config.head_depth, drop_path=config.head_drop_path)
    model = DinoText(VisualModel(backbone, head), SentenceModel(load_minilm(), out_dim))
    model.init_weights()
    return model, SentenceTokenizer()


def load_text(folder: Path) -> tuple[DinoText, Tokenize]:
    """What a run learned, ready to be asked, from its folder. Raises FileNotFoundError for one that is not finished."""
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder} holds no finished text run: there is no {WEIGHTS}")
    model, tokenizer = build(load_config(folder))
    model.load_trained({name: x.float() for name, x in load_file(folder / WEIGHTS).items()})
    return model.eval(), tokenizer
