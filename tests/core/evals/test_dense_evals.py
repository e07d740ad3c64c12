"""Segmentation probe, tracking and keypoints: definitions against plain loops, pipelines on pictures made for them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from core.evals.keypoints import keypoints, transfer
from core.evals.segmentation import IGNORED, Labelled, mean_iou, predict, segmentation, train_head
from core.evals.tracking import jaccard, one_hot, to_mask, tracking
from core.models import build_backbone


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return build_backbone("vit_nano", patch_size=8, layer_scale=0.5).eval()


def test_the_jaccard_index_counts_pixels():
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert jaccard(a, b) == 1.0
    a[:2], b[1:3] = True, True
    assert jaccard(a, b) == 4 / 12
    assert jaccard(a, ~a) == 0.0


def test_iou_is_over_all_pixels_together_and_ignores_what_is_to_be_ignored():
    draw = np.random.default_rng(0)
    truths = [torch.from_numpy(draw.integers(0, 3, (6, 5))) for _ in range(4)]
    founds = [torch.from_numpy(draw.integers(0, 3, (6, 5))) for _ in range(4)]
    truths[0][0] = IGNORED
    ours = mean_iou(founds, truths, 4)
    for kind in range(3):
        both = either = 0
        for found, truth in zip(founds, truths, strict=True):
            for f, t in zip(found.flatten().tolist(), truth.flatten().tolist(), strict=True):
                if t != IGNORED:
                    both += f == kind and t == kind
                    either += kind in (f, t)
        assert_close(float(ours[kind]), both / either)
    assert ours[3].isnan()


def test_a_head_learns_classes_that_are_linear_in_the_features():
    draw = torch.Generator().manual_seed(0)
    direction = torch.randn(12, 3, generator=draw)
    quarters = [torch.randn(2, 2, 12, generator=draw) for _ in range(12)]
    features = [x.repeat_interleave(4, 0).repeat_interleave(4, 1) for x in quarters]
    masks = [
        (x @ direction).argmax(-1).to(torch.uint8).repeat_interleave(4, 0).repeat_interleave(4, 1) for x in features
    ]
    data = Labelled([x.half() for x in features], masks)
    head = train_head(data, 3, steps=300, lr=1e-2, weight_decay=1e-3)
    centres = (slice(2, None, 4),) * 2  # borders between classes are blurred by the enlargement
    found = predict(head, data)
    right = [(f[centres] == m[centres]).float().mean() for f, m in zip(found, masks, strict=True)]
    assert float(torch.stack(right).mean()) > 0.9


def test_masks_go_to_the_grid_and_back():
    mask = np.zeros((32, 48), np.int64)
    mask[8:24, 16:32] = 1
    labels = one_hot(mask, (4, 6), 1)
    assert labels.shape == (4, 6, 2) and labels[..., 1].sum() == 4
    assert jaccard(to_mask(labels, 32, 48) == 1, mask == 1) > 0.9


def test_a_square_is_tracked_and_its_corners_are_found(backbone, tmp_path):
    """A red square moves over a background of noise that stands still."""
    draw = np.random.default_rng(0)
    ground = np.asarray(Image.fromarray(draw.integers(0, 80, (12, 16, 3), np.uint8)).resize((128, 96)))
    (tmp_path / "frames" / "square").mkdir(parents=True)
    (tmp_path / "masks" / "square").mkdir(parents=True)
    for number in range(5):
        picture, mask = ground.copy(), np.zeros((96, 128), np.uint8)
        picture[32:64, 24 + 8 * number : 56 + 8 * number] = (250, 40, 20)
        mask[32:64, 24 + 8 * number : 56 + 8 * number] = 1
        Image.fromarray(picture).save(tmp_path / "frames" / "square" / f"{number:05}.jpg", quality=95)
        Image.fromarray(mask).save(tmp_path / "masks" / "square" / f"{number:05}.png")
    scores = tracking(backbone, tmp_path, size=128, square=False)
    assert scores["j"] == scores["square/j"] > 0.8


def test_keypoints_find_themselves(backbone, tmp_path):
    """The same picture twice: every keypoint lands in its own patch, within half a patch of where it is."""
    draw = np.random.default_rng(1)
    picture = Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).resize((128, 128), Image.Resampling.BICUBIC)
    (tmp_path / "images").mkdir()
    lines = ["key\tclass\twidth\theight\t" + "\t".join(f"{axis}{i}" for i in range(3) for axis in "xy")]
    for name in ("a", "b"):
        picture.save(tmp_path / "images" / f"{name}.jpg", quality=100)
        lines.append(f"{name}\tthing\t128\t128\t20\t20\t100\t36\t60\t108")
    (tmp_path / "keypoints.tsv").write_text("\n".join(lines) + "\n")
    assert keypoints(backbone, tmp_path, size=128) == {"pck/thing": 1.0, "pck": 1.0}


def test_a_transferred_point_is_the_centre_of_the_best_patch():
    source, target = torch.zeros(2, 2, 3), torch.zeros(3, 4, 3)
    source[..., 2], target[..., 2] = 1, 1
    source[1, 0] = torch.tensor([1.0, 0, 0])
    target[2, 3] = torch.tensor([1.0, 0, 0])
    (found,) = transfer(source, target, torch.tensor([[0.25, 0.75]]))
    assert_close(found, torch.tensor([3.5 / 4, 2.5 / 3]))


def test_a_probe_of_a_folder_reports_every_class(backbone, tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    lines = ["key\tsplit\tlabel"]
    for number in range(10):
        picture, mask = np.full((64, 64, 3), 30, np.uint8), np.zeros((64, 64), np.uint8)
        at = 8 * (number % 4)
        picture[at : at + 24, at : at + 24] = (220, 60, 40)
        mask[at : at + 24, at : at + 24] = 1
        mask[:, :2] = IGNORED
        Image.fromarray(picture).save(tmp_path / "images" / f"{number}.jpg")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
        lines.append(f"{number}\t{'val' if number > 6 else 'train'}\t")
    (tmp_path / "split.tsv").write_text("\n".join(lines) + "\n")
    scores = segmentation(backbone, tmp_path, size=64, steps=60, rates=(1e-2,))
    assert scores.keys() == {"iou/0", "iou/1", "miou"} and scores["miou"] > 0.7
