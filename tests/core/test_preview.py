"""The first step of a run, known before it is started."""

import json
from dataclasses import replace

import pytest

from core.config import (
    Config,
    CropsConfig,
    CropSizes,
    DataConfig,
    HeadConfig,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    SourceConfig,
)
from core.preview import first_terms
from core.run_folder import create
from core.train import train

HEAD = HeadConfig(prototypes=32, hidden=16, bottleneck=8)


@pytest.fixture
def config() -> Config:
    base = Config(
        steps=2,
        model=ModelConfig(arch="vit_nano", patch_size=8, drop_path=0.2, layer_scale=0.1),
        crops=CropsConfig(sizes=(CropSizes(global_size=32, local_size=16),), num_local=2),
        data=DataConfig(sources=(SourceConfig(path="tiny"),), batch_size=4, workers=0),
        parallel=ParallelConfig(precision="fp32", compile=False),
        run=RunConfig(log_every=1, checkpoint_every=0, export_every=0),
    )
    return replace(base, dino=replace(base.dino, head=HEAD), ibot=replace(base.ibot, head=HEAD))


def logged(folder) -> dict[str, float]:
    with (folder / "metrics.jsonl").open() as file:
        return json.loads(file.readline())


def test_its_terms_are_those_that_training_logs(config, tmp_path):
    wanted = first_terms(config)
    train(create(config, tmp_path / "run"))
    found = logged(tmp_path / "run")
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)


def test_a_gram_stage_too(config, tmp_path):
    train(create(config, tmp_path / "first"))
    stage = replace(
        config,
        crops=replace(config.crops, sizes=(CropSizes(global_size=32, local_size=16, gram_size=64),)),
        init=replace(config.init, student=str(tmp_path / "first")),
        gram=replace(config.gram, use=True, teacher=str(tmp_path / "first")),
    )
    wanted = first_terms(stage)
    train(create(stage, tmp_path / "second"))
    assert logged(tmp_path / "second")["gram"] == pytest.approx(wanted["gram"], rel=0.01)
    assert wanted["gram"] > 0
