"""Every loss term against the reference's golden files, a slow plain version and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.testing import assert_close

from core.losses import LOSSES, dino_global, dino_local, gram, ibot, koleo
from core.losses.dino import soft_cross_entropy
from core.losses.gram import resize_tokens
from core.losses.sinkhorn import sinkhorn_knopp

GOLDEN = {"atol": 1e-5, "rtol": 0.0}


def golden(shared, name: str) -> dict[str, torch.Tensor]:
    return load_file(shared / "golden" / f"{name}.safetensors")


def plain_sinkhorn(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """As the paper of SwAV writes it, in double precision."""
    matrix = (logits.double() / temperature).exp()
    matrix /= matrix.sum()
    samples, prototypes = matrix.shape
    for _ in range(3):
        for k in range(prototypes):
            matrix[:, k] /= matrix[:, k].sum() * prototypes
        for n in range(samples):
            matrix[n] /= matrix[n].sum() * samples
    return matrix * samples


# Sinkhorn-Knopp


def test_sinkhorn_of_the_sheet():
    logits = torch.tensor([[1.0, 0, -1], [0.5, 0.2, 0.1]])
    expected = torch.tensor([[0.5496, 0.3491, 0.1013], [0.1235, 0.3180, 0.5585]])
    assert_close(sinkhorn_knopp(logits, 0.5), expected, atol=5e-5, rtol=0)


def test_sinkhorn_agrees_with_a_plain_loop():
    logits = torch.randn(9, 14, generator=torch.Generator().manual_seed(0))
    assert_close(sinkhorn_knopp(logits, 0.2), plain_sinkhorn(logits, 0.2).float(), atol=1e-6, rtol=1e-5)


def test_sinkhorn_leaves_its_input_alone():
    logits = torch.randn(4, 6)
    before = logits.clone()
    sinkhorn_knopp(logits, 1.0)
    assert torch.equal(logits, before)


def test_sinkhorn_rows_sum_to_one_at_logits_that_overflow_exp():
    logits = 40 * torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    probabilities = sinkhorn_knopp(logits, 0.04)
    assert probabilities.isfinite().all()
    assert_close(probabilities.sum(dim=1), torch.ones(16))


def test_sinkhorn_of_no_samples_is_empty():
    assert sinkhorn_knopp(torch.empty(0, 5), 0.1).shape == (0, 5)


def test_sinkhorn_uses_all_prototypes_alike_when_logits_say_nothing():
    assert_close(sinkhorn_knopp(torch.zeros(8, 4), 0.1), torch.full((8, 4), 0.25))


# DINO


def test_dino_loss_is_the_golden_one(shared):
    g = golden(shared, "dino_loss")
    probabilities = sinkhorn_knopp(g["teacher_logits"], 0.05)
    assert_close(probabilities.unflatten(0, (2, -1)), g["teacher_probs"].view(2, -1, 96), **GOLDEN)
    teacher = g["teacher_probs"].view(2, -1, 96)
    assert_close(dino_local(g["student_local"], teacher), g["loss_local"], **GOLDEN)
    assert_close(dino_global(g["student_global"], teacher), g["loss_global_no_diagonal"], **GOLDEN)
    everything = dino_global(g["student_global"], teacher, ignore_diagonal=False)
    assert_close(everything, g["loss_global_all"], **GOLDEN)


def test_dino_losses_agree_with_a_loop_over_pairs():
    generator = torch.Generator().manual_seed(2)
    local, wide = torch.randn(3, 4, 5, generator=generator), torch.randn(2, 4, 5, generator=generator)
    teacher = torch.randn(2, 4, 5, generator=generator).softmax(-1)

    def pair(student, target):
        return -(target * (student / 0.1).log_softmax(-1)).sum(-1).mean()

    pairs = torch.stack([pair(s, t) for s in local for t in teacher])
    assert_close(dino_local(local, teacher), pairs.mean())
    cross = (pair(wide[0], teacher[1]) + pair(wide[1], teacher[0])) / 2
    assert_close(dino_global(wide, teacher), cross)


def test_loss_before_training_is_the_log_of_the_number_of_prototypes():
    logits = torch.zeros(6, 64)
    assert_close(soft_cross_entropy(logits, torch.full((6, 64), 1 / 64), 0.1), torch.full((6,), math.log(64)))


def test_soft_cross_entropy_has_the_gradient_of_torchs_own():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(5, 7, generator=generator, requires_grad=True)
    target = torch.randn(5, 7, generator=generator).softmax(-1)
    (ours,) = torch.autograd.grad(soft_cross_entropy(logits, target, 0.1).sum(), logits)
    (theirs,) = torch.autograd.grad(F.cross_entropy(logits / 0.1, target, reduction="sum"), logits)
    assert_close(ours, theirs)


def test_half_precision_logits_are_computed_in_full():
    logits = torch.randn(3, 50, dtype=torch.bfloat16)
    assert soft_cross_entropy(logits, torch.full((3, 50), 0.02), 0.1).dtype == torch.float32


# iBOT


def test_ibot_loss_is_the_golden_one(shared):
    g = golden(shared, "ibot_loss")
    assert_close(sinkhorn_knopp(g["teacher_masked_logits"], 0.05), g["teacher_probs"], **GOLDEN)
    loss = ibot(g["student_masked_logits"], g["teacher_probs"], g["masks_weight"], len(g["masks"]))
    assert_close(loss, g["loss"], **GOLDEN)


def test_ibot_of_no_masked_patch_is_zero_and_has_a_gradient():
    student = torch.empty(0, 5, requires_grad=True)
    loss = ibot(student, torch.empty(0, 5), torch.empty(0), 4)
    loss.backward()
    assert loss == 0


# KoLeo


def test_koleo_loss_is_the_golden_one(shared):
    g = golden(shared, "koleo_loss")
    assert_close(koleo(g["x"]), g["loss"], **GOLDEN)


def test_koleo_of_three_vectors():
    rows = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    assert_close(koleo(rows), torch.tensor(0.2674), atol=5e-6, rtol=0)


def test_koleo_in_groups_agrees_with_a_loop():
    cls = torch.randn(12, 6, generator=torch.Generator().manual_seed(4))
    unit = F.normalize(cls, dim=-1)
    distances = []
    for i in range(12):
        others = [j for j in range(i // 4 * 4, i // 4 * 4 + 4) if j != i]
        near = sorted(others, key=lambda j, i=i: -float(unit[i] @ unit[j]))[:2]
        distances += [(unit[i] - unit[j] + 1e-8).norm() for j in near]
    expected = -torch.stack(distances).add(1e-8).log().mean()
    assert_close(koleo(cls, group_size=4, topk=2), expected)


def test_koleo_of_equal_images_is_finite():
    cls = torch.ones(4, 8, requires_grad=True)
    loss = koleo(cls)
    loss.backward()
    assert loss.isfinite()
    assert cls.grad.isfinite().all()


def test_koleo_needs_a_neighbour():
    with pytest.raises(ValueError, match="use larger groups or batches"):
        koleo(torch.randn(1, 4))


@pytest.mark.parametrize("group_size", [5, 24])
def test_koleo_groups_must_fit(group_size):
    with pytest.raises(ValueError, match="KoLeo groups"):
        koleo(torch.randn(12, 4), group_size=group_size)


# Gram


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("level", ["batch", "image"])
@pytest.mark.parametrize(("negatives", "name"), [("keep", "none"), ("drop", "both"), ("drop_teacher", "teacher")])
def test_gram_loss_is_the_golden_one(shared, normalized, level, negatives, name):
    g = golden(shared, "gram_loss")
    loss = gram(g["student"], g["teacher"], normalized=normalized, level=level, negatives=negatives)
    expected = g[f"loss_norm{int(normalized)}_img{int(level == 'image')}_neg{name}"]
    # Without normalisation the loss is about a thousand: there the tolerance is relative.
    assert_close(loss, expected, atol=1e-5, rtol=0 if normalized else 1e-6)


def test_gram_of_two_patches():
    student, teacher = torch.tensor([[[1.0, 0], [0, 1]]]), torch.tensor([[[1.0, 1], [0, 1]]])
    assert_close(gram(student, teacher), torch.tensor(0.25))


def test_gram_ignores_feature_scale_and_rotation():
    generator = torch.Generator().manual_seed(5)
    patches = torch.randn(2, 9, 8, generator=generator)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    assert gram(patches @ turn * 3, patches) < 1e-12


def test_gram_of_equal_features_is_exactly_zero():
    patches = torch.randn(2, 9, 8)
    assert gram(patches, patches) == 0


def test_gram_moves_the_student_only():
    student, teacher = (torch.randn(2, 5, 8, requires_grad=True) for _ in range(2))
    gram(student, teacher).backward()
    assert student.grad is not None and teacher.grad is None


def test_a_larger_teacher_map_is_brought_down_as_the_reference_does(shared):
    g = golden(shared, "gram_downsample")
    assert_close(resize_tokens(g["high"], 16), g["low"], **GOLDEN)


def test_maps_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match="Gram maps are square"):
        resize_tokens(torch.randn(1, 12, 4), 4)


def test_every_term_is_listed():
    assert set(LOSSES) == {"dino_local", "dino_global", "ibot", "koleo", "gram", "features", "contrastive"}
