"""What there is to know of a run, for a person and for a program: counts, metrics, where things lie.

In: the name of a run. Out: a dictionary of steps (`collect`), the same as text, and the keys of a stage for `--help`.
"""

import typing
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from align.artifact import Artifact
from align.config import shipped
from align.errors import UserError, did_you_mean
from align.stage import Outside, Ref, Stage, markers
from pipelines.catalog import stage_class
from pipelines.console import counts_text, duration


def steps_of(run: str, root: Path) -> dict[str, Artifact]:
    """The artifacts of a run by step: a pipeline's name, `pipeline/step`, or an artifact's folder.

    Raises UserError where there is no such run.
    """
    for path in (Path(run), root / run):
        if (path / "artifact.json").is_file():
            return {path.name: Artifact(path.resolve())}
        found = {p.name: Artifact(p.resolve()) for p in _links(path) if (p / "artifact.json").is_file()}
        if found:
            order = sorted(found, key=lambda n: found[n].manifest["created"])
            return {name: found[name] for name in order}
    runs = [p.name for p in root.iterdir() if p.name != "store"] if root.is_dir() else []
    raise UserError(f"{run}: no such run in {root}{did_you_mean(run, runs)}")


def model_at(name: str, root: Path) -> str:
    """The folder, config file or hub id that `name` means: a step that made a model (`run/step`, `run/step/port`), a
    published config by its name, or what it says. Raises UserError."""
    for path in (Path(name), root / name):
        if (path / "artifact.json").is_file():
            outputs = stage_class(Artifact(path.resolve()).manifest["stage"]).OUTPUTS
            ports = [port for port, kind in outputs.items() if kind == "model"]
            if not ports:
                raise UserError(f"{name}: this step made no model")
            if len(ports) > 1:
                raise UserError(f"{name}: this step made {len(ports)}: {', '.join(f'{name}/{port}' for port in ports)}")
            return str(path / ports[0])
        if path.exists():
            return str(path)
    published = shipped(name if name.endswith(".json") else Path("configs/models") / f"{name}.json")
    return str(published) if published.is_file() else name


def _links(path: Path) -> list[Path]:
    return [p for p in path.iterdir() if p.is_symlink()] if path.is_dir() else []


def collect(run: str, root: Path) -> dict[str, Any]:
    """Step name -> stage, counts, seconds, metrics, folder, libraries, config."""
    return {
        name: {
            "stage": artifact.manifest["stage"],
            "counts": artifact.manifest["counts"],
            "seconds": artifact.manifest["seconds"],
            "metrics": artifact.metrics,
            "folder": str(artifact.path),
            "config": artifact.manifest["config"],
            "libraries": artifact.manifest["libraries"],
        }
        for name, artifact in steps_of(run, root).items()
    }


def text(found: dict[str, Any]) -> str:
    """The same for a person: a line a step, its plain numbers below it, and the stage's own summary."""
    lines = []
    width = max(len(name) for name in found)
    for name, step in found.items():
        counts = counts_text(step["counts"])
        lines.append(f"{name:<{width}}  {counts}{', ' if counts else ''}{duration(step['seconds'])}  {step['folder']}")
        lines += [f"{'':<{width}}    {key}: {value}" for key, value in _plain(step["metrics"])]
        summary = stage_class(step["stage"]).summary_of(step["metrics"])
        if summary:
            lines.append(summary)
    return "\n".join(lines)


def _plain(metrics: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Numbers and words, nested keys joined by dots; curves and tables are left to the report and to --json."""
    found: list[tuple[str, str]] = []
    for key, value in metrics.items():
        if isinstance(value, dict) and len(value) <= 12 and not prefix.count("."):
            found += _plain(value, f"{prefix}{key}.")
        elif isinstance(value, bool | str) or value is None:
            found.append((f"{prefix}{key}", str(value)))
        elif isinstance(value, int | float):
            found.append((f"{prefix}{key}", f"{value:.6g}"))
    return found


def keys_of(kind: type[Stage]) -> list[tuple[str, str]]:
    """A stage's keys with their types and defaults, for `--help`."""
    return [(name, _about(field)) for name, field in kind.model_fields.items()]


def _about(field: FieldInfo) -> str:
    found = markers(field.annotation, field.metadata)
    ref = next((m for m in found if isinstance(m, Ref)), None)
    if ref is not None:
        what = f"an artifact of {ref.to.__name__} rows" if isinstance(ref.to, type) else f"a {ref.to}"
    elif any(isinstance(m, Outside) for m in found):
        what = "a path"
    else:
        what = _type_text(field.annotation)
    if field.is_required():
        return f"{what}, required"
    default = field.get_default(call_default_factory=True) if field.default is PydanticUndefined else field.default
    return f"{what}, default {default!r}" if isinstance(default, str | int | float | bool | list | None) else what


def _type_text(annotation: Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(str(a) for a in args)
    if origin is typing.Annotated:
        return _type_text(args[0])
    if origin in (list, tuple):
        return f"list of {_type_text(args[0])}"
    if origin is dict:
        return f"mapping to {_type_text(args[1])}"
    if args:
        return " | ".join(_type_text(a) for a in args if a is not type(None))
    return getattr(annotation, "__name__", str(annotation))
