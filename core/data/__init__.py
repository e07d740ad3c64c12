"""Images for training: where they lie, in which order, what becomes of them. `core.data.loader.batches` does it all."""

from collections.abc import Callable
from pathlib import Path

from core.config import SourceConfig
from core.data.batch import Batch
from core.data.folder import Folder, image_files
from core.data.images import EXTENSIONS, BrokenImage, Source
from core.data.listing import expand
from core.data.saved import Saved
from core.data.shards import Shards

__all__ = ["DATASETS", "Batch", "BrokenImage", "Source", "detect", "open_source"]


def tiny(path: str | Path = "", split: str = "train", name: str = "") -> Source:
    """The 1488 photographs of 62 classes that come with the code, whatever the path."""
    return Shards(Path(__file__).parent / "tiny", split, name)


DATASETS: dict[str, Callable[[str | Path, str, str], Source]] = {
    "folder": Folder,
    "shards": Shards,
    "saved": Saved,
    "tiny": tiny,
}


def open_source(config: SourceConfig) -> Source:
    """The images that a configuration names. Raises ValueError or FileNotFoundError and says what was looked for."""
    path = Path(config.path).expanduser()
    kind = config.kind
    if kind == "auto":
        kind = "tiny" if config.path == "tiny" else detect(path)
    if kind not in DATASETS:
        raise ValueError(f"no kind of data set called {kind!r}; known: auto, {', '.join(DATASETS)}")
    return DATASETS[kind](path, config.split, config.name)


def detect(path: str | Path) -> str:
    """The entry of DATASETS that fits what lies at a path. Raises ValueError or FileNotFoundError when none does."""
    folder = Path(path)
    if folder.is_file() or (not folder.exists() and (any(c in str(path) for c in "*?[") or len(expand(str(path))) > 1)):
        if folder.suffix in (".tar", ".zip"):
            return "shards"
        raise ValueError(f"{path} is neither a .tar nor a .zip; give one of these, a pattern of them, or a folder")
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder or file {path}; without data of your own, 'tiny' is a set that is built in")
    if any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json")):
        return "saved"
    if any(file.suffix in (".tar", ".zip") for file in folder.iterdir()):
        return "shards"
    if next(image_files(folder), None) is not None:
        return "folder"
    raise ValueError(
        f"no images in {path}. Looked for: .tar or .zip files in it (shards); dataset_info.json, dataset_dict.json or "
        f"state.json (a data set of `datasets.save_to_disk`); {', '.join(EXTENSIONS)} in it or below it (a folder)"
    )
