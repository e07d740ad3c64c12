"""Labels that travel from the patches of one picture to those of another."""

import numpy as np
import pytest
import torch
from PIL import Image

from core.evals.incontext import in_context, incontext, memory, patch_labels
from core.evals.segmentation import IGNORED, Labelled
from core.models import build_backbone


def scene(seed: int, classes: int = 3, side: int = 8, noise: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (side, side, 16) that say what the mask (8 side, 8 side) says, in blocks, with noise."""
    draw = torch.Generator().manual_seed(seed)
    blocks = (
        torch.randint(classes, (side // 2, side // 2), generator=draw).repeat_interleave(2, 0).repeat_interleave(2, 1)
    )
    meaning = torch.eye(16)[:classes]
    features = meaning[blocks] + noise * torch.randn(side, side, 16, generator=draw)
    return features, blocks.repeat_interleave(8, 0).repeat_interleave(8, 1).to(torch.uint8)


def scenes(*seeds: int, noise: float = 0.2) -> Labelled:
    features, masks = zip(*(scene(seed, noise=noise) for seed in seeds), strict=True)
    return Labelled(list(features), list(masks))


def test_features_that_say_the_class_are_labelled_nearly_perfectly():
    found = in_context(scenes(0, 1, 2), scenes(3, 4))
    assert found.keys() == {"iou/0", "iou/1", "iou/2", "miou"}
    assert found["miou"] > 0.85  # what is missing are borders, enlarged bilinearly


def test_the_more_noise_the_less():
    scores = [in_context(scenes(0, 1, 2, noise=n), scenes(3, 4, noise=n))["miou"] for n in (0.1, 0.6, 2.0)]
    assert scores[0] > scores[1] > scores[2]
    assert scores[2] < 0.45


def test_votes_are_the_formula():
    train, val = scenes(0), scenes(3)
    known, labels = memory(train, 3, size=10_000)
    query = torch.nn.functional.normalize(val.features[0].flatten(0, 1), dim=1)
    votes = torch.zeros(64, 3)
    for row, q in enumerate(query):
        cosine = torch.tensor([float(q @ m) for m in known])
        nearest = cosine.argsort(descending=True)[:5]
        weight = torch.exp(cosine[nearest] / 0.1)
        for w, index in zip(weight / weight.sum(), nearest, strict=True):
            votes[row] += w * labels[index]
    grid = votes.T.view(1, 3, 8, 8)
    found = torch.nn.functional.interpolate(grid, (64, 64), mode="bilinear", align_corners=False)[0].argmax(0)
    both = [int(((found == c) & (val.masks[0] == c)).sum()) for c in range(3)]
    either = [int(((found == c) | (val.masks[0] == c)).sum()) for c in range(3)]
    scores = in_context(train, val, k=5, temperature=0.1)
    assert scores["miou"] == pytest.approx(np.mean([b / e for b, e in zip(both, either, strict=True) if e]))


def test_a_cell_has_the_share_of_each_class_and_ignored_pixels_count_in_none():
    mask = torch.zeros(4, 4, dtype=torch.uint8)
    mask[0, 0], mask[0, 1], mask[2:, 2:] = 1, IGNORED, IGNORED
    shares, counted = patch_labels(mask, (2, 2), 2)
    assert shares[0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert counted.tolist() == pytest.approx([0.75, 1, 1, 0])
    assert shares[3].tolist() == [0, 0]


def test_the_memory_is_bounded_drawn_by_its_seed_and_without_unlabelled_patches():
    data = scenes(0, 1)
    data.masks[0][:32] = IGNORED
    features, labels = memory(data, 3, size=1000)
    assert len(features) == len(labels) == 96
    some = memory(data, 3, size=20, seed=1)[0]
    assert torch.equal(some, memory(data, 3, size=20, seed=1)[0])
    assert not torch.equal(some, memory(data, 3, size=20, seed=2)[0])


def test_masks_without_a_label_are_refused():
    data = scenes(0)
    data.masks[0][:] = IGNORED
    with pytest.raises(ValueError, match="no pixel"):
        in_context(data, data)


def test_a_folder_is_read_by_its_split(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    lines = ["key\tsplit\tlabel"]
    for number in range(6):
        picture, mask = np.full((64, 64, 3), 30, np.uint8), np.zeros((64, 64), np.uint8)
        at = 8 * (number % 4)
        picture[at : at + 24, at : at + 24], mask[at : at + 24, at : at + 24] = (220, 60, 40), 1
        Image.fromarray(picture).save(tmp_path / "images" / f"{number}.jpg")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
        lines.append(f"{number}\t{'val' if number > 3 else 'train'}\t")
    (tmp_path / "split.tsv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    backbone = build_backbone("vit_nano", patch_size=8, depth=2).eval()
    assert incontext(backbone, tmp_path, size=64)["miou"] > 0.7
