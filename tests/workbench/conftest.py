"""Runs on disk for whatever looks at runs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core.config import Config, DataConfig, RunConfig, SourceConfig, to_json
from core.models import build_backbone
from core.probes import open_probes, write_probes


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Writes the folder of a run: metrics, evaluations and probes of untrained networks, which stand for checkpoints.

    sizes: long side of the probes at some steps, where it is not the image's own.
    """

    def make(
        folder: Path,
        *,
        steps: tuple[int, ...] = (0, 10, 20),
        seed: int = 0,
        probes: int = 3,
        sizes: dict[int, int] | None = None,
    ) -> Path:
        data = DataConfig(sources=(SourceConfig(path="tiny"),), batch_size=2)
        config = Config(name=folder.name, steps=100, data=data, run=RunConfig(probes=probes, probe_every=10))
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(to_json(config))
        lines = [
            {"step": step, "total": 9.0 - step / 10, "gram": None if step < 5 else 0.5} for step in range(0, 21, 5)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        images = open_probes(config)
        for step in steps:
            torch.manual_seed(seed + step)
            backbone = build_backbone("vit_nano", patch_size=8, depth=1).eval()
            write_probes(folder, step, backbone, images, size=(sizes or {}).get(step))
            place = folder / "evals" / str(step)
            place.mkdir(parents=True)
            (place / "incontext.json").write_text(json.dumps({"miou": 0.5 - step / 100, "iou/0": None}))
        return folder

    return make
