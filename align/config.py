"""YAML and `key=value` into frozen pydantic models, with errors a person can act on.

In: a file or command-line words. Out: a validated model, or one `UserError` that lists every problem, each line
with the file, the line number, the key, what is wrong and the nearest valid name.
"""

import copy
import re
import typing
from collections.abc import Hashable, Iterable, Mapping
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from align.errors import UserError, did_you_mean

if typing.TYPE_CHECKING:
    from pydantic_core import ErrorDetails

KeyPath = tuple[str | int, ...]
MOST_LEVELS = 32
M = TypeVar("M", bound=BaseModel)


class Config(BaseModel):
    """Base of everything a user writes: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Word(NamedTuple):
    """A value from the command line, and what it is where text is wanted: as it was typed."""

    value: Any
    text: str


class Source:
    """Where a tree of values came from: names the file and the line of a key in messages.

    Without lines there is no file: all was typed. Parts of a file's tree may come from the command line (`given`) or
    from another file (`read_from`).
    """

    def __init__(self, name: str, lines: Mapping[KeyPath, int] | None = None) -> None:
        self.name = name
        self._lines = lines
        self._given: dict[KeyPath, tuple[str, str | None]] = {}
        self._parts: dict[KeyPath, Source] = {}

    def given(self, path: KeyPath, text: str | None, key: str = "") -> None:
        """What stands at `path` was typed as `key=text`; no text where only a part of it was typed."""
        self._parts = {at: part for at, part in self._parts.items() if at[: len(path)] != path}
        self._given[path] = (key or dotted(path), text)

    def passed_on(self, name: str, path: KeyPath, whole: bool) -> None:
        """What stands at `path` is, or holds, the parameter `name`."""
        if ("params", name) in self._given:
            key, text = self._given[("params", name)]
            self.given(path, text if whole else None, key)

    def read_from(self, path: KeyPath, source: "Source") -> None:
        """What stands at `path` was read from another file."""
        self._given.pop(path, None)
        self._parts[path] = source

    def text(self, path: KeyPath) -> str | None:
        """What was typed for the value at `path`."""
        return self._given.get(path, ("", None))[1]

    def at(self, path: KeyPath) -> str:
        """`file:line: a.b.c`, the line of the nearest key above where the key itself is missing."""
        above = [path[:n] for n in range(len(path), 0, -1)]
        start = next((start for start in above if start in self._given or start in self._parts), ())
        if start in self._parts:
            return self._parts[start].at(path[len(start) :])
        if start and self._lines is not None:
            return f"command line: {self._given[start][0]}{_joined(path[len(start) :])}"
        line = next((self._lines[start] for start in above if start in self._lines), None) if self._lines else None
        place = f"{self.name}:{line}" if line else self.name
        return f"{place}: {dotted(path)}" if path else place


def dotted(path: KeyPath) -> str:
    """`a.b[0].c` for a path of keys."""
    return _joined(path).lstrip(".")


def _joined(path: KeyPath) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)


def undotted(text: str) -> KeyPath:
    """The path that `dotted` writes as `a.b[0].c`."""
    parts = re.split(r"\.|\[(\d+)\]\.?", text)
    return tuple(int(part) if n % 2 else part for n, part in enumerate(parts) if part)


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
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: nested too deeply") from None
    except ValueError as error:  # a date that there is not, a number beyond all bounds
        raise UserError(f"{path}: not valid YAML: {error}") from None
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


_KEY = re.compile(r"[^.\[\]=]+(\[\d+\])*")


def parse_overrides(words: Iterable[str]) -> dict[KeyPath, Word]:
    """`a.b[0].c=1` words as {('a', 'b', 0, 'c'): Word(1, "1")}. Raises UserError for any other word."""
    found: dict[KeyPath, Word] = {}
    for word in words:
        key, eq, text = word.partition("=")
        parts = key.split(".")
        if not eq or not all(_KEY.fullmatch(part) for part in parts):
            raise UserError(f"{word!r}: expected key=value{', without spaces around `=`' if key == '' else ''}")
        value = _value_of(text)
        found[undotted(key)] = Word(value, value if isinstance(value, str) else text)
    return found


_NO_TEXT = re.compile(r"~|[-+]?(?!0\d)\.?\w[.\w]*([-+]\d+)?")
"""What may be a number, true, false or null; a number with leading zeros, a date or a time of day is none here."""


def _value_of(text: str) -> Any:
    """A list, a mapping or a quoted text as in YAML; a number, true, false or null; else the text as it was typed."""
    if not text.startswith(("[", "{", "'", '"')) and not _NO_TEXT.fullmatch(text):
        return text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def set_at(tree: dict[str, Any], path: KeyPath, value: Any) -> None:
    """Set one key deep in a tree, making the mappings on the way. Raises UserError where a value is in the way."""
    inside: Any = tree
    for i, part in enumerate(path):
        last = i == len(path) - 1
        if isinstance(part, int):
            if not isinstance(inside, list) or part >= len(inside):
                has = f"has {len(inside)} items" if isinstance(inside, list) else "is no list"
                raise UserError(f"{dotted(path)}: {dotted(path[:i])} {has}")
        elif isinstance(inside, list):
            raise UserError(f"{dotted(path)}: {dotted(path[:i])} is a list: say which item, {dotted(path[:i])}[0]")
        elif not isinstance(inside, dict):
            raise UserError(f"{dotted(path)}: {dotted(path[:i])} is {inside!r}, which has no keys")
        elif not last:
            inside.setdefault(part, {})
        if last:
            inside[part] = value
        else:
            inside = inside[part]


_PARAM = re.compile(r"\$\{(\w+)\}")


def parameters_in(value: Any) -> set[str]:
    """The names of all `${name}` in a tree of values."""
    if isinstance(value, dict | list):
        return {n for v in (value.values() if isinstance(value, dict) else value) for n in parameters_in(v)}
    return set(_PARAM.findall(value)) if isinstance(value, str) else set()


def interpolate(value: Any, params: Mapping[str, Any], source: Source, path: KeyPath = ()) -> Any:
    """Replace `${name}` by a parameter; a value that is nothing else keeps the parameter's type."""
    if isinstance(value, dict):
        return {k: interpolate(v, params, source, (*path, k)) for k, v in value.items()}
    if isinstance(value, list):
        return [interpolate(v, params, source, (*path, i)) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    whole = _PARAM.fullmatch(value)

    def known(match: re.Match[str]) -> Any:
        if match[1] not in params:
            raise UserError(f"{source.at(path)}: no parameter {match[1]!r}{did_you_mean(match[1], params)}")
        source.passed_on(match[1], path, bool(whole))
        return params[match[1]]

    def as_text(match: re.Match[str]) -> str:
        value, typed = known(match), source.text(("params", match[1]))
        return str(value) if typed is None else typed

    return known(whole) if whole else _PARAM.sub(as_text, value)


def build(model: type[M], data: Any, source: Source, path: KeyPath = ()) -> M:
    """Validate `data` as `model`. A number or the like from the command line is taken as typed where text is wanted.
    Raises UserError with one line for every problem found."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        as_typed = _as_typed(error, data, source, path)
        if as_typed is not None:
            return build(model, as_typed, source, path)
        raise UserError("\n".join(problems_of(error, model, data, source, path))) from None


def _as_typed(error: ValidationError, data: Any, source: Source, path: KeyPath) -> Any:
    """The data with the text as it was typed wherever text was wanted and something else read; None: nowhere."""
    changed = None
    for problem in error.errors(include_url=False):
        keys, value = _keys_of(problem["loc"], data), problem["input"]
        wanted = problem["type"] == "string_type" or (problem["type"] == "literal_error" and isinstance(value, bool))
        text = source.text((*path, *keys))
        if wanted and keys and text is not None and value is not None and not isinstance(value, str):
            changed = changed or copy.deepcopy(data)
            set_at(changed, keys, text)
    return changed


_WANTED = {
    "int": "a whole number", "float": "a number", "finite": "a finite number", "bool": "true or false",
    "string": "text", "list": "a list", "tuple": "a list", "dict": "a mapping of keys to values",
    "model": "a mapping of keys to values", "mapping": "a mapping of keys to values",
}  # fmt: skip
"""What was expected, by the first word of pydantic's name of a problem."""
_BOUNDS = {
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_too_short": "text of at least {min_length} letters",
    "string_pattern_mismatch": "text of the form {pattern}",
    "literal_error": "{expected}",
}


def problems_of(
    error: ValidationError, model: type[BaseModel], data: Any, source: Source, path: KeyPath = ()
) -> list[str]:
    """One line for every key that pydantic found something wrong with."""
    wanted: dict[KeyPath, dict[str, None]] = {}  # several where a key takes several types
    given: dict[KeyPath, Any] = {}
    said: dict[KeyPath, str] = {}
    unknown: dict[KeyPath, str] = {}
    for problem in error.errors(include_url=False):
        keys, kind, context = _keys_of(problem["loc"], data), problem["type"], problem.get("ctx", {})
        if kind == "extra_forbidden":
            names = {name for m in _models_at(model, keys[:-1], data) for name in m.model_fields}
            unknown[keys] = did_you_mean(str(keys[-1]), names)
        elif kind == "missing":
            said[(*keys, problem["loc"][-1])] = "this key is required"
        elif kind == "union_tag_not_found" and isinstance(problem["input"], dict):
            name = _unquoted(context["discriminator"])
            fields = [m.model_fields[name] for m in _models_at(model, keys, data) if name in m.model_fields]
            words = [word for f in fields for word in typing.get_args(f.annotation)]
            said[(*keys, name)] = f"this key is required; known: {', '.join(words)}"
        elif kind == "union_tag_invalid":
            known = [_unquoted(tag) for tag in context["expected_tags"].split(", ")]
            name = _unquoted(context["discriminator"])
            said[(*keys, name)] = f"{context['tag']!r} is not known here{did_you_mean(context['tag'], known)}"
        elif expected := _expected(problem):
            wanted.setdefault(keys, {})[expected] = None
            given[keys] = problem["input"]
        else:
            text = problem["msg"].removeprefix("Value error, ")
            said[keys] = text[0].lower() + text[1:] if not text.startswith(("URL", "JSON")) else text
    for keys, hint in unknown.items():
        said[keys] = f"unknown key{hint}"
        said = {k: t for k, t in said.items() if k[:-1] != keys[:-1] or hint != f"; did you mean {str(k[-1])!r}?"}
    for keys, several in wanted.items():
        either = " or ".join(several)
        near = get_close_matches(str(given[keys]), re.findall(r"'([^']*)'", either), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        if "text" in several and isinstance(given[keys], int | float | date):
            hint = "; put it in quotes"
        said.setdefault(keys, f"{either} is expected, not {_shown(given[keys])}{hint}")
    return [f"{source.at((*path, *keys))}: {text}" for keys, text in said.items()]


def _expected(problem: "ErrorDetails") -> str:
    """What pydantic wanted to stand there, empty where its own message has to do."""
    kind = problem["type"]
    if kind in _BOUNDS:
        bounds = {n: int(v) if isinstance(v, float) and v.is_integer() else v for n, v in problem["ctx"].items()}
        return _BOUNDS[kind].format(**bounds)
    return "a mapping of keys to values" if kind == "union_tag_not_found" else _WANTED.get(kind.split("_")[0], "")


def _unquoted(name: str) -> str:
    return name.strip("'")


def _shown(value: Any) -> str:
    """A wrong value as it is named in a message."""
    if value is None:
        return "an empty value"
    if isinstance(value, dict | list | tuple):
        return "a mapping" if isinstance(value, dict) else f"a list of {len(value)}"
    text = str(value).lower() if isinstance(value, bool | date) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


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


def _models_at(model: type[BaseModel], path: KeyPath, data: Any) -> list[type[BaseModel]]:
    """The models that may stand at a path below `model`; of a union the member that `data` chose."""
    models = [model]
    for part in path:
        data = data.get(part) if isinstance(data, dict) else data[int(part)] if isinstance(data, list) else None
        if isinstance(part, str) and any(part in m.model_fields for m in models):
            fields = [m.model_fields[part] for m in models if part in m.model_fields]
            models = [found for f in fields for found in _models_in(f.annotation)]
        chosen = [m for m in models if isinstance(data, dict) and _chosen(m, data)]
        models = chosen or models
    return models


def _chosen(member: type[BaseModel], data: Mapping[Any, Any]) -> bool:
    """Whether `data` has the member's own word at the key that tells a union's members apart."""
    fields = member.model_fields.items()
    words = {n: typing.get_args(f.annotation) for n, f in fields if typing.get_origin(f.annotation) is typing.Literal}
    return any(len(word) == 1 and data.get(name) == word[0] for name, word in words.items())
