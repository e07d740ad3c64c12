import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.config import Config, CropsConfig, CropSizes, DataConfig, IbotConfig, ModelConfig, SourceConfig
from core.data.batch import Batch
from core.data.loader import Steps, batches
from core.data.order import PASS, index_at, key_of

MODEL = ModelConfig(arch="vit_nano", patch_size=8)


def config(*sources: SourceConfig, batch_size: int = 8, workers: int = 0, seed: int = 0, **crops) -> Config:
    crops = {"sizes": (CropSizes(global_size=32, local_size=16),), "num_local": 3} | crops
    data = DataConfig(sources=sources or (SourceConfig(path="tiny"),), batch_size=batch_size, workers=workers)
    return Config(seed=seed, model=MODEL, crops=CropsConfig(**crops), data=data)


def take(settings: Config, count: int, **options) -> list[Batch]:
    with batches(settings, **options) as loader:
        return [next(loader) for _ in range(count)]


def same(one: Batch, other: Batch) -> bool:
    names = ("global_crops", "local_crops", "masks")
    equal = all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)
    grams = (one.gram_crops, other.gram_crops)
    return equal and one.broken == other.broken and (None in grams or torch.equal(*grams))


@pytest.fixture(autouse=True)
def others() -> None:
    """What other files of tests keep running, such as a server, counts in nothing here."""
    OTHERS.clear()
    OTHERS.update(children())


OTHERS: set[int] = set()


def children() -> set[int]:
    """Processes whose parent this one is since the test began, without those that have ended."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields["PPid"]) == os.getpid() and not fields["State"].startswith("Z"):
            found.add(int(fields["Pid"]))
    return found - OTHERS


@pytest.fixture
def folder(tmp_path):
    """Twelve gray pictures, each of a level of its own."""
    for number in range(12):
        path = tmp_path / "images" / f"class{number % 3}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (20 * number,) * 3).save(path)
    return tmp_path / "images"


def plain(path: Path, **options) -> Config:
    """Crops that show nothing but which picture they are of."""
    quiet = {"jitter": 0.0, "grayscale": 0.0, "blur": (0.0, 0.0, 0.0), "solarize": 0.0}
    return config(SourceConfig(path=str(path)), **quiet | options)


def levels(batch: Batch) -> list[int]:
    """Which of the gray pictures the batch shows."""
    red = batch.global_crops[: batch.num_images, 0].mean(dim=(1, 2)) * 0.229 + 0.485
    return (red * 255 / 20).round().int().tolist()


def test_a_batch_has_the_promised_shapes():
    (batch,) = take(config(), 1)
    assert batch.num_images == 8 and batch.global_crops.shape == (16, 3, 32, 32)
    assert batch.local_crops.shape == (24, 3, 16, 16) and batch.gram_crops is None
    assert batch.masks.shape == (16, 16) and batch.masks.any(dim=1).sum() == 8
    assert batch.global_crops.dtype == torch.float32 and batch.masks.dtype == torch.bool


def test_gram_crops_come_along():
    (batch,) = take(config(sizes=(CropSizes(global_size=32, local_size=16, gram_size=48),), gram_distorted=False), 1)
    assert batch.gram_crops is not None and batch.gram_crops.shape == (16, 3, 48, 48)


def test_starting_later_is_the_same_as_skipping():
    whole = take(config(), 5)
    assert all(map(same, whole[3:], take(config(), 2, first_step=3)))
    assert not same(whole[0], whole[1]) and not same(whole[0], take(config(seed=1), 1)[0])


def test_workers_make_bitwise_the_same_batches():
    none = take(config(), 4)
    for workers in (1, 2):
        assert all(map(same, none, take(config(workers=workers), 4)))


@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_see_the_images_of_one(world):
    for step, whole in enumerate(take(config(), 2)):
        parts = [take(config(), 1, first_step=step, rank=rank, size=world)[0] for rank in range(world)]
        for rank, part in enumerate(parts):
            mine = whole.images(slice(rank * 8 // world, (rank + 1) * 8 // world))
            # To within rounding: how many crops are blurred together decides how a product is summed.
            torch.testing.assert_close(part.global_crops, mine.global_crops, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(part.local_crops, mine.local_crops, atol=1e-5, rtol=1e-5)


def test_processes_mask_apart():
    first, second = (take(config(), 1, rank=rank, size=2)[0].masks for rank in range(2))
    assert not torch.equal(first, second)


def test_a_pass_shows_every_image_once(folder):
    shown = [level for batch in take(plain(folder, batch_size=4), 6) for level in levels(batch)]
    assert sorted(shown[:12]) == sorted(shown[12:]) == list(range(12)) and shown[:12] != shown[12:]
    by_path = [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    assert shown[:12] == [by_path[index] for index in index_at(np.arange(12), 12, key_of(0, PASS, 0))]
    assert shown == [level for batch in take(plain(folder, batch_size=8), 3) for level in levels(batch)]


def test_broken_images_are_replaced_and_named(folder):
    (folder / "class1" / "04.png").write_bytes(b"broken")
    (folder / "class2" / "05.png").unlink()
    (folder / "class2" / "05.png").mkdir()  # no file at all
    settings = plain(folder, batch_size=4)
    shown = take(settings, 6)
    names = [name for batch in shown for name in batch.broken]
    assert all(levels(batch)[i] not in (4, 5) for batch in shown for i in range(4))
    assert len(names) >= 2 and all("class1/04.png: no picture in a known format" in name for name in names)
    assert all(map(same, shown, take(replace(settings, data=replace(settings.data, workers=2)), 6)))


def test_a_source_without_a_readable_image_is_an_error(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"64 images in a row could not be read, the last one .*\.png: no picture"):
        take(plain(folder), 1)
    with pytest.raises(ValueError, match="64 images in a row"):
        take(plain(folder, workers=1), 1)
    assert not children()


def test_two_sources_mix_by_weight_and_take_turns(folder, tmp_path):
    (tmp_path / "white" / "x").mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (40, 40), (255,) * 3).save(tmp_path / "white" / "x" / f"{number}.png")
    base = plain(folder, batch_size=8)
    white = SourceConfig(path=str(tmp_path / "white"), weight=2.0)
    shown = take(replace(base, data=replace(base.data, sources=(*base.data.sources, white))), 32)
    counts = [sum(level == 13 for level in levels(batch)) for batch in shown]
    assert 96 < sum(counts) < 160 and min(counts) > 0 and max(counts) < 8
    alone = replace(white, weight=0.0, homogeneous=0.25)
    shown = take(replace(base, data=replace(base.data, sources=(*base.data.sources, alone))), 32)
    counts = [sum(level == 13 for level in levels(batch)) for batch in shown]
    assert set(counts) == {0, 8} and 3 <= counts.count(8) <= 14


def test_sizes_change_with_the_step_and_not_with_the_process():
    sizes = (
        CropSizes(global_size=32, local_size=16, probability=0.5),
        CropSizes(global_size=48, local_size=24, probability=0.5),
    )
    first, second = (take(config(sizes=sizes, batch_size=4), 10, rank=rank, size=2) for rank in range(2))
    sides = [batch.global_crops.shape[-1] for batch in first]
    assert set(sides) == {32, 48} and sides == [batch.global_crops.shape[-1] for batch in second]
    assert all(
        b.local_crops.shape[-1] * 2 == side == b.masks.shape[1] ** 0.5 * 8 for b, side in zip(first, sides, strict=True)
    )


def test_crops_made_on_the_device_are_those_of_the_worker():
    base = config(sizes=(CropSizes(global_size=32, local_size=16, gram_size=48),))
    on_device = replace(base, data=replace(base.data, augment_on="device", workers=1))
    for worker, device in zip(take(base, 2), take(on_device, 2), strict=True):
        assert torch.equal(worker.masks, device.masks)
        for name in ("global_crops", "local_crops", "gram_crops"):
            difference = (getattr(worker, name) - getattr(device, name)).abs() * 0.225 * 255
            assert difference.mean() < 0.05 and difference.quantile(0.999) < 4


def test_settings_that_cannot_be_honoured_are_refused():
    with pytest.raises(ValueError, match="batch_size 8 is not a multiple of the 3 processes"):
        batches(config(), size=3)
    with pytest.raises(ValueError, match=r"data\.sources is empty"):
        batches(Config(model=MODEL))
    with pytest.raises(ValueError, match="global crops of 36 px are no whole patches of 8; take 32"):
        batches(config(sizes=(CropSizes(global_size=36, local_size=16),)))
    with pytest.raises(ValueError, match="needs an even num_local"):
        batches(config(local_in_global=True))


def test_masks_follow_the_configuration_and_the_backbone():
    base = config(sizes=(CropSizes(global_size=64, local_size=32),))
    ibot = IbotConfig(masked_crops=1.0, mask_ratio=(0.25, 0.25), mask_shift=True)
    (batch,) = take(replace(base, ibot=ibot), 1)
    assert (batch.masks.sum(dim=1) == 16).all()
    convnext = replace(base, model=ModelConfig(arch="convnext_tiny", layer_scale=1e-6, drop_path=0.0))
    assert Steps(convnext, rank=0, size=1)[0].masks.shape == (16, 4)


def test_closing_leaves_no_process_behind():
    loader = batches(config(workers=2))
    next(loader)
    assert len(children()) == 2
    loader.close()
    loader.close()
    assert not children()
    assert next(loader, None) is None


def test_a_signal_to_the_whole_group_does_not_end_workers():
    with batches(config(workers=1)) as loader:
        next(loader)
        (worker,) = children()
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(worker, name)
        assert all(next(loader).num_images == 8 for _ in range(6))
        assert children() == {worker}
    assert not children()


PROGRAMS = """
import multiprocessing, os
from core.config import *
from core.data.loader import batches

def start():
    data = DataConfig(sources=(SourceConfig(path="tiny"),), batch_size=4, workers=2)
    crops = CropsConfig(sizes=(CropSizes(global_size=32, local_size=16),))
    loader = batches(Config(model=ModelConfig(arch="vit_nano"), crops=crops, data=data))
    next(loader)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    return loader

if os.fork() == 0:
    loader = start()
    os.kill(os.getpid(), 9)
os.wait()
loader = start()
"""


@pytest.mark.long
def test_workers_end_with_their_program():
    """One that was killed without a chance to tidy up, and one that forgets to close its loader."""
    command = [sys.executable, "-c", PROGRAMS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=120)
    workers = done.stdout.split()
    assert (done.returncode, done.stderr, len(workers)) == (0, "", 4)
    for _ in range(200):  # they look every few seconds whether they are alone
        if not any(Path(f"/proc/{worker}").exists() for worker in workers):
            return
        time.sleep(0.1)
    pytest.fail(f"workers {', '.join(workers)} are still there")


def test_steps_reach_a_worker_that_is_started_afresh():
    """As on macOS and Windows, where nothing is inherited."""
    steps = Steps(config(), rank=0, size=1)
    first = steps[3]  # its files are open now
    copy = pickle.loads(pickle.dumps(steps))
    assert isinstance(first, Batch) and same(first, copy[3])


def test_loading_draws_nothing_from_the_runs_random_numbers():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(config(workers=1), 1)
    take(config(), 1)
    assert torch.equal(before, torch.get_rng_state())
