"""Write a profile over params.yaml: the comments stay, the difference is shown, and nothing invalid is written."""

from __future__ import annotations

import difflib
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from wronai import params

OVER = "over"  # the key of a profile that names the one it changes


def apply(profile: Path, target: Path) -> str:
    """Write the values of `profile` over those of `target`, a params.yaml; returns the difference, unified.

    A profile that is `over` another changes some of its values. Raises params.ParamsError, and writes nothing, if one
    names a key that `target` lacks or the result is not valid.
    """
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), _null)
    before = target.read_text(encoding="utf-8")
    values = yaml.load(before)
    _put_over(values, profile)
    written = io.StringIO()
    yaml.dump(values, written)
    after = written.getvalue()
    params.parse(YAML(typ="safe", pure=True).load(after), f"{target.name} with {profile.name}")
    target.write_text(after, encoding="utf-8")
    return "".join(
        difflib.unified_diff(before.splitlines(True), after.splitlines(True), target.name, profile.name, n=0)
    )


def load(profile: Path, target: Path) -> params.Params:
    """The parameters of `target`, a params.yaml, with `profile` over them. Raises as `apply`; writes nothing."""
    values = params.read(target)
    _put_over(values, profile)
    return params.parse(values, f"{target.name} with {profile.name}")


def _put_over(values: Any, profile: Path) -> None:
    for layer in _layers(profile):
        _overlay(values, params.read(layer), layer.name)


def _null(representer: Any, _: None) -> Any:
    """As params.yaml spells it; ruamel would leave the place empty."""
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def _layers(profile: Path) -> list[Path]:
    """The profiles that make up `profile`, in the order in which they are applied."""
    found = [profile]
    while (below := params.read(found[0]).get(OVER)) is not None:
        path = profile.with_name(f"{below}.yaml")
        if path in found or not path.is_file():
            raise params.ParamsError(f"{found[0].name}: {OVER}: found {below!r}; expected another profile beside it")
        found.insert(0, path)
    return found


def _overlay(values: Any, overlay: Mapping[str, Any], name: str, prefix: str = "") -> None:
    for key, value in overlay.items():
        if not prefix and key == OVER:
            continue
        if key not in values:
            raise params.ParamsError(f"{name}: {prefix}{key}: params.yaml has no such key")
        if isinstance(value, Mapping) and isinstance(values[key], Mapping):
            _overlay(values[key], value, name, f"{prefix}{key}.")
        else:
            values[key] = value


def main(arguments: list[str]) -> int:
    """Apply the profile named by the one argument to params.yaml in the working directory, and print the difference."""
    known = sorted(path.stem for path in Path("profiles").glob("*.yaml"))
    if len(arguments) != 1 or arguments[0] not in known:
        found = f"found {arguments[0]!r}" if arguments else "no name given"
        print(f"make profile NAME=…: {found}; expected one of: {', '.join(known)}", file=sys.stderr)
        return 1
    try:
        print(apply(Path("profiles") / f"{arguments[0]}.yaml", Path("params.yaml")), end="")
    except params.ParamsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
