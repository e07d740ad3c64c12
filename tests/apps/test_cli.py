"""The console command: quick to answer, and plain about what it cannot do."""

import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest

from apps import cli
from workbench.runs import SHIPPED


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Receives what the command would hand to the app, in place of a server that never returns."""
    calls: list[dict] = []
    module = types.ModuleType("apps.explorer.app")
    module.serve = lambda **arguments: calls.append(arguments)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apps.explorer.app", module)
    monkeypatch.setitem(sys.modules, "apps.explorer", types.ModuleType("apps.explorer"))
    return calls


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "apps.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_help_loads_none_of_the_heavy_packages():
    code = (
        "import sys, apps.cli\n"
        "try: apps.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*sorted({'torch', 'numpy', 'gradio', 'PIL', 'core', 'workbench'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.splitlines()[-1] == ""


def test_help_loads_few_modules():
    # What help waits for: 0.4 s of processor time for these, on two cores.
    code = "import sys, apps.cli\ntry: apps.cli.main(['--help'])\nexcept SystemExit: print(len(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert int(out.stdout.splitlines()[-1]) < 400


def test_help_names_every_command():
    out = run("--help")
    assert out.returncode == 0
    assert all(name in out.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([name, "--help"])
    assert left.value.code == 0
    assert f"usage: gramscope {name}" in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["version", "--version"])
def test_version_is_that_of_the_package(argument, capsys):
    from importlib.metadata import version

    cli.main([argument])
    assert capsys.readouterr().out == f"gramscope {version('gramscope')}\n"


def test_unknown_command_lists_the_known_ones():
    out = run("ap")
    assert out.returncode != 0
    assert "app" in out.stderr
    assert "version" in out.stderr


def test_app_hands_its_arguments_on(served):
    port = free_port()
    cli.main(["app", "--port", str(port), "--weights", "dinov2_vits14", "--no-open"])
    assert served == [
        {"host": "127.0.0.1", "port": port, "weights": "dinov2_vits14", "open_browser": False},
    ]


def test_app_listens_on_this_computer_unless_told_otherwise(served, capsys):
    cli.main(["app", "--port", str(free_port())])
    assert served[0]["host"] == "127.0.0.1"
    assert served[0]["weights"] is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_busy_port_is_named_with_one_that_works(served, host):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit, match=f"on port {port}.*in use; try --port (\\d+)") as left:
            cli.main(["app", "--port", str(port), "--host", host])
    assert served == []
    cli.main(["app", "--port", str(left.value.code).rpartition(" ")[2], "--host", host])
    assert len(served) == 1


@pytest.mark.parametrize("port", ["0", "-1", "65536"])
def test_impossible_port_is_refused(served, port):
    with pytest.raises(SystemExit, match="does not exist"):
        cli.main(["app", "--port", port])
    assert served == []


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])  # 192.0.2.0/24 is reserved for examples
def test_foreign_host_is_refused(served, host):
    with pytest.raises(SystemExit, match="this computer has no address"):
        cli.main(["app", "--port", str(free_port()), "--host", host])
    assert served == []


def test_open_host_is_warned_about(served, capsys):
    cli.main(["app", "--port", str(free_port()), "--host", "0.0.0.0"])
    assert "open to your network and there is no password" in capsys.readouterr().err
    assert served[0]["host"] == "0.0.0.0"


def test_monitor_shows_the_runs_here_or_those_that_come_with_the_project(monkeypatch, tmp_path, capsys):
    shown = []
    monkeypatch.setattr("apps.monitor.app.serve", lambda runs, **rest: shown.append(runs))
    monkeypatch.chdir(tmp_path)
    cli.main(["monitor", "--port", str(free_port())])
    assert shown.pop() == SHIPPED
    assert "those that come with Gramscope" in capsys.readouterr().out
    (tmp_path / "runs").mkdir()
    cli.main(["monitor", "--port", str(free_port())])
    assert shown.pop() == Path("runs")
    with pytest.raises(SystemExit, match="nowhere is no folder"):
        cli.main(["monitor", "nowhere", "--port", str(free_port())])
