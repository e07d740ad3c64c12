"""Places where jobs run, by name."""

import pytest

from cluster.targets import find_target, read_targets


@pytest.fixture
def file(tmp_path):
    def write(text: str):
        path = tmp_path / "targets.toml"
        path.write_text(text)
        return path

    return write


def test_a_named_target_has_what_the_file_says(file):
    path = file(
        '[h100]\nlauncher = "slurm"\npartition = "h100"\nnodes = 32\ngpus = 8\nbefore = ["module load cuda"]\n'
        'environment = { NCCL_DEBUG = "WARN" }\n'
    )
    target = find_target("h100", path)
    assert (target.partition, target.nodes, target.before) == ("h100", 32, ("module load cuda",))
    assert target.environment == {"NCCL_DEBUG": "WARN"} and target.resources["gpus"] == 8


def test_without_a_file_a_target_is_a_launcher_and_its_partition(tmp_path):
    nowhere = tmp_path / "none.toml"
    assert find_target("local", nowhere).launcher == "local"
    assert find_target("slurm:gpu", nowhere).partition == "gpu"
    assert find_target("ray:http://head:8265", nowhere).address == "http://head:8265"
    with pytest.raises(ValueError, match=r"no target called 'moon'; known: local, slurm, .*targets\.toml"):
        find_target("moon", nowhere)
    with pytest.raises(ValueError, match="no target called 'local:gpu'"):
        find_target("local:gpu", nowhere)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = ", "no TOML"),
        ("x = 1", "a table"),
        ("[x]\nnodes = 1", "names no launcher"),
        ('[x]\nlauncher = "slurm"\nnode = 1', "unknown node; known: account, .*nodes"),
        ('[x]\nlauncher = "slurm"\nnodes = "2"', "nodes is a number, not '2'"),
        ('[x]\nlauncher = "slurm"\nnodes = true', "nodes is a number, not True"),
        ('[x]\nlauncher = "slurm"\nbefore = "module"', "before is a list of texts"),
        ('[x]\nlauncher = "slurm"\nbefore = [1]', "before is a list of texts"),
        ('[x]\nlauncher = "slurm"\nenvironment = { A = 1 }', "environment is a table of texts"),
        ('[x]\nlauncher = "slurm"\nname = "y"', "unknown name"),
    ],
)
def test_a_wrong_file_says_where_and_what(file, text, words):
    with pytest.raises(ValueError, match=words):
        read_targets(file(text))


def test_an_unknown_launcher_is_named(file):
    with pytest.raises(ValueError, match="launcher 'pbs'; known: local, slurm"):
        find_target("x", file('[x]\nlauncher = "pbs"'))


def test_the_example_in_the_documentation_is_a_good_one(file):
    import cluster.targets

    lines = cluster.targets.__doc__.split("\n\n")[1].splitlines()
    path = file("\n".join(line.removeprefix("    ") for line in lines))
    assert read_targets(path)["h100"].processes == 8
