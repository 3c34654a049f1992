"""What names may be and what they mean: of pipelines, of stages, of a stage's outputs.

In: a name as the user wrote it. Out: what is wrong with it, or the port that it means.
"""

import re
from difflib import get_close_matches
from pathlib import Path

from align.artifact import artifact_at
from align.config import KeyPath, Source
from align.errors import UserError, did_you_mean
from align.stage import Outside, PortType, Ref, Stage

SINGLE = "single"
RESERVED = ("logs", "store", SINGLE, "report.html")
"""What else lies in the folder of runs."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def wrong_name(name: str) -> str:
    """What keeps a pipeline or a stage from being called so; empty where nothing does."""
    if name in RESERVED:
        return f"{name!r} is taken in the folder of runs; choose another"
    return "" if _NAME.fullmatch(name) else f"letters, digits, '-', '_' and '.' are expected, not {name!r}"


def port_of(kind: type[Stage], name: str, port: str, wanted: PortType) -> str:
    """The port that `name` or `name/port` means. Raises UserError where there is none or it holds other rows."""
    ports = kind.OUTPUTS
    if not port:
        if len(ports) != 1:
            raise UserError(f"{name!r} has several outputs: say one of {', '.join(f'{name}/{p}' for p in ports)}")
        (port,) = ports
    if port not in ports:
        raise UserError(f"{name!r} has no output {port!r}{did_you_mean(port, ports)}")
    has = ports[port]
    fits = issubclass(has, wanted) if isinstance(has, type) and isinstance(wanted, type) else has == wanted
    if not fits:
        raise UserError(f"{name}/{port} holds {_word(has)}, but {_word(wanted)} is needed here")
    return port


def _word(port: PortType) -> str:
    return f"rows of {port.__name__}" if isinstance(port, type) else f"a {port}"


def in_runs(stage: Stage, root: Path, source: Source) -> Stage:
    """A copy whose references to steps of the runs in `root`, `run/step` or `run/step/output`, are folders. Raises
    UserError where rows are asked for that no step and no folder holds."""
    problems: list[str] = []

    def visit(path: KeyPath, found: tuple[object, ...], value: str) -> str:
        ref = next((m for m in found if isinstance(m, Ref)), None)
        place = Path(value).expanduser()
        if ref is None or place.exists() or artifact_at(place.parent) is not None:
            return value
        if any(artifact_at(folder) is not None for folder in (root / place, (root / place).parent)):
            return str(root / place)
        if isinstance(ref.to, type) and not any(isinstance(m, Outside) for m in found):
            near = get_close_matches(value, steps_in(root), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            problems.append(f"{source.at(path)}: no step in {root} and no artifact folder is called {value!r}{hint}")
        return value

    stage = stage.map_leaves(visit)
    if problems:
        raise UserError("\n".join(problems))
    return stage


def steps_in(root: Path) -> list[str]:
    """Every `run/step` in a folder of runs."""
    return sorted(f"{p.parent.name}/{p.name}" for p in root.glob("[!.]*/[!.]*") if p.is_symlink() and artifact_at(p))
