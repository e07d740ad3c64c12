"""A run made small: the views read it as the run itself, and nothing private is left in it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from numpy.testing import assert_array_equal
from torch.nn.functional import cosine_similarity

from apps.cli import main
from core.checkpoint import load_teacher
from core.config import InitConfig, load_config, to_json
from core.dense.packs import open_pack
from workbench import extract, open_image
from workbench.images import BadImage, list_samples
from workbench.runs import RunSeries, open_run
from workbench.sharing import LINES, share_run, without_places

PHOTO = next(sample.path for sample in list_samples() if sample.path.name == "sunflower_2.jpg")


@pytest.fixture
def run(make_run, tmp_path: Path) -> Path:
    return make_run(tmp_path / "whole")


def test_the_small_run_has_the_same_numbers_and_maps(run: Path, tmp_path: Path) -> None:
    small = open_run(share_run(run, tmp_path / "small", steps=[20, 0]))
    whole = open_run(run)
    assert small.probe_steps == [0, 20]
    assert small.evaluation("incontext") == whole.evaluation("incontext")
    assert small.curve("total") == whole.curve("total")
    for ours, theirs in zip(small.packs(20), whole.packs(20), strict=True):
        assert ours.read_bytes() == theirs.read_bytes()
    assert small.readings(20).images == whole.readings(20).images
    assert len(RunSeries.of([small])) == 2


def test_other_photos_are_seen_by_the_kept_teachers(taught, tmp_path: Path) -> None:
    folder = share_run(taught.folder, tmp_path / "small", photos=[PHOTO], size=64, licence="CC BY 4.0")
    small = open_run(folder)
    assert small.probe_steps == [10, 20]
    photo = open_image(PHOTO)
    for step in small.probe_steps:
        [path] = small.packs(step)
        expected = extract(load_teacher(f"{taught.folder}@{step}")[0].eval(), photo, size=64)
        pack = open_pack(path)
        assert (pack.picture["name"], pack.model.licence) == (PHOTO.name, "CC BY 4.0")
        assert cosine_similarity(pack.features().patches, expected.patches, dim=-1).min() > 0.9995  # coded in 8 bits
    assert not list(folder.rglob("*.safetensors"))
    assert_array_equal([small.readings(20).against, small.readings(10).against is None], [10, True])


def test_curves_are_thinned_and_keep_their_ends(run: Path, tmp_path: Path) -> None:
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": n, "total": 1.0 / (n + 1)}) + "\n" for n in range(999))
    )
    steps, _ = open_run(share_run(run, tmp_path / "small")).curve("total")
    assert (steps[0], steps[-1]) == (0, 998)
    assert LINES // 2 < len(steps) <= LINES + 1


def test_no_place_of_the_machine_is_left(run: Path, tmp_path: Path) -> None:
    config = load_config(run)
    sources = tuple(replace(source, path=str(tmp_path / "photos")) for source in config.data.sources)
    far = replace(config, data=replace(config.data, sources=sources), init=InitConfig(student=f"{tmp_path}/first@30"))
    (run / "config.json").write_text(to_json(far))
    small = share_run(run, tmp_path / "small")
    assert str(tmp_path) not in (small / "config.json").read_text()
    told = load_config(small)
    assert (told.data.sources[0].path, told.init.student) == ("photos", "first@30")
    assert without_places(told) == told


def test_what_is_not_there_is_named_and_nothing_is_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no probes of 7, 8; there are: 0, 10, 20"):
        share_run(run, tmp_path / "small", steps=[8, 7, 10])
    with pytest.raises(ValueError, match="no kept teacher of any step; there are: none"):
        share_run(run, tmp_path / "small", photos=[PHOTO])
    with pytest.raises(ValueError, match="no run folder"):
        share_run(tmp_path / "nowhere", tmp_path / "small")
    assert not (tmp_path / "small").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="name a new folder"):
        share_run(run, tmp_path / "taken")
    assert (tmp_path / "taken" / "letter.txt").read_text() == "keep me"


def test_a_picture_that_is_none_stops_it_before_anything_is_written(taught, tmp_path: Path) -> None:
    (tmp_path / "note.jpg").write_text("no picture")
    with pytest.raises(BadImage):
        share_run(taught.folder, tmp_path / "small", photos=[tmp_path / "note.jpg"])
    assert not (tmp_path / "small").exists()


@pytest.mark.long
def test_on_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["share", str(run), "--to", str(tmp_path / "small"), "--steps", "0", "10"])
    assert "MB" in capsys.readouterr().out
    assert open_run(tmp_path / "small").probe_steps == [0, 10]
    with pytest.raises(SystemExit, match="name a new folder"):
        main(["share", str(run), "--to", str(tmp_path / "small")])
