"""Settings by name from a YAML file."""

from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which by itself keeps the last of several values of one name."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Composes one mapping; raises ``yaml.YAMLError`` if a name stands twice in it."""
        node = super().compose_mapping_node(anchor)
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.YAMLError(f"`{key.value}` stands in line {seen[key.value]} and again in line {line}")
                seen[key.value] = line
        return node


def load_yaml(file: str | Path) -> dict[str, Any]:
    """Reads a YAML file of the form ``name: value``.

    Args:
        file: The file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no valid YAML, is empty, has no names, or has a name twice.
    """
    try:
        settings = yaml.load(Path(file).read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(file)!r} is not valid YAML: {error}") from error
    if not isinstance(settings, dict) or not settings:
        found = "nothing" if not settings else f"a {type(settings).__name__}"
        raise ValueError(f"{str(file)!r} must have lines of the form `name: value`, got {found}")
    if wrong := [name for name in settings if not isinstance(name, str)]:
        raise ValueError(f"{str(file)!r} must have names that are text, got {wrong}; put them in quotes")
    return settings
