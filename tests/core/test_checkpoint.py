"""Saved whole or not at all, equal on any number of processes. As a script, this file is one of several processes."""

import errno
import logging
import os
import pickle
import shutil
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.tensor import DTensor

from core import checkpoint, dcp, distributed
from core.checkpoint import Checkpoints, export, export_teacher, load_teacher, load_teacher_file
from core.config import (
    Config,
    CropsConfig,
    CropSizes,
    DataConfig,
    DinoConfig,
    GramConfig,
    HeadConfig,
    IbotConfig,
    ModelConfig,
    ParallelConfig,
    to_json,
)
from core.data.batch import Batch
from core.distill import SelfDistillation, build
from core.models.layers import Block
from core.models.weights import load_backbone
from core.optimizer import build_optimizer, set_rates
from core.parallel import parallelize
from core.schedules import rates_at


def tiny_config(arch: str = "vit_nano", *, gram: bool = False, prototypes: int = 48) -> Config:
    head = HeadConfig(prototypes=prototypes, hidden=32, bottleneck=16)
    return Config(
        model=ModelConfig(arch=arch, drop_path=0.1 if arch == "vit_nano" else 0.0),
        dino=DinoConfig(head=head),
        ibot=IbotConfig(head=head),
        gram=GramConfig(use=gram),
        crops=CropsConfig(
            sizes=(CropSizes(global_size=32, local_size=32, gram_size=32 if gram else None),), num_local=2
        ),
        data=DataConfig(batch_size=12),
        parallel=ParallelConfig(precision="fp32", compile=False),
    )


def start(
    config: Config, world: distributed.World, seed: int = 0, *, device: str = "cpu"
) -> tuple[SelfDistillation, torch.optim.Optimizer]:
    """A run before its first step; from "meta" one that holds no numbers yet."""
    torch.manual_seed(seed)
    model = build(config, device=device)
    parallelize(model, config.parallel, world)
    if device == "meta":
        model.to_empty(device=world.device)
    return model, build_optimizer(model.student)


def take_step(model: SelfDistillation, optimizer: torch.optim.Optimizer, step: int, images: int = 2) -> None:
    """One step of training on noise; the same noise on every process."""
    torch.manual_seed(step)  # drop path
    noise = torch.Generator().manual_seed(step)
    crops = torch.randn(4 * images, 3, 32, 32, generator=noise)
    masks = torch.rand(2 * images, 4, generator=noise) < 0.5
    masks[:, 0] = True
    batch = Batch(
        crops[: 2 * images], crops[2 * images :], crops[: 2 * images] if model.config.gram.use else None, masks
    )
    rates = rates_at(20_000, model.config)
    total, _ = model(*model.look(batch, rates), rates)
    total.backward()
    set_rates(optimizer, rates)
    optimizer.step()
    optimizer.zero_grad()
    model.follow(0.9)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All numbers of a run, whole and on the CPU."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = dict(model.state_dict())
    for parameter, state in optimizer.state.items():
        tensors |= {f"{names[parameter]}/{key}": value for key, value in state.items()}
    whole = {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in tensors.items()}
    return {key: value.detach().cpu().clone() for key, value in whole.items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [key for key in found if found[key].dtype != expected[key].dtype or not found[key].equal(expected[key])]
    assert not different


ALONE = distributed.World(0, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after two steps, with a checkpoint of step 2; nobody writes into it."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    folder.mkdir()
    config = tiny_config()
    (folder / "config.json").write_text(to_json(config))
    model, optimizer = start(config, ALONE)
    for step in range(2):
        take_step(model, optimizer, step)
    checkpoints(folder).save(2, model, optimizer)
    torch.save(everything(model, optimizer), folder / "everything.pt")
    return folder


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A copy of that run folder to write into."""
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def checkpoints(folder: Path, *, keep: int = 3, keep_every: int = 0) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", keep=keep, keep_every=keep_every)


class Small(nn.Module):
    """The least that can be saved; for what concerns folders alone."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(2, 2)


def small() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Small()
    return model, torch.optim.AdamW(model.parameters(), fused=True)


# Going on


def test_a_resumed_run_goes_on_bit_for_bit(run):
    config = tiny_config()
    straight, resumed = start(config, ALONE), start(config, ALONE, seed=1)
    for step in range(2):
        take_step(*straight, step)
    checkpoints(run).load(2, *resumed)
    assert_same(everything(*resumed), everything(*straight))
    for pair in (straight, resumed):
        take_step(*pair, 2)
    assert_same(everything(*resumed), everything(*straight))


def test_a_checkpoint_before_the_first_step_has_no_moments(tmp_path):
    model, optimizer = small()
    checkpoints(tmp_path).save(0, model, optimizer)
    assert not optimizer.state  # torch's own get_state_dict would take a step of rate 0 here
    other, moved = small()
    other.student(torch.ones(2)).sum().backward()
    moved.step()
    checkpoints(tmp_path).load(0, other, moved)
    assert not moved.state and other.student.weight.equal(model.student.weight)


def test_torch_reads_the_checkpoint_without_us(run, tmp_path):
    dcp_to_torch_save(run / "checkpoints" / "2", tmp_path / "one.pt")
    found = torch.load(tmp_path / "one.pt", weights_only=True)
    expected = torch.load(run / "everything.pt", weights_only=True)
    assert found["step"] == 2
    assert found["model.teacher.backbone.cls_token"].equal(expected["teacher.backbone.cls_token"])
    key = "student.backbone.blocks.3.mlp.fc1.weight"
    assert found[f"optimizer.{key}.exp_avg"].equal(expected[f"{key}/exp_avg"])


@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_save_and_one_and_three_load_and_back(run_processes, own):
    """Numbers are equal to the last bit whichever number of processes saved and loads; rows are cut unevenly."""
    run_processes(__file__, 2, "save", own)
    expected = torch.load(own / "whole.pt", weights_only=True)
    model, optimizer = start(tiny_config(gram=True), ALONE, seed=5)
    checkpoints(own).load(12, model, optimizer)
    assert_same(everything(model, optimizer), expected)

    checkpoints(own).save(13, model, optimizer)
    run_processes(__file__, 3, "load", own)
    model, optimizer = start(tiny_config(gram=True), ALONE, seed=6)
    checkpoints(own).load(14, model, optimizer)
    assert_same(everything(model, optimizer), expected)

    backbone, heads = load_teacher(f"{own}@12")  # exported by two processes
    for name, part in {"backbone": backbone.state_dict(), **heads}.items():
        for key, tensor in part.items():
            assert tensor.equal(expected[f"teacher.{name}.{key}"]), key


# Folders


def test_retention_keeps_the_newest_and_every_so_many(tmp_path):
    saving, pair = checkpoints(tmp_path, keep=2, keep_every=4), small()
    for step in range(1, 8):
        assert saving.save(step, *pair) == tmp_path / "checkpoints" / str(step)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "6", "7"]
    assert saving.newest() == 7


def test_saving_a_step_again_replaces_it(tmp_path):
    model, optimizer = small()
    checkpoints(tmp_path).save(1, model, optimizer)
    nn.init.constant_(model.student.weight, 7)
    checkpoints(tmp_path).save(1, model, optimizer)
    other, moved = small()
    checkpoints(tmp_path).load(1, other, moved)
    assert other.student.weight.eq(7).all()
    assert os.listdir(tmp_path / "checkpoints") == ["1"]


def test_an_empty_or_absent_folder_has_no_newest(tmp_path):
    assert checkpoints(tmp_path).newest() is None
    with pytest.raises(FileNotFoundError, match=r"no whole checkpoint of step 3 in .*; there are: none"):
        checkpoints(tmp_path).load(3, *small())


def test_what_is_not_whole_is_named_and_left_aside_and_goes_later(tmp_path, caplog):
    saving, pair = checkpoints(tmp_path), small()
    whole = saving.save(4, *pair)
    shutil.copytree(whole, whole.with_name(".5.partial"))  # killed just before the rename
    shutil.copytree(whole, whole.with_name("6"))
    (whole.with_name("6") / ".metadata").unlink()  # copied by hand, and not all of it
    (whole.with_name("notes")).mkdir()
    with caplog.at_level(logging.WARNING):
        assert saving.newest() == 4
    assert "not whole, left aside: .5.partial, 6" in caplog.text and "notes" not in caplog.text
    saving.save(5, *pair)
    assert sorted(os.listdir(whole.parent)) == ["4", "5", "6", "notes"]
    saving.save(6, *pair)
    assert saving.newest() == 6


def test_the_name_appears_when_everything_is_there(tmp_path, monkeypatch):
    """The folder is renamed with all its files in it, and after its contents were forced to the disk."""
    events = []
    rename = Path.rename

    def renamed(path: Path, target: Path) -> Path:
        if path.is_dir():
            events.append((path.name, target.name, sorted(os.listdir(path))))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(checkpoint, "_sync", lambda folder: events.append(folder.name))
    checkpoints(tmp_path).save(3, *small())
    assert events == [".3.partial", (".3.partial", "3", [".metadata", "__0_0.distcp"]), "checkpoints"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_older_checkpoints(tmp_path, monkeypatch):
    saving, (model, optimizer) = checkpoints(tmp_path, keep=1), small()
    saving.save(1, model, optimizer)
    write = dcp.write

    def onto_a_full_disk(state: dict[str, Tensor], folder: Path) -> None:
        (folder / "__0_0.distcp").symlink_to("/dev/full")
        write(state, folder)

    monkeypatch.setattr(dcp, "write", onto_a_full_disk)
    with pytest.raises(OSError, match=r"checkpoint 2 was not written.*disk is full.*Untouched: 1") as caught:
        saving.save(2, model, optimizer)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path / "checkpoints") == ["1"]
    monkeypatch.undo()
    saving.load(1, model, optimizer)


def test_a_file_too_large_for_the_system_leaves_the_older_checkpoints(own):
    """The same through a real limit, with a checkpoint of many tensors that breaks off in the middle."""
    resource = pytest.importorskip("resource")
    model, optimizer = start(tiny_config(), ALONE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, hard))
    try:
        with pytest.raises(OSError, match=r"checkpoint 3 was not written.*Untouched: 2"):
            checkpoints(own).save(3, model, optimizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(own / "checkpoints") == ["2"]
    checkpoints(own).load(2, model, optimizer)
    assert_same(everything(model, optimizer), torch.load(own / "everything.pt", weights_only=True))


@pytest.mark.parametrize(("keep", "keep_every"), [(0, 0), (1, -1)])
def test_nonsense_retention_is_refused(tmp_path, keep, keep_every):
    with pytest.raises(ValueError, match="keep is at least 1"):
        Checkpoints(tmp_path, keep=keep, keep_every=keep_every)


# What does not fit


def test_another_architecture_is_refused_before_anything_changes(run):
    model, optimizer = start(tiny_config("vit_tiny"), ALONE)
    before = everything(model, optimizer)
    with pytest.raises(ValueError) as caught:
        checkpoints(run).load(2, model, optimizer)
    text = str(caught.value)
    assert "is of another model: it lacks model.student.backbone.blocks.10." in text
    assert "model.student.backbone.blocks.0.attn.proj.bias is [128] float32, here [192] float32" in text
    assert "Nothing was loaded; resume a run with the config.json it was started with" in text
    assert_same(everything(model, optimizer), before)


def test_other_heads_are_refused(run):
    with pytest.raises(ValueError, match=r"last_layer.weight is \[48, 16\] float32, here \[24, 16\] float32"):
        checkpoints(run).load(2, *start(tiny_config(prototypes=24), ALONE))


def test_what_the_checkpoint_has_too_much_is_refused(tmp_path):
    model, optimizer = small()
    model.register_buffer("memory", torch.zeros(3))
    checkpoints(tmp_path).save(1, model, optimizer)
    with pytest.raises(ValueError, match=r"it has model\.memory, which this model has not"):
        checkpoints(tmp_path).load(1, *small())


def test_moments_of_something_untrained_are_refused(tmp_path):
    model, optimizer = small()
    model.student(torch.ones(2)).sum().backward()
    optimizer.step()
    checkpoints(tmp_path).save(1, model, optimizer)
    partly = torch.optim.AdamW([model.student.weight], fused=True)
    with pytest.raises(ValueError, match=r"has moments of student\.bias, which this run does not train"):
        checkpoints(tmp_path).load(1, model, partly)


def test_a_renamed_folder_is_noticed(tmp_path):
    checkpoints(tmp_path).save(1, *small())
    (tmp_path / "checkpoints" / "1").rename(tmp_path / "checkpoints" / "9")
    with pytest.raises(ValueError, match="holds step 1: the folder was renamed"):
        checkpoints(tmp_path).load(9, *small())


def test_a_lost_or_damaged_file_is_named(tmp_path):
    path = checkpoints(tmp_path).save(1, *small())
    (path / "__0_0.distcp").unlink()
    with pytest.raises(ValueError, match=r"could not be read: .*No such file.*__0_0\.distcp.*move it away"):
        checkpoints(tmp_path).load(1, *small())
    (path / ".metadata").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match=r"\.metadata could not be read"):
        checkpoints(tmp_path).load(1, *small())


def test_a_description_that_would_run_code_is_refused(tmp_path):
    path = checkpoints(tmp_path).save(1, *small())

    class Trap:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "trapped"),)

    (path / ".metadata").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="code from a file is never run here"):
        checkpoints(tmp_path).load(1, *small())
    assert not (tmp_path / "trapped").exists()


def test_a_gram_teacher_stays_where_it_is(tmp_path, run, caplog):
    """A stage without one leaves it in the file; a stage with one keeps its own; the same stage goes on."""
    plain, with_gram = tiny_config(), tiny_config(gram=True)
    anchored, optimizer = start(with_gram, ALONE, seed=3)
    own = everything(anchored, optimizer)
    with caplog.at_level(logging.WARNING):
        checkpoints(run).load(2, anchored, optimizer)
    assert "has no Gram teacher: the model keeps the one it was built with" in caplog.text
    found = everything(anchored, optimizer)
    expected = torch.load(run / "everything.pt", weights_only=True)
    expected |= {key: tensor for key, tensor in own.items() if key.startswith("gram_teacher.")}
    assert len(expected) > len(own) and expected.keys() == found.keys()
    assert_same(found, expected)

    checkpoints(tmp_path).save(3, anchored, optimizer)
    again, fresh = start(with_gram, ALONE, seed=4)
    checkpoints(tmp_path).load(3, again, fresh)
    assert_same(everything(again, fresh), found)

    caplog.clear()
    free, fresh = start(plain, ALONE, seed=5)
    with caplog.at_level(logging.WARNING):
        checkpoints(tmp_path).load(3, free, fresh)
    assert "has a Gram teacher, this run uses none" in caplog.text
    assert_same(everything(free, fresh), torch.load(run / "everything.pt", weights_only=True))


# The teacher as a file


def in_plain_operators(backbone):
    """A teacher that rounds as every loaded backbone does, not as in training."""
    for block in backbone.modules():
        if isinstance(block, Block):
            block.fuse_always = False
    return backbone


@pytest.mark.parametrize("arch", ["vit_nano", "convnext_tiny"])
def test_an_export_is_the_teacher_bit_for_bit(tmp_path, arch):
    torch.manual_seed(0)
    model = build(tiny_config(arch))
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    file = export_teacher(model, tmp_path / "teacher" / "7.safetensors")
    found = load_teacher_file(str(file))
    assert list(found) == ["backbone", "dino_head", "ibot_head"]
    for name, module in model.teacher.items():
        assert_same(found[name], dict(module.state_dict()))
        module.load_state_dict(found[name])
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert load_backbone(file)(images).equal(in_plain_operators(model.teacher["backbone"])(images))
    assert os.listdir(tmp_path / "teacher") == ["7.safetensors"]


def test_half_an_export_is_the_rounded_teacher(tmp_path):
    model = build(tiny_config())
    file = export_teacher(model, tmp_path / "7.safetensors", dtype=torch.bfloat16)
    found = load_teacher_file(str(file))
    assert file.stat().st_size < 0.55 * export_teacher(model, tmp_path / "8.safetensors").stat().st_size
    for name, module in model.teacher.items():
        for key, tensor in module.state_dict().items():
            rounded = tensor if key.endswith("periods") else tensor.bfloat16().float()
            assert found[name][key].equal(rounded), key


def test_training_from_licensed_weights_carries_their_terms(tmp_path):
    model = build(tiny_config())
    (tmp_path / "dinov3_x").mkdir()
    torch.save(model.teacher["backbone"].state_dict(), tmp_path / "dinov3_x" / "dinov3_nano.pth")
    licensed = load_backbone(tmp_path / "dinov3_x" / "dinov3_nano.pth")
    assert "DINOv3" in licensed.source.licence
    model.teacher["backbone"].source = licensed.source
    again = load_backbone(export_teacher(model, tmp_path / "7.safetensors"))
    assert (again.source.licence, again.source.licence_url) == (licensed.source.licence, licensed.source.licence_url)


def test_a_run_names_its_teachers(own, tmp_path):
    """From the checkpoint where no file was exported; the newest without a step; the file where there is one."""
    expected = torch.load(own / "everything.pt", weights_only=True)
    from_checkpoint = load_teacher_file(str(own))
    assert list(from_checkpoint) == ["backbone", "dino_head", "ibot_head"]
    for name, state in from_checkpoint.items():
        for key, tensor in state.items():
            assert tensor.equal(expected[f"teacher.{name}.{key}"])

    model = build(tiny_config())
    export_teacher(model, own / "teacher" / "2.safetensors")
    export_teacher(build(tiny_config()), own / "teacher" / "1.safetensors")
    (own / "teacher" / ".3.77.safetensors").touch()  # a file under way
    at_two, newest = load_teacher_file(f"{own}@2"), load_teacher_file(str(own))
    assert at_two["backbone"]["cls_token"].equal(model.teacher["backbone"].cls_token)
    assert_same(newest["ibot_head"], at_two["ibot_head"])
    with pytest.raises(ValueError, match="has no teacher of step 5; there are: 1, 2"):
        load_teacher_file(f"{own}@5")


def test_weights_of_a_backbone_alone_have_no_heads(tmp_path):
    backbone = build(tiny_config()).teacher["backbone"]
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    found = load_teacher_file(str(tmp_path / "backbone.pth"))
    assert list(found) == ["backbone"]
    assert_same(found["backbone"], dict(backbone.state_dict()))


def test_an_official_training_export_keeps_its_heads(tmp_path):
    model = build(tiny_config())
    torch.save({"teacher": dict(model.teacher.state_dict())}, tmp_path / "teacher_checkpoint.pth")
    found = load_teacher_file(str(tmp_path / "teacher_checkpoint.pth"))
    assert list(found) == ["backbone", "dino_head", "ibot_head"]
    assert_same(found["dino_head"], dict(model.teacher["dino_head"].state_dict()))


def test_a_run_that_wrote_nothing_yet_says_so(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(to_json(tiny_config()))
    with pytest.raises(ValueError, match="neither an exported teacher nor a whole checkpoint"):
        load_teacher_file(str(tmp_path))


def test_a_checkpoint_of_another_config_says_so(own):
    (own / "config.json").write_text(to_json(tiny_config("vit_tiny")))
    with pytest.raises(ValueError, match=r"does not hold the backbone that .*config\.json describes"):
        load_teacher_file(str(own))


@pytest.mark.long
@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize(
    ("layout", "name"), [("official", "a.safetensors"), ("hf", "folder"), ("timm", "b.safetensors")]
)
def test_export_gives_the_same_features_in_every_layout(own, tmp_path, layout, name, exported):
    expected = torch.load(own / "everything.pt", weights_only=True)
    reference = in_plain_operators(build(tiny_config()).teacher["backbone"])
    prefix = "teacher.backbone."
    reference.load_state_dict({k.removeprefix(prefix): v for k, v in expected.items() if k.startswith(prefix)})
    if exported:
        model = build(tiny_config())
        model.teacher["backbone"].load_state_dict(reference.state_dict())
        export_teacher(model, own / "teacher" / "2.safetensors")
    out = export(own, 2, layout, tmp_path / name)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert load_backbone(out)(images).equal(reference(images))
    if layout == "official":
        assert load_file(out).keys() == reference.state_dict().keys()  # the names of the released files
        both = export(own, 2, layout, tmp_path / "both.safetensors", heads=True)
        assert list(load_teacher_file(str(both))) == ["backbone", "dino_head", "ibot_head"]


# Several processes


def save(run: Path) -> None:
    world = distributed.start("cpu", timeout=timedelta(seconds=100))
    config = tiny_config(gram=True)
    model, optimizer = start(config, world)
    for step in range(2):
        take_step(model, optimizer, step)
    checkpoints(run).save(12, model, optimizer)
    whole = everything(model, optimizer)
    export_teacher(model, run / "teacher" / "12.safetensors")
    if world.rank == 0:
        torch.save(whole, run / "whole.pt")
        assert any(isinstance(p, DTensor) for p in model.parameters())

    # One process meets an error: all say so, nothing remains, and the group goes on working.
    real = dcp.write

    def fails(state: dict[str, Tensor], folder: Path) -> None:
        if world.rank == 1:
            (folder / "__1_0.distcp").symlink_to("/dev/full")
        real(state, folder)

    dcp.write = fails
    with pytest.raises(OSError, match=r"disk is full; free some space, then resume\. Untouched: 2, 12"):
        checkpoints(run).save(15, model, optimizer)
    dcp.write = real
    assert checkpoints(run).newest() == 12
    distributed.barrier()
    distributed.stop()


def load(run: Path) -> None:
    world = distributed.start("cpu", timeout=timedelta(seconds=100))
    expected = torch.load(run / "whole.pt", weights_only=True)
    for step in (12, 13):  # saved by two, saved by one
        device = "cpu" if step == 12 else "meta"  # a large model need never be whole in any memory
        model, optimizer = start(tiny_config(gram=True), world, seed=step, device=device)
        checkpoints(run).load(step, model, optimizer)
        assert_same(everything(model, optimizer), expected)
    with pytest.raises(ValueError, match="is of another model"):
        checkpoints(run).load(12, *start(tiny_config(prototypes=24), world))
    checkpoints(run).save(14, model, optimizer)
    distributed.stop()


if __name__ == "__main__":
    warnings.simplefilter("error", FutureWarning)
    {"save": save, "load": load}[sys.argv[1]](Path(sys.argv[2]))
