import torch

from core.data.batch import Batch


def batch(images: int = 3, num_local: int = 2, gram: bool = True) -> Batch:
    """Crops that hold 100 times their number within the image, plus the number of the image."""

    def crops(number: int, side: int) -> torch.Tensor:
        labels = torch.tensor([100.0 * crop + image for crop in range(number) for image in range(images)])
        return labels[:, None, None, None].expand(-1, 3, side, side).clone()

    masks = torch.zeros(2 * images, 4, dtype=torch.bool)
    masks[1, :3] = masks[4, 2] = True
    return Batch(crops(2, 8), crops(num_local, 4), crops(2, 16) if gram else None, masks, ("x.jpg",))


def test_masked_patches_are_listed_and_weighed():
    full = batch()
    assert full.num_images == 3
    assert full.mask_indices.tolist() == [4, 5, 6, 18]
    torch.testing.assert_close(full.mask_weights, torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0]))


def test_some_images_keep_all_their_crops():
    part = batch().images(slice(1, 3))
    assert part.gram_crops is not None and part.num_images == 2
    assert part.global_crops[:, 0, 0, 0].tolist() == part.gram_crops[:, 0, 0, 0].tolist() == [1, 2, 101, 102]
    assert part.local_crops[:, 0, 0, 0].tolist() == [1, 2, 101, 102]
    assert part.mask_indices.tolist() == [0, 1, 2, 10] and part.broken == ("x.jpg",)
    assert batch(gram=False).images(slice(0, 1)).gram_crops is None


def test_moving_changes_nothing_but_the_place():
    moved = batch(gram=False).to("meta")
    assert moved.global_crops.device.type == moved.masks.device.type == "meta"
    assert moved.gram_crops is None and moved.broken == ("x.jpg",)
