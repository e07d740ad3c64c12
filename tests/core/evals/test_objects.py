"""A patch of an object and the rest of it, against a plain loop and where the answer is known."""

import numpy as np
import pytest
import torch
from PIL import Image

from core.evals.objects import object_auc, objects, on_and_off
from core.evals.segmentation import IGNORED
from core.models import build_backbone


def test_it_is_what_a_plain_loop_counts():
    draw = torch.Generator().manual_seed(0)
    patches = torch.randn(5, 6, 8, generator=draw).round(decimals=1)
    patches[0, 3] = patches[0, 4] = patches[4, 4]  # ties count half
    on = torch.zeros(30, dtype=torch.bool)
    on[[0, 1, 3, 7, 8]] = True
    off = torch.zeros(30, dtype=torch.bool)
    off[[4, 11, 15, 20, 21, 28]] = True
    unit = torch.nn.functional.normalize(patches.flatten(0, 1), dim=1)
    wanted = []
    for i in on.nonzero().flatten().tolist():
        pairs = []
        for j in on.nonzero().flatten().tolist():
            for k in off.nonzero().flatten().tolist():
                if i != j:
                    a, b = float(unit[i] @ unit[j]), float(unit[i] @ unit[k])
                    pairs.append(0.5 if abs(a - b) < 1e-6 else float(a > b))
        wanted.append(np.mean(pairs))
    found = object_auc(patches, on, off)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)


def test_parts_that_differ_are_told_apart_noise_is_chance_and_too_few_are_no_answer():
    on = torch.arange(400) % 20 < 6
    parts = torch.where(on[:, None], torch.tensor([1.0, 0.2]), torch.tensor([0.2, 1.0])).view(20, 20, 2)
    assert torch.equal(object_auc(parts, on, ~on), torch.ones(120, dtype=torch.float64))
    noise = torch.randn(20, 20, 64, generator=torch.Generator().manual_seed(0))
    assert float(object_auc(noise, on, ~on).mean()) == pytest.approx(0.5, abs=0.02)
    assert object_auc(noise, on & (torch.arange(400) < 5), ~on) is not None
    assert object_auc(noise, on & (torch.arange(400) < 3), ~on) is None
    assert object_auc(noise, on, ~on & (torch.arange(400) < 9)) is None


def test_patches_on_the_border_and_those_that_hardly_count_are_neither():
    mask = torch.zeros(40, 40, dtype=torch.uint8)
    mask[:, :15] = 1  # one and a half of four columns of patches
    mask[30:, :] = IGNORED  # the last row
    mask[:10, 6:10] = IGNORED  # of the first patch two fifths, the rest is the object
    on, off = (x.view(4, 4) for x in on_and_off(mask, 1, (4, 4)))
    wanted = torch.zeros(4, 4, dtype=torch.bool)
    wanted[:3, 0] = True
    assert torch.equal(on, wanted)
    wanted = torch.zeros(4, 4, dtype=torch.bool)
    wanted[:3, 2:] = True
    assert torch.equal(off, wanted)
    assert not on_and_off(mask, 2, (4, 4))[0].any()


def test_of_a_folder_each_photograph_counts_once_and_those_without_objects_do_not(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    lines = ["key\tsplit\tlabel"]
    for at, split in enumerate(("train", "val", "val")):
        picture, mask = np.full((48, 64, 3), (90, 140, 60), np.uint8), np.zeros((48, 64), np.uint8)
        if at < 2:
            picture[:, :32], mask[:, :32] = (200, 40, 30), 1 + at
        Image.fromarray(picture).save(tmp_path / "images" / f"{at}.jpg")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{at}.png")
        lines.append(f"{at}\t{split}\tx")
    (tmp_path / "split.tsv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    backbone = build_backbone("vit_nano", patch_size=8).eval()
    found = objects(backbone, tmp_path, size=64)
    assert found["images"] == 2 and 0 <= found["auc/low"] <= found["auc"] <= found["auc/high"] <= 1
    with pytest.raises(ValueError, match=r"no object in .* has 4 patches on it and 4 off it at 16 pixels"):
        objects(backbone, tmp_path, size=16)
