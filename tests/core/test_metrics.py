"""Metrics: one line a logged step, none twice after a resume, and further writers on request."""

import json
import sys
import types
from dataclasses import asdict, replace

import pytest
import torch

from core import distributed, metrics
from core.metrics import Metrics
from core.recipes import recipe
from core.run_folder import create, read_metrics
from core.schedules import rates_at


def config_of(**run):
    base = recipe("smoke")
    return replace(base, steps=25, run=replace(base.run, log_every=10, **run))


def write(folder, config, first=0, last=25, **options):
    with Metrics(folder, config, first, 1) as run:
        for step in range(first, last):
            terms = {"total": torch.tensor(10.0 - step), "ibot": torch.tensor(step / 2)}
            norms = {"backbone": torch.tensor(3.0), "dino_head": 0.5}
            run.write(step, terms, rates_at(step, config), norms, **options)
    return read_metrics(folder)


def test_every_logged_step_and_the_last_have_a_line(tmp_path):
    lines = write(tmp_path, config_of())
    assert [line["step"] for line in lines] == [0, 10, 20, 24]
    assert [line["total"] for line in lines] == [10.0, 0.0, -10.0, -14.0]


def test_a_line_has_all_terms_rates_norms_and_speeds(tmp_path):
    config = config_of()
    line = write(tmp_path, config, data_seconds=0.25, step_seconds=0.5)[1]
    rates = asdict(rates_at(10, config))
    assert rates.items() <= line.items()
    assert line["ibot"] == 5.0
    assert (line["grad_norm_backbone"], line["grad_norm_dino_head"]) == (3.0, 0.5)
    assert line["step_seconds"] == 0.5
    assert line["data_share"] == 0.5
    assert line["images_per_second"] == config.data.batch_size / 0.5
    assert 0.01 < line["memory_gib"] < 1000
    assert line["time"] > 1.7e9
    assert 0 <= line["cpus_busy"] < 100
    assert len(line) == 2 + 2 + len(rates) + 2 + 5


def test_speed_is_a_mean_over_the_steps_since_the_line_before(tmp_path):
    config = config_of()
    with Metrics(tmp_path, config, 0, 1) as run:
        for step in range(11):
            seconds = 100.0 if step == 0 else float(step)  # the first step compiles
            run.write(step, {}, rates_at(step, config), {}, step_seconds=seconds)
    assert [line["step_seconds"] for line in read_metrics(tmp_path)] == [100.0, 5.5]


def test_what_is_no_step_counts_in_none_but_later_in_the_time_left(tmp_path, monkeypatch):
    config, now = config_of(), [1000.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    left = []
    with Metrics(tmp_path, config, 0, 1) as run:
        monkeypatch.setattr(run.progress, "report", lambda step, terms, speed, seconds: left.append(seconds))
        for step in range(11):
            with run.paused():  # the first comes before the first step, and only once
                now[0] += 500.0 if step == 0 else 30.0
            now[0] += 2.0
            run.write(step, {}, rates_at(step, config), {})
    assert [line["step_seconds"] for line in read_metrics(tmp_path)] == [2.0, 2.0]
    assert left == [24 * 2.0, 14 * (11 * 2.0 + 10 * 30.0) / 11]


def test_only_logged_steps_wait_for_the_device(tmp_path, monkeypatch):
    asked = []
    plain = torch.Tensor.__float__
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: asked.append(step) or plain(tensor))
    config = config_of()
    with Metrics(tmp_path, config, 0, 1) as run:
        for step in range(25):
            run.write(step, {"total": torch.tensor(1.0)}, rates_at(step, config), {})
    assert asked == [0, 10, 20, 24]


def test_a_resumed_run_writes_no_step_twice(tmp_path):
    config = config_of()
    write(tmp_path, config, last=23)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 22, "tot')  # killed while writing
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()[:2]
    lines = write(tmp_path, config, first=15)
    assert [line["step"] for line in lines] == [0, 10, 20, 24]
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[:2] == before


def test_every_line_is_on_disk_when_it_is_written(tmp_path):
    config = config_of()
    with Metrics(tmp_path, config, 0, 1) as run:
        run.write(0, {"total": 1.0}, rates_at(0, config), {})
        assert read_metrics(tmp_path)[0]["total"] == 1.0


def test_what_is_not_finite_is_written_as_null(tmp_path):
    config = config_of()
    with Metrics(tmp_path, config, 0, 1) as run:
        run.write(0, {"total": torch.tensor(float("nan")), "ibot": float("inf")}, rates_at(0, config), {})
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert read_metrics(tmp_path)[0]["total"] is None
    assert "total not finite" in (tmp_path / "log.txt").read_text()


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    config = config_of(tensorboard=True)
    with Metrics(tmp_path, config, 0, 2) as run:
        run.write(0, {"total": 1.0}, rates_at(0, config), {})
        run.say("hello")
        run.evaluation(0, "knn", {"top1": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_has_a_file_of_its_own(tmp_path, capsys):
    with Metrics(tmp_path, config_of(), 0, 1) as run:
        run.evaluation(20, "knn", {"flowers/top1": 0.25, "top1": 0.5})
    assert json.loads((tmp_path / "evals" / "20" / "knn.json").read_text()) == {"flowers/top1": 0.25, "top1": 0.5}
    assert "knn after 20 steps: top1 0.5\n" in capsys.readouterr().err


def test_the_log_says_why_a_run_stopped(tmp_path):
    with pytest.raises(FloatingPointError), Metrics(tmp_path, config_of(), 0, 1):
        raise FloatingPointError("step 3: not finite: ibot")
    assert "stopped: step 3: not finite: ibot" in (tmp_path / "log.txt").read_text()


def test_a_folder_is_trained_by_one_process_at_a_time(tmp_path):
    pytest.importorskip("fcntl")
    config = config_of()
    write(tmp_path, config, last=11)
    with Metrics(tmp_path, config, 11, 1) as run:
        with (
            pytest.raises(BlockingIOError, match="is being trained by another process"),
            Metrics(tmp_path, config, 0, 1),
        ):
            pass
        run.write(11, {}, rates_at(11, config), {})
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 10]  # the refused one dropped nothing
    with Metrics(tmp_path, config, 11, 1):
        pass


# Further writers


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_the_same_numbers_and_forgets_with_a_resume(tmp_path):
    config = config_of(tensorboard=True)
    write(tmp_path, config, last=23)
    lines = write(tmp_path, config, first=15)
    read = scalars(tmp_path)
    assert read["loss/total"] == [(line["step"], line["total"]) for line in lines]
    assert read["rates/lr"] == [(line["step"], pytest.approx(line["lr"])) for line in lines]
    assert read["grad_norm/backbone"][0] == (0, 3.0)
    assert "speed/images_per_second" in read


def test_an_evaluation_at_the_resumed_checkpoint_stays_in_tensorboard(tmp_path):
    config = config_of(tensorboard=True)
    with Metrics(tmp_path, config, 0, 1) as run:
        run.evaluation(10, "knn", {"top1": 0.5})
        run.evaluation(20, "knn", {"top1": 0.75})
    with Metrics(tmp_path, config, 10, 1) as run:
        run.write(10, {"total": 1.0}, rates_at(10, config), {})
    assert scalars(tmp_path)["knn/top1"] == [(9, 0.5)]


@pytest.mark.parametrize(
    ("setting", "package"), [({"tensorboard": True}, "torch.utils.tensorboard"), ({"wandb": "p"}, "wandb")]
)
def test_a_missing_writer_is_named_with_what_installs_it(tmp_path, monkeypatch, setting, package):
    monkeypatch.setitem(sys.modules, package, None)
    said = r"run\.\w+ needs the package \w+: pip install 'gramscope\[log\]'"
    with pytest.raises(ModuleNotFoundError, match=said), Metrics(tmp_path, config_of(**setting), 0, 1):
        pass


def test_wandb_gets_the_same_numbers_under_the_folders_name(tmp_path, monkeypatch):
    """Against a stand-in with the calls that we use; the next test takes the real one where it is installed."""
    calls = []

    class Run:
        def define_metric(self, *arguments, **options):
            calls.append(("define", arguments, options))

        def log(self, numbers):
            calls.append(("log", numbers))

        def finish(self):
            calls.append(("finish",))

    wandb = types.ModuleType("wandb")
    wandb.init = lambda **options: calls.append(("init", options)) or Run()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = config_of(wandb="dense")
    lines = write(create(config, tmp_path / "my-run"), config)
    options = calls[0][1]
    assert (options["project"], options["id"], options["resume"]) == ("dense", "my-run", "allow")
    assert options["config"]["optim"]["lr"]["peak"] == config.optim.lr.peak
    logged = [call[1] for call in calls if call[0] == "log"]
    assert [numbers["step"] for numbers in logged] == [0, 10, 20, 24]
    assert [numbers["loss/total"] for numbers in logged] == [line["total"] for line in lines]
    assert calls[-1] == ("finish",)


def test_wandb_works_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed; it is no part of what the tests need")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = config_of(wandb="dense")
    write(create(config, tmp_path / "my-run"), config)
    write(tmp_path / "my-run", config, first=15)
    assert list((tmp_path / "my-run" / "wandb").glob("offline-run-*/run-my-run.wandb"))


def test_memory_is_that_of_this_process():
    pytest.importorskip("resource")
    before = metrics.peak_memory_gib()
    block = torch.ones(100_000_000)  # 0.37 GiB
    assert metrics.peak_memory_gib() >= max(before, block.numel() * 4 / 2**30)
