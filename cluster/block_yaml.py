"""YAML for people: scripts as blocks, nothing said by reference."""

from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def dump(*documents: Any) -> str:
    """The documents as one text, in the order of their keys."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=10_000)
