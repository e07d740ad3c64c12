"""Probes: the teacher's features of the same few images again and again while it trains, as packs for every view."""

import hashlib
import json
import logging
import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from core.config import Config, SourceConfig
from core.data import BrokenImage, Source, open_source
from core.dense.cards import card_of
from core.dense.degradation import DenseMap, Structure, dense_structure, panel
from core.dense.extract import DenseFeatures, extract
from core.dense.packs import SUFFIX, open_pack, pack_features, save_pack
from core.dense.reference import null_curves
from core.models import Backbone
from core.run_folder import replace_text

log = logging.getLogger(__name__)

READINGS = "panel.json"
PREVIEW_SCALE = 2  # pixels of the picture kept in a pack for one that the model sees: it is kept again every step
PAIRS = 4000  # random pairs kept in a pack: of small maps they would take most of its room
SEEDS = 3  # of the clusters of DSE


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


def write_probes(
    folder: Path, step: int, backbone: Backbone, probes: list[Probe], *, size: int | None = None, licence: str = ""
) -> None:
    """One pack a probe in `folder`/probes/<step>, named by number so that steps show the same images in one order, and
    beside them panel.json: what the label-free panel of dense quality says (`Readings`). licence: under which the packs
    may be passed on; without it that of the weights, which a run does not know."""
    card = replace(card_of(backbone), name=f"{folder.name} after {step} steps")
    card = replace(card, licence=licence, licence_url=None, notice=None) if licence else card
    place = folder / "probes" / str(step)
    maps = []
    for number, probe in enumerate(probes):
        features = extract(backbone, probe.pixels, size=size)
        pack = pack_features(
            features,
            card,
            probe,
            labels={"run": folder.name, "step": str(step)},
            preview=PREVIEW_SCALE * max(features.geometry.input_height, features.geometry.input_width),
            curves=partial(null_curves, features.patches, valid=features.valid, pairs=PAIRS),
        )
        path = place / f"{number:02d}-{Path(probe.name).stem}{SUFFIX}"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_pack(pack, path)
        maps.append(map_of(features))
    if maps:
        before = max((found for found in probe_steps(folder) if found < step), default=None)
        read = read_maps(maps, [] if before is None else packs_at(folder, before), before)
        replace_text(place / READINGS, json.dumps(asdict(read), indent=1).replace("NaN", "null") + "\n")


@dataclass(frozen=True, kw_only=True)
class Readings:
    """The panel at one step. `images`: each metric of every probe, in order; those that compare do so with step
    `against`, the probes before (None at the first ones). `together`: DSE and its parts, of all probes at once, and the
    spread (standard deviation) of DSE over seeds of its clusters. A number that there is not is null in the file and
    NaN here."""

    against: int | None
    images: dict[str, list[float]]
    together: dict[str, float]


def read_maps(maps: list[DenseMap], before: list[Path], against: int | None) -> Readings:
    """Measures the maps of all probes. before: their packs at step `against`; what has other images is not compared."""
    with torch.no_grad():
        references = [map_of(open_pack(path).features()) for path in before] if len(before) == len(maps) else None
        images = panel(maps, references)
        together: dict[str, float] = {}
        if len(maps) > 1:
            found = [dense_structure(maps, seed=seed) for seed in range(SEEDS)]
            together = dict(zip(Structure._fields, np.mean(found, axis=0).tolist(), strict=True))
            together["dse_spread"] = float(np.std([structure.dse for structure in found]))
    return Readings(against=against if references else None, images=images, together=together)


def map_of(features: DenseFeatures) -> DenseMap:
    """Features of a picture, ready to be measured; padded cells take no part."""
    cls = features.cls if bool(features.cls.isfinite().all()) else None
    return DenseMap(features.patches, cls, features.valid)


def probe_steps(folder: Path) -> list[int]:
    """Steps at which a run wrote probes, in order."""
    return sorted(int(path.name) for path in (folder / "probes").glob("*") if path.name.isdecimal())


def packs_at(folder: Path, step: int) -> list[Path]:
    """The packs of a step, one a probe, in order."""
    return sorted((folder / "probes" / str(step)).glob(f"*{SUFFIX}"))


def readings_at(folder: Path, step: int) -> Readings | None:
    """What panel.json of a step says, None where there is none. Raises ValueError for a damaged one."""
    path = folder / "probes" / str(step) / READINGS
    if not path.exists():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        images = {name: [_number(value) for value in values] for name, values in told["images"].items()}
        together = {name: _number(value) for name, value in told["together"].items()}
        return Readings(against=told["against"], images=images, together=together)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, the packs beside it are measured instead") from error


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
