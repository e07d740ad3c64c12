"""The choice of a Gram teacher: what each candidate shows, and the stage that is written."""

import math
from dataclasses import replace

import numpy as np
import pytest

from core.config import RunConfig, load_config
from core.dense.degradation import local_distant
from core.doctor import check
from core.models.weights import load_backbone
from core.probes import open_probes
from core.run_folder import create
from workbench.picker import both_sizes, candidates, pictures, stage, write_stage
from workbench.runs import Run


def test_the_stage_continues_the_run_and_the_doctor_lets_it_pass(taught):
    config = stage(taught, 10)
    assert config.init.student == str(taught.folder) and config.gram.teacher == f"{taught.folder}@10"
    assert config.data == taught.config.data
    assert not [finding for finding in check(config) if finding.level == "red"]
    with pytest.raises(ValueError, match="no teacher of step 15; there are: 10, 20"):
        stage(taught, 15)


def test_candidates_are_measured_at_both_sizes(taught):
    first, second = candidates(taught, predict=False)
    assert (first.step, second.step) == (10, 20)
    assert first.loss is None and first.once != second.once
    probes = open_probes(taught.config)
    pairs = [both_sizes(taught.folder, 10, probe, None) for probe in probes]
    assert first.once["local_distant"] == pytest.approx(sum(local_distant(once) for once, _ in pairs) / 2, abs=1e-5)
    assert first.twice["local_distant"] == pytest.approx(sum(local_distant(twice) for _, twice in pairs) / 2, abs=1e-5)
    assert all(once.grid == twice.grid for once, twice in pairs)
    assert not any(math.isnan(value) for value in first.twice.values())


def test_pictures_of_a_probe_have_a_pixel_a_patch_and_colours_that_agree(taught):
    found = candidates(taught, [10, 10], predict=False)  # twice the same
    pairs = pictures(found, probe=1)
    seen = found[0].maps[1][0].valid
    grid = (int(seen.any(1).sum()), int(seen.any(0).sum()))
    assert all(picture.shape == (*grid, 3) and picture.dtype == np.uint8 for pair in pairs for picture in pair)
    assert np.abs(pairs[0][1].astype(int) - pairs[1][1]).max() <= 1
    assert not np.array_equal(pairs[0][0], pairs[0][1])


def test_the_stage_is_written_once_and_only_if_the_doctor_lets_it(taught, tmp_path):
    config = write_stage(taught, 20, tmp_path / "gram")
    assert load_config(tmp_path / "gram") == config == stage(taught, 20)
    with pytest.raises(FileExistsError, match="already holds the run"):
        write_stage(taught, 10, tmp_path / "gram")
    assert load_config(tmp_path / "gram") == config
    broken = Run(taught.folder, replace(taught.config, data=replace(taught.config.data, sources=())))
    with pytest.raises(ValueError, match="source-none"):
        write_stage(broken, 10, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.long
def test_the_predicted_loss_is_that_of_the_first_step(taught, tmp_path):
    from core.run_folder import read_metrics
    from core.train import train

    (found,) = candidates(taught, [10])
    config = replace(stage(taught, 10), steps=1, run=RunConfig(log_every=1))
    train(create(config, tmp_path / "gram"))
    assert read_metrics(tmp_path / "gram")[0]["gram"] == pytest.approx(found.loss, rel=0.01)


def test_probes_of_a_size_of_their_own(taught):
    probe = open_probes(taught.config)[0]
    once, twice = both_sizes(taught.folder, 20, probe, 64)
    assert max(once.grid) == 8 and twice.grid == once.grid
    assert load_backbone(taught.folder / "teacher" / "20.safetensors").patch_size == 8
