"""Agreements about the project as a whole: its lists, its map, its commands, what it must not say."""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MAKE = shutil.which("make")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements() -> list[str]:
    return [*project()["dependencies"], *project()["optional-dependencies"]["dev"]]


@functools.cache
def files() -> list[Path]:
    """The files of the project: those that git knows or would take in."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("this is not a git checkout, so its files cannot be told from what tools left behind")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    if MAKE is None:
        pytest.skip("make is not installed")
    command = [MAKE, "--no-print-directory", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"} | environment
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=environment)


def section(heading: str) -> str:
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", README.read_text(encoding="utf-8"), re.M | re.S)
    assert found, f"README.md has no section '## {heading}'"
    return found[1]


def tree() -> list[str]:
    """The paths of the annotated map: before two or more spaces and a remark, children indented by two."""
    block = re.search(r"^```[a-z]*\n(.*?)^```", section("The house"), re.M | re.S)
    assert block, "the section 'The house' of README.md has no fenced map"
    parents: list[str] = []
    paths = []
    for line in filter(str.strip, block[1].splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        if depth > len(parents):  # a remark that runs on
            continue
        names = re.split(r"\s{2,}", line.strip())[0].split()
        paths += ["/".join([*parents[:depth], name.rstrip("/")]) for name in names]
        parents[depth:] = [names[0].rstrip("/")]
    return paths


def commands() -> list[str]:
    """Every command of the README's shell blocks, without its comment."""
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^\$ |\s+#.*$|^#.*$)", "", line).strip() for line in lines) if line]


# Packages


def test_conda_users_get_the_same_packages():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *plain, pip = environment["dependencies"]
    assert plain == ["python=3.11", "pip"]
    assert pip["pip"] == [*requirements(), "-e ."]
    assert environment["name"] == project()["name"]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def test_constraints_pin_every_line_to_a_published_version():
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+", line), line  # no path, no +cpu, no range


def test_constraints_lie_within_the_ranges():
    pins = constraints()
    for requirement in map(Requirement, requirements()):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"constraints.txt does not pin {name}"
        assert requirement.specifier.contains(pins[name]), f"{name} {pins[name]} is not in {requirement.specifier}"


def test_every_range_has_both_ends():
    for requirement in map(Requirement, requirements()):
        assert {part.operator for part in requirement.specifier} >= {">=", "<"}, str(requirement)


def test_constraints_pin_all_that_the_packages_need():
    """A package that is installed here through some other one must be pinned as well."""
    pins, seen, queue = constraints(), set(), [Requirement(text) for text in requirements()]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if (name, *sorted(requirement.extras)) in seen:
            continue
        seen.add((name, *sorted(requirement.extras)))
        if name in ("pip", "setuptools", "wheel"):
            continue  # pip freeze leaves them out: they belong to the environment
        assert name in pins, f"constraints.txt does not pin {name}"
        for text in distribution(name).requires or []:
            need = Requirement(text)
            if any(need.marker is None or need.marker.evaluate({"extra": e}) for e in ("", *requirement.extras)):
                queue.append(need)


def test_installed_versions_are_the_pinned_ones():
    """The tests say something about the set of versions in constraints.txt only when they run with it."""
    for name, pin in constraints().items():
        installed = Version(distribution(name).version)
        assert Version(pin) in (installed, Version(installed.public)), f"{name}: {installed} is installed, not {pin}"


# Imports and packages


def test_imports_point_one_way():
    program = Path(sys.executable).with_name("lint-imports")
    out = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stdout + out.stderr


def test_every_package_folder_is_installed():
    """Folders with code are in the wheel, in the type check and in the import rules alike."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(config["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == packages
    assert set(config["tool"]["importlinter"]["root_packages"]) == packages
    assert set(config["tool"]["mypy"]["files"]) == packages


def test_public_names_of_the_workbench_resolve():
    import workbench

    assert all(getattr(workbench, name) is not None for name in workbench.__all__)


def test_tests_are_no_package():
    """With an __init__.py, tests/core would hide the package core."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_file_is_called_utils():
    assert not [path for path in files() if path.stem in ("utils", "util", "helpers", "misc")]


# The Makefile


def targets() -> set[str]:
    return set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1].split())


@pytest.mark.parametrize("target", ["app", "lab", "test", "check", "bench"])
def test_every_chore_is_a_target(target):
    assert target in targets()
    assert make("-n", target).returncode == 0


def test_modules_that_chores_run_exist():
    for module in re.findall(r"python -m ([\w.]+)", (ROOT / "Makefile").read_text(encoding="utf-8")):
        assert importlib.util.find_spec(module), f"the Makefile runs {module}, which does not exist"


@pytest.mark.parametrize("found", ["2.7", "3.9", "3.10", ""])
def test_an_old_python_is_named_before_anything_is_installed(tmp_path, found):
    python = tmp_path / "old python3"
    python.write_text(f"#!/bin/sh\necho {found}\n")
    python.chmod(0o755)
    out = make("app", f"PYTHON={python}", f"VENV={tmp_path}/venv")
    assert out.returncode != 0
    assert f"needs Python 3.11 or newer, and {python} is {found or 'not working'}" in out.stderr
    assert "make PYTHON=python3.12 app" in out.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("found", ["3.11", "3.12", "3.20"])
def test_a_newer_python_makes_the_environment(tmp_path, found):
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && echo {found} && exit\necho "$@"\nexit 1\n')
    python.chmod(0o755)
    out = make("app", f"PYTHON={python}", f"VENV={tmp_path}/venv")
    assert f"-m venv --clear {tmp_path}/venv" in out.stdout
    assert "cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" in out.stderr


def test_a_missing_python_is_said(tmp_path):
    out = make("test", f"PYTHON={tmp_path}/python3", f"VENV={tmp_path}/venv")
    assert out.returncode != 0
    assert f"There is no {tmp_path}/python3 here. Gramscope needs Python 3.11 or newer" in out.stderr


def test_torch_is_installed_first_and_pinned(tmp_path):
    lines = make("-n", "test", f"VENV={tmp_path}/venv").stdout.splitlines()
    installs = [line for line in lines if "pip" in line and " install " in line]
    assert len(installs) == 2
    assert all("-c constraints.txt" in line for line in installs)
    assert f"torch=={constraints()['torch']}" in installs[0]
    assert "-e '.[dev]'" in installs[1]


def test_the_app_needs_no_tools_of_developers(tmp_path):
    assert "[dev]" not in make("-n", "app", f"VENV={tmp_path}/venv").stdout


def test_a_second_call_installs_nothing(tmp_path):
    for name in ("app.stamp", "dev.stamp", "bin/pip"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for target in ("app", "lab", "test", "check", "bench"):
        assert " install " not in make("-n", target, f"VENV={tmp_path}").stdout
    os.utime(tmp_path / "app.stamp", (0, 0))  # older than the list of packages
    assert " install " in make("-n", "app", f"VENV={tmp_path}").stdout


def test_port_and_host_reach_the_app():
    assert re.search(r"gramscope app\s+--port '7861'", make("-n", "app", "PORT=7861").stdout)
    assert re.search(r"gramscope app.*--port '7861'", make("-n", "app", PORT="7861").stdout)
    assert "--host '0.0.0.0'" in make("-n", "app", "HOST=0.0.0.0").stdout


def test_a_host_name_exported_by_the_shell_does_not_open_the_app():
    assert "--host" not in make("-n", "app", HOST="box").stdout


# The README


def test_every_path_of_the_map_exists():
    missing = [path for path in tree() if not (ROOT / path).exists()]
    assert not missing, f"README.md lists {', '.join(missing)}"


def test_the_map_misses_nothing_at_the_top():
    top = {path.relative_to(ROOT).parts[0] for path in files()}
    missing = top - {path.partition("/")[0] for path in tree()} - {".gitignore"}
    assert not missing, f"the map of README.md leaves out {', '.join(sorted(missing))}"


def test_make_commands_of_the_readme_exist():
    named = [line.split()[1:] for line in commands() if line.startswith("make ")]
    assert {"app", "test"} <= {word for arguments in named for word in arguments}
    for arguments in named:
        words = [word for word in arguments if "=" not in word]
        assert words and set(words) <= targets(), f"README.md says: make {' '.join(arguments)}"
        assert make("-n", *arguments).returncode == 0


@pytest.mark.long
def test_gramscope_commands_of_the_readme_exist():
    from apps.cli import COMMANDS

    for line in commands():
        name, *arguments = line.removeprefix(".venv/bin/").split()
        if name != "gramscope":
            continue
        assert arguments[0] in {*COMMANDS, "--version", "--help"}, f"README.md says: {line}"
        program = Path(sys.executable).with_name("gramscope")
        takes_a_name = arguments[0] in ("train", "distill")
        recipe = [word for word in arguments[1:2] if takes_a_name and not word.startswith("--")]
        out = subprocess.run([program, arguments[0], *recipe, "--help"], capture_output=True, text=True, timeout=60)
        options = set(re.findall(r"--[\w.-]+", out.stdout)) | {"--version"}
        assert out.returncode == 0 or arguments[0] == "--version"
        assert {word.partition("=")[0] for word in arguments if word.startswith("--")} <= options, line


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#\s]+)", README.read_text(encoding="utf-8"))
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), f"README.md links to {link}"


# What the project must not say

PLACES = re.compile(r"(?<![\w.~*-])/(work|root|opt|home/[a-z])/")  # of one machine
REGISTRIES = re.compile(
    r"\b(files\.pythonhosted|pypi|test\.pypi|registry\.npmjs|deb\.debian)\.org\b|/simple/?\b(?=\s|$)"
)


def test_no_file_names_a_place_of_one_machine():
    named = []
    for path in files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and weights
        if path == Path(__file__):
            continue  # says what to look for
        named += [f"{path.relative_to(ROOT)}: {found[0]}" for found in PLACES.finditer(text)]
        named += [f"{path.relative_to(ROOT)}: {found[0]}" for found in REGISTRIES.finditer(text)]
    assert not named, "\n".join(named)


def test_no_file_is_needlessly_large():
    weights = ROOT / "core" / "models" / "pretrained"
    large = [path for path in files() if path.stat().st_size > 4_000_000 and weights not in path.parents]
    assert not large, f"a clone would carry {', '.join(str(path.relative_to(ROOT)) for path in large)}"


def test_ci_runs_the_checks_and_every_test():
    script = ROOT / ".ci" / "run"
    lines = script.read_text(encoding="utf-8").splitlines()
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in lines
    assert lines[-2:] == ["make check", "make test LONG=1"]
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert "-m " not in make("-n", "test", "LONG=1").stdout.rpartition("pytest")[2]


def test_browsers_are_looked_for_under_the_same_names():
    conftest = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    names = re.findall(r'"([\w-]+)"', re.search(r"^BROWSERS = \((.*?)\)", conftest, re.M)[1])
    assert f"for name in {' '.join(names)}; do" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
