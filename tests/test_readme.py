"""The README's commands and code are run as they stand there, as a newcomer would run them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.models import build_backbone
from core.models.weights import save_backbone

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# The tests may run in another environment than `make` sets up; its programs stand beside this Python.
BIN = Path(sys.executable).parent


def block(language: str, holding: str) -> str:
    """The fenced block of the README that holds a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    return next(text for text in blocks if holding in text)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(command: list[str], url: str, seconds: float = 120) -> Iterator[str]:
    """What a server answers at this address; the server and whatever it started are ended after that."""
    log = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    yield answer.read().decode()
                return
            except OSError:
                if log.poll() is not None:
                    pytest.fail(f"{' '.join(command)} ended: {log.stdout.read()}")
                assert time.monotonic() < deadline, f"{' '.join(command)} does not answer"
                time.sleep(0.5)
    finally:
        if log.poll() is None:
            os.killpg(log.pid, signal.SIGINT)
            try:
                log.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(log.pid, signal.SIGKILL)
                log.wait()
        log.stdout.close()


def make(*words: str) -> list[str]:
    if not (ROOT / ".venv").exists():
        pytest.skip("no .venv beside the project: these tests run in another environment than `make` sets up")
    return ["make", "-s", *words]


@pytest.mark.long
def test_make_app_answers_with_the_explorer():
    assert "make app" in block("bash", "make app")
    port = free_port()
    with serving(make("app", f"PORT={port}", "ARGS=--no-open"), f"http://127.0.0.1:{port}/") as page:
        assert "Gramscope" in page


@pytest.mark.long
def test_make_lab_answers_with_jupyterlab():
    port = free_port()
    with serving(make("lab", f"PORT={port}", "ARGS=--no-browser"), f"http://127.0.0.1:{port}/api") as answer:
        assert "version" in answer


@pytest.mark.long
def test_make_bench_prints_shares_of_the_peak():
    done = subprocess.run(make("bench", "ARGS=--quick"), cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert re.search(r"224 px +[\d.]+ ms +\d+% +[\d.]+ ms +\d+% +[\d.]+x +\d+ GFLOP/s", done.stdout), done.stdout


@pytest.mark.long
def test_gramscope_commands_answer(tmp_path):
    commands = re.findall(r"^gramscope (.*?)(?: +#.*)?$", block("bash", "gramscope version"), flags=re.MULTILINE)
    assert len(commands) == 4
    mine = save_backbone(build_backbone("vit_nano"), tmp_path / "teacher.safetensors")
    for command in commands:
        words = command.replace("runs/teacher.safetensors", str(mine)).split()
        if words[0] == "version":
            done = subprocess.run([BIN / "gramscope", *words], capture_output=True, text=True, timeout=60)
            assert re.fullmatch(r"gramscope \d+\.\d+\.\d+\n", done.stdout), done.stderr
            continue
        port = str(free_port())
        words = [port if word == "7861" else word for word in words]
        words += [] if "--port" in words else ["--port", port]
        with serving([str(BIN / "gramscope"), *words, "--no-open"], f"http://127.0.0.1:{port}/config") as page:
            shown = Path(words[words.index("--weights") + 1]).name if "--weights" in words else "dinov2_vits14_saliency"
            assert shown in page


@pytest.mark.long
def test_the_python_examples_run(tmp_path):
    code = block("python", "backbone = load") + "\nprint(features.patches.shape)\n" + block("python", "view.save")
    code = code.replace("view.html", f"{tmp_path}/view.html")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "torch.Size([42, 55, 384])\n", done.stderr
    assert (tmp_path / "view.html").stat().st_size > 1_000_000
