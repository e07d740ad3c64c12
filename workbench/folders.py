"""The features of a whole folder of pictures: in order, in batches, and from the cache where it has them."""

import dataclasses
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from core.dense.extract import DenseFeatures, Progress, extract_many
from core.dense.inputs import MAX_SIDE, layer_index, picture_geometry
from core.dense.store import FeatureFolder, FeatureKey, weights_digest
from core.models import Backbone
from workbench.images import SUFFIXES, BadImage, Photo, load_folder

Result = tuple[str, DenseFeatures | BadImage]


def extract_folder(
    backbone: Backbone,
    folder: str | os.PathLike[str],
    *,
    size: int | None = None,
    layer: int = -1,
    norm: bool = True,
    cache: FeatureFolder | None = None,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """File name and features of every picture of a folder, by name; a BadImage in place of each that cannot be used.

    Arguments as in `core.dense.extract.extract`. Small neighbours of one shape share a pass. Pictures that `cache`
    holds are not run again, the others are added to it. Pictures are opened as the iterator advances and let go
    again; `progress` is told "pictures". Raises BadImage when there is no such folder and ValueError for a layer or
    a size that is not there, both at once and not when the iterator is first used.
    """
    photos = load_folder(folder)
    layer = layer_index(backbone, layer)
    if size is not None and not 1 <= size <= MAX_SIDE:
        raise ValueError(f"size is the long side of the model input, 1 to {MAX_SIDE} px, got {size}")
    total = sum(file.suffix.lower() in SUFFIXES and file.name[0] != "." for file in Path(folder).iterdir())
    results = _Folder(backbone, photos, size, layer, norm, cache).results()
    return results if progress is None else _told(results, total, progress)


def _told(results: Iterator[Result], total: int, progress: Progress) -> Iterator[Result]:
    for done, result in enumerate(results, start=1):
        progress(done, total, "pictures")
        yield result


@dataclasses.dataclass
class _Folder:
    """One walk through a folder: what has been opened and not handed out yet, in order."""

    backbone: Backbone
    photos: Iterator[Photo | BadImage]
    size: int | None
    layer: int
    norm: bool
    cache: FeatureFolder | None
    # Names with their result, or with the key (None without a cache) under which it is being computed.
    opened: deque[tuple[str, DenseFeatures | BadImage | FeatureKey | None]] = dataclasses.field(default_factory=deque)
    ended: bool = False

    def __post_init__(self) -> None:
        self.weights = weights_digest(self.backbone) if self.cache is not None else ""

    def results(self) -> Iterator[Result]:
        while not self.ended:
            run = self._to_compute()
            for features in extract_many(self.backbone, run, size=self.size, layer=self.layer, norm=self.norm):
                yield from self._settled()
                name, key = self.opened.popleft()
                if isinstance(key, FeatureKey) and self.cache is not None:
                    self.cache.put(key, features)
                yield name, features
            yield from self._settled()

    def _settled(self) -> Iterator[Result]:
        """What can be handed out before the next result that is being computed."""
        while self.opened:
            name, result = self.opened[0]
            if not isinstance(result, DenseFeatures | BadImage):
                return
            self.opened.popleft()
            yield name, result

    def _to_compute(self) -> Iterator[Photo]:
        """Pictures up to the first that the cache holds: two sets of features never pile up behind one another."""
        for photo in self.photos:
            if isinstance(photo, Photo) and self.size is None and max(photo.size) > MAX_SIDE:
                too_large = f"{photo.size[0]}x{photo.size[1]} pixels are too many; pass size={MAX_SIDE} or less."
                photo = BadImage(photo.name, too_large)
            if isinstance(photo, BadImage):
                self.opened.append((photo.name, photo))
                continue
            key = self._key(photo)
            if (features := self._cached(photo, key)) is not None:
                self.opened.append((photo.name, features))
                return
            self.opened.append((photo.name, key))
            yield photo
        self.ended = True

    def _key(self, photo: Photo) -> FeatureKey | None:
        if self.cache is None:
            return None
        return FeatureKey(picture=photo.digest, weights=self.weights, layer=self.layer, norm=self.norm, size=self.size)

    def _cached(self, photo: Photo, key: FeatureKey | None) -> DenseFeatures | None:
        if self.cache is None or key is None or (features := self.cache.get(key)) is None:
            return None
        # Equal pixels may lie turned in one file and upright in another.
        geometry = picture_geometry(self.backbone, photo, size=self.size, layer=self.layer)
        return dataclasses.replace(features, geometry=geometry)
