"""YAML as settings files are written in it: no key twice, and numbers that every parser reads alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vexkd.errors import InputError


def read_yaml(path: Path | str) -> Any:
    """The content of a YAML file, which must exist. Raises InputError where it is not YAML."""
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: this is not YAML: {str(error).splitlines()[0]}; correct the file.") from error


def dump(values: dict[str, Any]) -> str:
    """Plain values as YAML that PyYAML and DVC's parser read alike: floats have a dot, and keys keep their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice; YAML itself would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a plain word", key.start_mark)
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper whose floats always have a dot."""


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _represent_float)
