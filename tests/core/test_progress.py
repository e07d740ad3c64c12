"""Progress: a bar for people at a terminal, lines for everyone else."""

import io
import os

import pytest

from core.progress import Progress, duration, terms_line

TERMS = {"koleo": -0.5, "ibot": 4.25, "total": 9.5, "extra": 1.0, "gram": None}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(folder, stream):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", stream)
        progress = Progress(folder, steps=30, first_step=10)
    for step in range(10, 30):
        if step % 10 == 0:
            progress.report(step, TERMS, 123.4, 3723.0)
        progress.advance()
    progress.say("knn after 30 steps: top1 0.5")
    progress.close()
    return stream.getvalue()


def test_a_log_gets_plain_lines(tmp_path):
    shown = run(tmp_path, io.StringIO()).splitlines()
    assert shown == [
        "step 10 of 30: total 9.5, ibot 4.25, koleo -0.5, gram not finite, extra 1, 123 images/s, 1 h 2 min left",
        "step 20 of 30: total 9.5, ibot 4.25, koleo -0.5, gram not finite, extra 1, 123 images/s, 1 h 2 min left",
        "knn after 30 steps: top1 0.5",
    ]


def test_a_terminal_gets_a_bar_with_speed_time_and_terms(tmp_path):
    shown = run(tmp_path, Terminal())
    assert "30/30" in shown and "100%" in shown
    assert "total 9.5, ibot 4.25" in shown and "123 images/s" in shown
    assert "step 20 of 30" not in shown
    assert "knn after 30 steps: top1 0.5\n" in shown
    assert "10/30" in shown  # starts where the run resumes


def test_a_terminal_without_rows_gets_lines(tmp_path, monkeypatch):
    size = os.terminal_size((160, 0))
    monkeypatch.setattr(os, "get_terminal_size", lambda handle: size)
    monkeypatch.setattr(Terminal, "fileno", lambda self: 2)
    assert "step 20 of 30: total 9.5" in run(tmp_path, Terminal())


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_log_txt_is_plain_and_dated_either_way(tmp_path, stream):
    run(tmp_path, stream())
    run(tmp_path, stream())  # a resume appends
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert len(lines) == 6
    assert lines[0][:2] == "20" and lines[0][20:].startswith("step 10 of 30: total 9.5")
    assert lines[2].endswith("knn after 30 steps: top1 0.5")
    assert "\r" not in "".join(lines) and "\x1b" not in "".join(lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3540, "59 min"),
        (3599, "1 h 0 min"),
        (12_000, "3 h 20 min"),
        (180_000, "2 d 2 h"),
    ],
)
def test_time_spans_read_well(seconds, text):
    assert duration(float(seconds)) == text


def test_terms_come_in_a_fixed_order():
    assert terms_line({"b": 1.0, "gram": 2.0, "total": 12345.678}) == "total 1.235e+04, gram 2, b 1"
