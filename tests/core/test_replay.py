"""Replay: a step that went wrong is kept whole, runs again the same, and its first bad tensor is named."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core import distributed, replay
from core.config import Config, to_json
from core.data.batch import Batch
from core.recipes import recipe
from core.replay import Report, load_batch, save_batch
from core.run_folder import create, read_metrics

STEPS = 6


def small() -> Config:
    """The smoke recipe with drop path, so that a step depends on its random numbers; a checkpoint every 4 steps."""
    base = recipe("smoke")
    return replace(
        base,
        steps=STEPS,
        model=replace(base.model, drop_path=0.3),
        run=replace(base.run, checkpoint_every=4, export_every=0, keep=9, log_every=1),
    )


def make_batch(images: int = 3, gram: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def crops(count: int, side: int) -> torch.Tensor:
        return torch.randn(count * images, 3, side, side, generator=generator)

    masks = torch.rand(2 * images, 16, generator=generator) < 0.4
    return Batch(crops(2, 32), crops(4, 16), crops(2, 64) if gram else None, masks, broken=("a.jpg: cut off",))


def same(a: Batch, b: Batch) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in ("global_crops", "local_crops", "gram_crops", "masks")]
    return a.broken == b.broken and all(
        (x is None and y is None) or (x is not None and torch.equal(x, y)) for x, y in pairs
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of six steps with checkpoints after 4 and 6."""
    from core.train import train

    folder = create(small(), tmp_path_factory.mktemp("runs") / "run")
    train(folder)
    return folder


# Keeping


@pytest.mark.parametrize("gram", [False, True])
def test_a_kept_batch_comes_back_bit_for_bit(tmp_path, gram):
    create(small(), tmp_path)
    batch = make_batch(gram=gram)
    place = save_batch(tmp_path, 3, batch, {"total": torch.tensor(float("nan")), "ibot": 2.5})
    assert place == tmp_path / "nonfinite" / "3"
    assert sorted(path.name for path in place.iterdir()) == ["batch.safetensors", "step.json"]
    assert same(load_batch(place), batch)
    record = json.loads((place / "step.json").read_text())
    assert (record["step"], record["checkpoint"], record["processes"]) == (3, None, 1)
    assert record["terms"] == {"total": "nan", "ibot": "2.5"}
    assert record["rates"]["teacher_temp"] > 0


@pytest.mark.long
def test_the_checkpoint_before_the_step_is_named(trained, tmp_path):
    for step, checkpoint in ((3, None), (4, 4), (5, 4)):
        place = save_batch(trained, step, make_batch(), {})
        assert json.loads((place / "step.json").read_text())["checkpoint"] == checkpoint
        for path in place.iterdir():
            path.unlink()
        place.rmdir()


def test_processes_keep_their_parts_and_replay_sees_them_together(tmp_path, monkeypatch):
    create(small(), tmp_path)
    whole = make_batch(images=6, gram=True)
    whole = replace(whole, broken=())
    monkeypatch.setattr(distributed, "size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "is_main", lambda rank=rank: rank == 0)
        place = save_batch(tmp_path, 3, whole.images(slice(3 * rank, 3 * rank + 3)), {})
    assert same(load_batch(place), whole)
    (place / "batch-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"batch-1\.safetensors is missing: 2 processes kept what they saw"):
        load_batch(place)


# Replaying


def run_again(folder: Path, step: int | None = None) -> Report:
    return replay.replay(folder, step, say=lambda text: None)


@pytest.mark.long
@pytest.mark.parametrize(("step", "checkpoint"), [(0, 0), (3, 0), (4, 4), (5, 4)])
def test_any_step_of_a_run_runs_again_the_same(trained, step, checkpoint):
    report = run_again(trained, step)
    line = read_metrics(trained)[step]
    assert (report.checkpoint, report.kept, report.finite) == (checkpoint, False, True)
    assert report.terms == {name: line[name] for name in report.terms}
    assert report.norms == pytest.approx({name: line[f"grad_norm_{name}"] for name in report.norms}, rel=1e-6)
    assert "All is finite this time" in report.text()


def poisoned(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, whose nonfinite folder and weights a test may spoil."""
    import shutil

    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.long
def test_a_bad_pixel_is_found_in_the_batch(trained, tmp_path):
    folder = poisoned(trained, tmp_path)
    batch = make_batch(images=8)
    batch.local_crops[5, 0, 3, 3] = float("nan")
    save_batch(folder, 5, batch, {"total": torch.tensor(float("nan"))})
    report = run_again(folder)
    assert (report.step, report.checkpoint, report.kept) == (5, 4, True)
    assert report.inputs == ["local_crops"]
    assert report.forward[0] == "student.backbone.patch_embed.proj"
    assert math.isnan(report.terms["dino_local"]) and math.isfinite(report.terms["dino_global"])
    assert "It began in the batch: local_crops." in report.text()


@pytest.mark.long
@pytest.mark.parametrize("drop_path", [0.3, 0.0])  # without, blocks may compute in one piece
def test_a_weight_that_overflows_is_found_where_it_stands(trained, tmp_path, drop_path):
    from core.checkpoint import Checkpoints
    from core.distill import build
    from core.optimizer import build_optimizer

    folder, config = poisoned(trained, tmp_path), small()
    config = replace(config, model=replace(config.model, drop_path=drop_path))
    (folder / "config.json").write_text(to_json(config))
    model, optim = build(config), config.optim
    optimizer = build_optimizer(
        model.student, betas=optim.betas, layer_decay=optim.layer_decay, patch_embed_lr=optim.patch_embed_lr
    )
    checkpoints = Checkpoints(folder / "checkpoints", keep=9)
    checkpoints.load(4, model, optimizer)
    with torch.no_grad():
        model.student["backbone"].blocks[3].mlp.fc1.bias += 3e38  # a number still, and times fc2 no longer
        model.student["backbone"].blocks[3].mlp.fc2.weight.fill_(10.0)
    checkpoints.save(4, model, optimizer)
    report = run_again(folder, 4)
    assert report.weights == report.inputs == []
    assert report.forward[0] == "student.backbone.blocks.3.mlp.fc2"
    assert not any(name.startswith("teacher") for name in report.forward)
    assert "It began in the forward pass: student.backbone.blocks.3.mlp.fc2." in report.text()


@pytest.mark.long
def test_bad_weights_are_told_from_a_bad_step(trained, tmp_path):
    folder = poisoned(trained, tmp_path)
    from core import distill

    original = distill.build

    def spoiled(config, **options):
        model = original(config, **options)
        with torch.no_grad():
            model.student["dino_head"].mlp[2].bias[0] = float("inf")
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill, "build", spoiled)
        report = run_again(folder, 0)
    assert report.weights == ["student.dino_head.mlp.2.bias"]
    assert "It began in the weights, before the step: student.dino_head.mlp.2.bias." in report.text()


@pytest.mark.long
def test_a_gradient_that_is_no_number_is_traced_to_its_term(trained, monkeypatch):
    from core import distill

    def rooted(cls, **options):
        return (cls - cls.detach()).square().sum().sqrt()  # 0, and its slope there is infinite

    monkeypatch.setattr(distill, "koleo", rooted)
    report = run_again(trained, 4)
    assert report.forward == []
    assert report.terms["koleo"] == 0 and all(map(math.isfinite, report.terms.values()))
    assert list(report.term_gradients) == ["koleo"]
    assert report.backward[:2] == ["student.backbone", "student.backbone.norm"]
    assert math.isnan(report.norms["backbone"]) and math.isfinite(report.norms["dino_head"])
    text = report.text()
    assert "  koleo 0, gradients not finite: backbone." in text
    assert "  ibot" in text and "gradients finite" in text


@pytest.mark.long
def test_a_term_that_is_no_number_is_named_before_its_gradients(trained, monkeypatch):
    from core import distill

    monkeypatch.setattr(distill, "koleo", lambda cls, **options: (cls.detach().sum() * 0 + cls.sum() * 0).log())
    report = run_again(trained, 4)
    assert "It began in the loss: koleo." in report.text()


@pytest.mark.long
def test_parts_of_a_batch_and_bf16_are_replayed_too(tmp_path):
    from core.train import train

    config = small()
    config = replace(config, steps=2, parallel=replace(config.parallel, precision="bf16", accumulate=2))
    folder = create(config, tmp_path / "run")
    train(folder)
    distributed.stop()
    report = run_again(folder, 1)
    line = read_metrics(folder)[1]
    assert report.finite
    assert report.terms == pytest.approx({name: line[name] for name in report.terms}, rel=1e-5)


@pytest.mark.long
def test_a_run_that_stops_leaves_what_replay_needs(trained, tmp_path, monkeypatch):
    """The loop itself: a loss that is no number at step 5, then a replay that names the term."""
    from core import distill, train

    folder = create(small(), tmp_path / "run")
    plain, calls = distill.ibot, []

    def failing(*arguments, **options):
        calls.append(1)
        loss = plain(*arguments, **options)
        return loss / 0 if len(calls) == STEPS else loss

    monkeypatch.setattr(distill, "ibot", failing)
    with pytest.raises(FloatingPointError, match=r"step 5: not finite: .*ibot.*gramscope replay"):
        train.train(folder)
    calls[:] = range(STEPS - 2)  # step 4 is well, step 5 is not

    def failing_from_now(*arguments, **options):
        calls.append(1)
        return plain(*arguments, **options) / (len(calls) < STEPS)

    monkeypatch.setattr(distill, "ibot", failing_from_now)
    report = run_again(folder)
    assert (report.step, report.checkpoint, report.kept) == (5, 4, True)
    assert "It began in the loss: ibot." in report.text()
    line = read_metrics(trained)[5]
    assert report.terms["dino_global"] == line["dino_global"]  # as an undisturbed run computes it


def test_what_cannot_be_replayed_is_said(trained, tmp_path):
    with pytest.raises(ValueError, match=r"no step of .* was not finite; name one of its steps with --step"):
        run_again(trained)
    with pytest.raises(ValueError, match=r"the steps of .* are 0 to 5, got 6"):
        run_again(trained, 6)
