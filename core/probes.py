"""Probes: the teacher's features of the same few images again and again while it trains, as packs for every view."""

import hashlib
import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from core.config import Config, SourceConfig
from core.data import BrokenImage, Source, open_source
from core.dense.cards import card_of
from core.dense.extract import extract
from core.dense.packs import SUFFIX, pack_features, save_pack
from core.models import Backbone

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Probe:
    """An image that every checkpoint looks at: its name in the pack and its pixels (height, width, 3) uint8."""

    name: str
    pixels: np.ndarray

    @cached_property
    def digest(self) -> str:
        """As for a photograph opened in the workbench: equal pictures share it."""
        content = hashlib.sha256(f"{self.pixels.shape}".encode())
        content.update(np.ascontiguousarray(self.pixels).data)
        return content.hexdigest()[:16]


def open_probes(config: Config) -> list[Probe]:
    """The probe images of a run: spread evenly over the validation split of its sources, or over all there is."""
    wanted, probes = config.run.probes, []
    for number, source in enumerate(config.data.sources):
        images = _held_out(source)
        share = wanted // len(config.data.sources) + (number < wanted % len(config.data.sources))
        for index in np.linspace(0, len(images) - 1, min(share, len(images)) + 2).astype(int)[1:-1].tolist():
            try:
                probes.append(Probe(Path(images.name(index)).name, np.asarray(images.read(index))))
            except BrokenImage as error:
                log.warning("a probe image is left out: %s", error)
    return probes


def _held_out(source: SourceConfig) -> Source:
    try:
        return open_source(replace(source, split="val"))
    except (ValueError, FileNotFoundError):
        return open_source(source)


def write_probes(folder: Path, step: int, backbone: Backbone, probes: list[Probe], *, size: int | None = None) -> None:
    """One pack a probe in `folder`/probes/<step>, named by number so that steps show the same images in one order."""
    card = replace(card_of(backbone), name=f"{folder.name} after {step} steps")
    for number, probe in enumerate(probes):
        features = extract(backbone, probe.pixels, size=size)
        pack = pack_features(features, card, probe, labels={"run": folder.name, "step": str(step)})
        path = folder / "probes" / str(step) / f"{number:02d}-{Path(probe.name).stem}{SUFFIX}"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_pack(pack, path)
