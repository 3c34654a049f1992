"""YAML and `key=value` into frozen pydantic models, with errors a person can act on.

In: a file or command-line words. Out: a validated model, or one `UserError` that lists every problem, each line
with the file, the line number, the key, what is wrong and the nearest valid name.
"""

import re
import typing
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from align.errors import UserError, did_you_mean

KeyPath = tuple[str | int, ...]
MOST_LEVELS = 32
M = TypeVar("M", bound=BaseModel)


class Config(BaseModel):
    """Base of everything a user writes: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Source:
    """Where a tree of values came from: names the file and the line of a key in messages."""

    def __init__(self, name: str, lines: Mapping[KeyPath, int] | None = None) -> None:
        self.name = name
        self._lines = lines or {}

    def at(self, path: KeyPath) -> str:
        """`file:line: a.b.c`, the line of the nearest key above where the key itself is missing."""
        line = next((self._lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self._lines), None)
        place = f"{self.name}:{line}" if line else self.name
        return f"{place}: {dotted(path)}" if path else place


def dotted(path: KeyPath) -> str:
    """`a.b[0].c` for a path of keys."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")


def shipped(path: str | Path) -> Path:
    """The path itself where it exists; else, for a path below `configs/`, the file that ships with the package."""
    path = Path(path)
    if path.exists() or path.parts[:1] != ("configs",):
        return path
    return shipped_root().joinpath(*path.parts[1:])


def shipped_root() -> Path:
    """The folder of shipped configs: inside the installed wheel, or at the top of a checkout."""
    above = Path(__file__).resolve().parent.parent
    installed = above / "pipelines" / "_configs"
    return installed if installed.is_dir() else above / "configs"


def read_yaml(path: Path) -> tuple[dict[str, Any], Source]:
    """A YAML mapping and its source. Raises UserError for a missing, unreadable or non-mapping file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a mapping of keys to values is expected, not {type(data).__name__}")
    lines: dict[KeyPath, int] = {}
    problems: list[str] = []
    _lines_of(node, (), lines, problems, str(path))
    if problems:
        raise UserError("\n".join(problems))
    return data, Source(str(path), lines)


def _lines_of(node: yaml.Node | None, path: KeyPath, lines: dict[KeyPath, int], problems: list[str], name: str) -> None:
    if len(path) > MOST_LEVELS:
        problems.append(f"{name}: {dotted(path[:3])}: nested deeper than {MOST_LEVELS} levels, or within itself")
    elif isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                problems.append(f"{name}:{line}: {dotted((*path, key.value))}: the key stands here twice")
            seen.add(key.value)
            lines[(*path, key.value)] = line
            _lines_of(value, (*path, key.value), lines, problems, name)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*path, i)] = value.start_mark.line + 1
            _lines_of(value, (*path, i), lines, problems, name)


def parse_overrides(words: Iterable[str]) -> dict[KeyPath, Any]:
    """`a.b=1` words as {('a', 'b'): 1}; values are YAML. Raises UserError for a word without `=`."""
    found: dict[KeyPath, Any] = {}
    for word in words:
        key, eq, value = word.partition("=")
        if not eq or not key:
            raise UserError(f"{word!r}: expected key=value")
        try:
            found[tuple(key.split("."))] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError:
            found[tuple(key.split("."))] = value
    return found


def set_at(tree: dict[str, Any], path: KeyPath, value: Any) -> None:
    """Set one key deep in a tree, making the mappings on the way. Raises UserError where a value is in the way."""
    for i, part in enumerate(path[:-1]):
        below = tree.setdefault(str(part), {})
        if not isinstance(below, dict):
            raise UserError(f"{dotted(path)}: {dotted(path[: i + 1])} is {below!r}, which has no keys")
        tree = below
    tree[str(path[-1])] = value


_PARAM = re.compile(r"\$\{(\w+)\}")


def interpolate(value: Any, params: Mapping[str, Any], source: Source, path: KeyPath = ()) -> Any:
    """Replace `${name}` by a parameter; a value that is nothing else keeps the parameter's type."""
    if isinstance(value, dict):
        return {k: interpolate(v, params, source, (*path, k)) for k, v in value.items()}
    if isinstance(value, list):
        return [interpolate(v, params, source, (*path, i)) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def known(match: re.Match[str]) -> Any:
        if match[1] not in params:
            raise UserError(f"{source.at(path)}: no parameter {match[1]!r}{did_you_mean(match[1], params)}")
        if params[match[1]] is None:
            raise UserError(f"{source.at(path)}: {match[1]!r} has no value: give {match[1]}=...")
        return params[match[1]]

    whole = _PARAM.fullmatch(value)
    return known(whole) if whole else _PARAM.sub(lambda m: str(known(m)), value)


def build(model: type[M], data: Any, source: Source, path: KeyPath = ()) -> M:
    """Validate `data` as `model`. Raises UserError with one line for every problem found."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError("\n".join(problems_of(error, model, data, source, path))) from None


def problems_of(
    error: ValidationError, model: type[BaseModel], data: Any, source: Source, path: KeyPath = ()
) -> list[str]:
    """One line for every problem that pydantic found in `data`."""
    lines = []
    for problem in error.errors(include_url=False):
        keys = _keys_of(problem["loc"], data)
        where = source.at((*path, *keys))
        kind = problem["type"]
        if kind == "extra_forbidden":
            name = str(keys[-1]) if keys else ""
            lines.append(f"{where}: unknown key{did_you_mean(name, _names_at(model, keys[:-1]))}")
        elif kind == "missing":
            name = str(problem["loc"][-1])
            lines.append(f"{source.at((*path, *keys, name))}: this key is required")
        else:
            text = problem["msg"].removeprefix("Value error, ")
            text = text[0].lower() + text[1:] if not text.startswith(("URL", "JSON")) else text
            given = problem["input"]
            shown = f", not {given!r}" if isinstance(given, str | int | float | bool | None) else ""
            lines.append(f"{where}: {text}{shown if kind != 'value_error' else ''}")
    return list(dict.fromkeys(lines))


def _keys_of(loc: tuple[int | str, ...], data: Any) -> KeyPath:
    """Pydantic's location without the names of union members, which are no keys of the user's.

    A member may have the name of a key beside it: of the readings that `data` allows, the one that keeps the last name
    is right, and the longest of those.
    """
    readings: list[tuple[KeyPath, Any]] = [((), data)]
    for i, part in enumerate(loc):
        longer = []
        for keys, inside in readings:
            if part in inside if isinstance(inside, dict) else isinstance(inside, list) and part in range(len(inside)):
                longer.append(((*keys, part), inside[part]))
        readings = longer if i == len(loc) - 1 and longer else readings + longer
    return max((keys for keys, _ in readings), key=len)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in typing.get_args(annotation) for m in _models_in(a)]


def _names_at(model: type[BaseModel], path: KeyPath) -> set[str]:
    """The valid keys at a path below `model`, those of every member where it is a union."""
    models = [model]
    for part in path:
        if isinstance(part, str) and any(part in m.model_fields for m in models):
            fields = [m.model_fields[part] for m in models if part in m.model_fields]
            models = [found for f in fields for found in _models_in(f.annotation)]
    return {name for m in models for name in m.model_fields}
