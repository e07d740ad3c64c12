"""Every named set is one that can learn together, with the numbers of the release."""

import pytest

from core.config import from_json, to_json
from core.data.loader import mask_cell, part_of
from core.schedules import rates_at
from core.sets import SETS
from core.students import check_together


@pytest.mark.parametrize("name", SETS)
def test_a_set_can_learn_together_and_survives_json(name):
    found = SETS[name]()
    check_together(found.configs)
    assert found.configs.keys() == found.processes.keys()
    assert (SETS[name].__doc__ or "").strip().partition("\n")[0].endswith((".", ":"))
    for student, config in found.configs.items():
        assert config.name == student
        assert from_json(to_json(config)) == config


@pytest.mark.parametrize("name", SETS)
def test_every_students_processes_divide_the_batch_and_teachers_see_all_of_it(name):
    found = SETS[name]()
    config, everybody = next(iter(found.configs.values())), sum(found.processes.values())
    assert all(config.data.batch_size % count == 0 for count in found.processes.values())
    parts = [part_of(config, rank, everybody) for rank in range(everybody)]
    assert {image for part in parts for image in range(part.start, part.stop)} == set(range(config.data.batch_size))
    assert len({part.stop - part.start for part in parts}) == 1


def test_the_vit_family_has_the_released_processes_and_rate():
    found = SETS["vit_family"]()
    assert list(found.processes.values()) == [48, 48, 80, 120]
    vitl = found.configs["vitl"]
    assert vitl.data.batch_size == 1920 and vitl.steps == 25_000
    assert rates_at(20_000, vitl).lr == pytest.approx(2.634e-4, rel=1e-3)
    assert rates_at(0, vitl).teacher_temp == 0.07


def test_a_convnexts_cell_is_two_of_the_teachers_patches_wide():
    """Crops of 512 px have 16 x 16 cells, for which the teacher sees 256 px."""
    for config in SETS["convnext_family"]().configs.values():
        assert mask_cell(config) == 32 and config.crops.sizes[0].global_size // 32 * 16 == 256
        assert (
            rates_at(config.steps // 2, config).lr
            < rates_at(80 * 1250, config).lr
            == pytest.approx(8 * config.optim.lr.peak)
        )
