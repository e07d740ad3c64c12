"""Probes of a run: the same images at every step, as packs that views open."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.config import Config, DataConfig, RunConfig, SourceConfig
from core.dense.degradation import PANEL, dense_structure, gram_distance, panel
from core.dense.extract import extract
from core.dense.packs import open_pack
from core.models import build_backbone
from core.probes import map_of, open_probes, packs_at, probe_steps, readings_at, write_probes


@pytest.fixture
def folder(tmp_path) -> Path:
    draw = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 5)):
        (tmp_path / "images" / split / "thing").mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(0, 255, (40, 56, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / split / "thing" / f"{split}{number}.png")
    return tmp_path / "images"


def config(folder: Path, **settings) -> Config:
    data = DataConfig(sources=(SourceConfig(path=str(folder)),), batch_size=2)
    return replace(Config(), data=data, run=RunConfig(**settings))


def test_probes_are_held_out_and_the_same_every_time(folder):
    probes = open_probes(config(folder, probes=3))
    assert len(probes) == 3
    assert all(probe.name.startswith("val") for probe in probes)
    assert [probe.digest for probe in open_probes(config(folder, probes=3))] == [probe.digest for probe in probes]


def test_without_a_validation_split_training_images_serve(folder):
    for path in (folder / "val" / "thing").iterdir():
        path.unlink()
    (folder / "val" / "thing").rmdir()
    (folder / "val").rmdir()
    probes = open_probes(config(folder / "train", probes=2))
    assert all(probe.name.startswith("train") for probe in probes)


def test_a_broken_probe_is_left_out(folder):
    for path in (folder / "val" / "thing").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert open_probes(config(folder, probes=2)) == []


def test_more_probes_than_images_are_all_images(folder):
    assert len(open_probes(config(folder, probes=50))) == 5


def test_packs_hold_the_features_and_say_which_step(folder, tmp_path):
    backbone = build_backbone("vit_nano", patch_size=8, depth=1).eval()
    probes = open_probes(config(folder, probes=2))
    write_probes(tmp_path / "run", 40, backbone, probes)
    paths = packs_at(tmp_path / "run", 40)
    assert [path.name[:3] for path in paths] == ["00-", "01-"]
    pack = open_pack(paths[0])
    assert (pack.rows, pack.cols) == (5, 7)
    assert pack.labels == {"run": "run", "step": "40"}
    assert pack.picture == {"name": probes[0].name, "digest": probes[0].digest}
    patches = extract(backbone, probes[0].pixels).patches
    decoded = pack.rows_of(0, 5)
    cosine = np.einsum("hwd,hwd->hw", decoded, patches.numpy())
    cosine /= np.linalg.norm(decoded, axis=-1) * np.linalg.norm(patches.numpy(), axis=-1)
    assert cosine.min() > 0.999


def test_the_panel_lies_beside_the_packs_and_compares_with_the_probes_before(folder, tmp_path):
    backbones = [build_backbone("vit_nano", patch_size=8, depth=1).eval() for _ in range(2)]
    probes, run = open_probes(config(folder, probes=3)), tmp_path / "run"
    for step, backbone in zip((0, 40), backbones, strict=True):
        write_probes(run, step, backbone, probes)
    assert probe_steps(run) == [0, 40]
    first, second = readings_at(run, 0), readings_at(run, 40)
    assert (first.against, second.against) == (None, 0)
    assert set(first.images) == {name for name, metric in PANEL.items() if not metric.reference}
    assert set(second.images) == set(PANEL)
    maps = [[map_of(extract(backbone, probe.pixels)) for probe in probes] for backbone in backbones]
    for name, values in panel(maps[1]).items():
        assert second.images[name] == pytest.approx(values, nan_ok=True), name
    wanted = [gram_distance(new, old) for new, old in zip(maps[1], maps[0], strict=True)]
    assert second.images["gram_distance"] == pytest.approx(wanted, rel=0.02)  # the ones before in eight bits
    of_seeds = [dense_structure(maps[1], seed=seed).dse for seed in range(3)]
    assert second.together["dse"] == pytest.approx(np.mean(of_seeds))
    assert second.together["dse_spread"] == pytest.approx(np.std(of_seeds))


def test_other_probes_than_before_are_not_compared(folder, tmp_path):
    backbone = build_backbone("vit_nano", patch_size=8, depth=1).eval()
    write_probes(tmp_path / "run", 0, backbone, open_probes(config(folder, probes=2)))
    write_probes(tmp_path / "run", 5, backbone, open_probes(config(folder, probes=3)))
    assert readings_at(tmp_path / "run", 5).against is None


def test_a_number_that_there_is_not_survives_the_file(folder, tmp_path):
    backbone = build_backbone("vit_nano", patch_size=8, depth=1).eval()
    write_probes(tmp_path / "run", 0, backbone, open_probes(config(folder, probes=1)), size=16)  # 1 x 2 patches
    text = (tmp_path / "run" / "probes" / "0" / "panel.json").read_text()
    assert "NaN" not in text and "null" in text
    found = readings_at(tmp_path / "run", 0)
    assert np.isnan(found.images["local_distant"][0]) and found.together == {}


def test_a_damaged_panel_says_so_and_a_missing_one_is_none(folder, tmp_path):
    backbone = build_backbone("vit_nano", patch_size=8, depth=1).eval()
    write_probes(tmp_path / "run", 0, backbone, open_probes(config(folder, probes=1)))
    path = tmp_path / "run" / "probes" / "0" / "panel.json"
    path.write_text(path.read_text()[:30])
    with pytest.raises(ValueError, match=r"panel\.json is damaged"):
        readings_at(tmp_path / "run", 0)
    path.unlink()
    assert readings_at(tmp_path / "run", 0) is None
