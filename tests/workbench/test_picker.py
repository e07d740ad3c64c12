"""The choice of a Gram teacher: what each candidate shows, and the stage that is written."""

import math
from dataclasses import replace

import pytest
import torch

from core.config import RunConfig
from core.dense.degradation import local_distant
from core.distill import build
from core.doctor import check
from core.models.weights import load_backbone, save_backbone
from core.probes import open_probes
from core.recipes import recipe
from core.run_folder import create
from workbench.picker import both_sizes, candidates, stage
from workbench.runs import Run, open_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run of nano_pretrain's shape with teachers of two steps; nothing was learned."""
    config = replace(recipe("nano_pretrain"), run=RunConfig(probes=2))
    folder = create(config, tmp_path_factory.mktemp("runs") / "nano")
    for step in (10, 20):
        torch.manual_seed(step)
        student = build(config).student
        heads = {name: module.state_dict() for name, module in student.items() if name != "backbone"}
        path = folder / "teacher" / f"{step}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_backbone(student["backbone"], path, heads=heads)
    return open_run(folder)


def test_the_stage_continues_the_run_and_the_doctor_lets_it_pass(run):
    config = stage(run, 10)
    assert config.init.student == str(run.folder) and config.gram.teacher == f"{run.folder}@10"
    assert config.data == run.config.data
    assert not [finding for finding in check(config) if finding.level == "red"]
    with pytest.raises(ValueError, match="no teacher of step 15; there are: 10, 20"):
        stage(run, 15)


def test_candidates_are_measured_at_both_sizes(run):
    first, second = candidates(run, predict=False)
    assert (first.step, second.step) == (10, 20)
    assert first.loss is None and first.once != second.once
    probes = open_probes(run.config)
    pairs = [both_sizes(run.folder, 10, probe, None) for probe in probes]
    assert first.once["local_distant"] == pytest.approx(sum(local_distant(once) for once, _ in pairs) / 2, abs=1e-5)
    assert first.twice["local_distant"] == pytest.approx(sum(local_distant(twice) for _, twice in pairs) / 2, abs=1e-5)
    assert all(once.grid == twice.grid for once, twice in pairs)
    assert not any(math.isnan(value) for value in first.twice.values())


@pytest.mark.long
def test_the_predicted_loss_is_that_of_the_first_step(run, tmp_path):
    from core.run_folder import read_metrics
    from core.train import train

    (found,) = candidates(run, [10])
    config = replace(stage(run, 10), steps=1, run=RunConfig(log_every=1))
    train(create(config, tmp_path / "gram"))
    assert read_metrics(tmp_path / "gram")[0]["gram"] == pytest.approx(found.loss, rel=0.01)


def test_probes_of_a_size_of_their_own(run):
    probe = open_probes(run.config)[0]
    once, twice = both_sizes(run.folder, 20, probe, 64)
    assert max(once.grid) == 8 and twice.grid == once.grid
    assert load_backbone(run.folder / "teacher" / "20.safetensors").patch_size == 8
