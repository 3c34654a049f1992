"""A pipeline file into a plan: which stages, under which keys, which of them are there already and why not.

In: YAML and `key=value` words. Out: `Pipeline` (validated configs in file order) and `Planned` steps (resolved
folders, cache keys, the reason of every miss). Nothing runs here and no model loads.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from align.artifact import Artifact, Store
from align.config import KeyPath, Source, build, dotted, interpolate, parse_overrides, read_yaml, set_at, shipped
from align.errors import UserError, did_you_mean
from align.stage import Outside, PortType, Ref, Stage, key_tree
from pipelines.catalog import STAGES, stage_class
from pipelines.rounds import Entry, unrolled

TOP_KEYS = ("name", "seed", "params", "stages")
RESERVED = ("logs", "store", "single", "report.html")
"""What else lies in the folder of runs."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HUB = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Step:
    """One named stage of a pipeline, its references still names."""

    name: str
    stage: Stage
    at: KeyPath = ()  # where its keys stand in the source


@dataclass(frozen=True)
class Pipeline:
    """A validated pipeline: steps in the order of the file, which is the order of execution."""

    name: str
    steps: tuple[Step, ...]
    source: Source


@dataclass(frozen=True)
class Planned:
    """A step that is ready to run: references resolved, key known."""

    name: str
    stage: Stage
    key: str
    tree: Mapping[str, Any]  # what the key was made of
    artifact: Artifact
    unpinned: tuple[str, ...] = ()  # hub models whose commit could not be found out
    inputs: tuple[str, ...] = ()  # names of the steps above that it reads
    outside: tuple[tuple[str, str], ...] = ()  # files and folders of the user's with their digests


def find_pipeline(name: str) -> Path:
    """A file of the user's, a shipped `configs/...` path, or the bare name of a shipped pipeline."""
    path = shipped(name)
    if path.is_file():
        return path
    short = shipped(Path("configs/pipelines") / f"{name}.yaml")
    if "/" not in name and short.is_file():
        return short
    names = [p.stem for p in shipped("configs/pipelines").glob("*.yaml")]
    raise UserError(f"{name}: no such file, and no shipped pipeline of that name{did_you_mean(name, names)}")


def load_pipeline(path: Path, words: tuple[str, ...] = ()) -> Pipeline:
    """Read, override, interpolate and validate. Raises UserError listing every problem found."""
    data, source = read_yaml(path)
    for key in data:
        if key not in TOP_KEYS:
            raise UserError(f"{source.at((key,))}: unknown key{did_you_mean(str(key), TOP_KEYS)}")
    stages, params = data.get("stages"), data.get("params") or {}
    if not isinstance(stages, dict) or not stages:
        raise UserError(f"{source.at(('stages',))}: a mapping of stage names to stages is required")
    if not isinstance(params, dict):
        raise UserError(f"{source.at(('params',))}: a mapping of names to values is expected")
    _override(data, stages, params, words)
    name, seed = str(data.get("name") or path.stem), data.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UserError(f"{source.at(('seed',))}: a whole number is expected, not {seed!r}")
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise UserError(f"{source.at(('name',))}: letters, digits, '-', '_' and '.' are expected, not {name!r}")
    steps, problems = [], []
    for entry in unrolled(stages, params, source):
        try:
            steps.append(_step(entry, params, seed, source))
        except UserError as error:
            problems.append(str(error))
    for twice, count in Counter(s.name for s in steps).items():
        if count > 1:
            problems.append(f"{source.at(('stages',))}: {twice!r} is a stage of its own and one of a round")
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    pipeline = Pipeline(name, tuple(steps), source)
    check_references(pipeline)
    return pipeline


def _override(data: dict[str, Any], stages: dict[str, Any], params: dict[str, Any], words: tuple[str, ...]) -> None:
    for path, value in parse_overrides(words).items():
        if len(path) == 1 and path[0] in params:
            params[str(path[0])] = value
        elif len(path) == 1 and path[0] in ("seed", "name"):
            data[str(path[0])] = value
        elif len(path) > 1 and path[0] in stages:
            set_at(stages, path, value)
        else:
            known = [*params, "seed", "name", *stages]
            what = "a stage's key is set as <stage>.<key>=" if path[0] in stages else "nothing of that name to set"
            raise UserError(f"{dotted(path)}=: {what}{did_you_mean(str(path[0]), known)}")


def _step(entry: Entry, params: dict[str, Any], seed: int, source: Source) -> Step:
    name, config, at = entry.name, entry.config, entry.at
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise UserError(f"{source.at(at)}: a stage's name has letters, digits, '-', '_' and '.', and is not {name!r}")
    if not isinstance(config, dict) or "stage" not in config:
        raise UserError(f"{source.at(at)}: `stage: <kind>` is required; known: {', '.join(STAGES)}")
    config = interpolate(config, {**params, **entry.params}, source, at)
    kind = config.pop("stage")
    if kind not in STAGES:
        raise UserError(f"{source.at((*at, 'stage'))}: {kind!r} is no stage{did_you_mean(str(kind), STAGES)}")
    stage = build(stage_class(kind), {"seed": seed, **config}, source, at)
    problems: list[str] = []

    def meant(path: KeyPath, found: tuple[object, ...], value: str) -> str:
        try:
            return entry.meaning(value) if any(isinstance(m, Ref) for m in found) else value
        except UserError as error:
            problems.append(f"{source.at((*at, *path))}: {error}")
            return value

    stage = stage.map_leaves(meant)
    if problems:
        raise UserError("\n".join(problems))
    return Step(name, stage, at)


def single(kind: str, words: tuple[str, ...]) -> Pipeline:
    """A pipeline of one stage from the command line: the same keys as in YAML, references are artifact folders."""
    config: dict[str, Any] = {}
    for path, value in parse_overrides(words).items():
        set_at(config, path, value)
    source = Source(f"vlm-align {kind}")
    return Pipeline("single", (Step(kind, build(stage_class(kind), config, source)),), source)


@dataclass
class _Resolver:
    """Turns the marked strings of one step into key values and folders; collects problems instead of stopping."""

    pipeline: Pipeline
    above: Mapping[str, Planned]
    store: Store
    at: KeyPath
    pins: dict[str, str | UserError]  # of the whole plan: a model is looked up once
    problems: list[str] = field(default_factory=list)
    unpinned: list[str] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outside: list[tuple[str, str]] = field(default_factory=list)

    def visit(self, path: KeyPath, found: tuple[object, ...], value: str) -> str:
        """The value's form in the key (JSON text); its folder is kept for `folder`."""
        where = self.pipeline.source.at((*self.at, *path))
        before = len(self.unpinned)
        try:
            key, folder = self._resolve(found, value)
        except UserError as error:
            self.problems.append(f"{where}: {error}")
            key, folder = value, value
        self.unpinned[before:] = [f"{where}: {text}" for text in self.unpinned[before:]]
        self.folders[dotted(path)] = folder
        return key

    def folder(self, path: KeyPath, found: tuple[object, ...], value: str) -> str:
        return self.folders[dotted(path)]

    def _resolve(self, found: tuple[object, ...], value: str) -> tuple[str, str]:
        ref = next((m for m in found if isinstance(m, Ref)), None)
        outside = any(isinstance(m, Outside) for m in found)
        if ref is not None:
            name, _, port = value.partition("/")
            if name in self.above:
                planned = self.above[name]
                port = port_of(type(planned.stage), name, port, ref.to)
                self.inputs.append(name)
                return _artifact_key(planned.key, port), str(planned.artifact.path / port)
            artifact = _artifact_at(Path(value), ref.to)
            if artifact is not None:
                return artifact
            if ref.to == "model":
                return self._model(value)
            if not outside:
                raise UserError(f"no stage above and no artifact folder is called {value!r}")
        path = shipped(Path(value).expanduser())
        if not path.exists():
            raise UserError(f"{value!r} does not exist")
        if ref is not None and ref.to == "folder" and not path.is_dir():
            raise UserError(f"{value!r} is no folder")
        return self._digest(path), str(path.absolute())

    def _digest(self, path: Path) -> str:
        digest = self.store.digest(path)
        self.outside.append((str(path.absolute()), digest))
        return f"sha256:{digest}"

    def _model(self, value: str) -> tuple[str, str]:
        path = Path(value).expanduser()
        if path.exists():
            from align.models import base_of, check_model, is_adapter

            check_model(str(path))
            key = self._digest(path)
            if is_adapter(path):  # a user's own adapter is only half of the model
                key += f"+{self._model(base_of(path))[0]}"
            return key, str(path.absolute())
        if not _HUB.fullmatch(value):
            raise UserError(f"no stage above, folder or hub id (org/name) is called {value!r}")
        from align.hub import pin

        name = value.partition("@")[0]
        if value not in self.pins:
            try:
                self.pins[value] = pin(value)
            except UserError as error:
                self.pins[value] = error
        pinned = self.pins[value]
        if isinstance(pinned, UserError):
            near = get_close_matches(value, [f"{s}/{p}" for s, a in self.above.items() for p in a.stage.OUTPUTS], n=1)
            self.unpinned.append(f"{pinned}{f'; did you mean the stage {near[0]!r}?' if near else ''}")
            return f"hub:{value}", value
        return f"hub:{name}@{pinned}", f"{name}@{pinned}"


def _artifact_key(key: str, port: str) -> str:
    return f"artifact:{key}/{port}"


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


def _artifact_at(path: Path, wanted: PortType) -> tuple[str, str] | None:
    for folder, port in ((path, ""), (path.parent, path.name)):
        if (folder / "artifact.json").is_file():
            manifest = Artifact(folder).manifest
            port = port_of(stage_class(manifest["stage"]), str(folder), port, wanted)
            return _artifact_key(manifest["key"], port), str(folder.resolve() / port)
    return None


def check_references(pipeline: Pipeline) -> None:
    """References to stages must point upward and fit; no file is looked at. Raises UserError with every problem."""
    problems: list[str] = []
    kinds = {s.name: type(s.stage) for s in pipeline.steps}
    seen: set[str] = set()
    for step in pipeline.steps:

        def visit(path: KeyPath, found: tuple[object, ...], value: str, step: Step = step) -> str:
            ref = next((m for m in found if isinstance(m, Ref)), None)
            name, _, port = value.partition("/")
            where = pipeline.source.at((*step.at, *path))
            if ref is None or Path(value).exists():
                return value
            if name in kinds:
                if name not in seen:
                    problems.append(f"{where}: {name!r} stands below or is this stage; only a stage above can be used")
                else:
                    try:
                        port_of(kinds[name], name, port, ref.to)
                    except UserError as error:
                        problems.append(f"{where}: {error}")
            elif isinstance(ref.to, type) or (ref.to == "model" and "/" not in value):
                problems.append(f"{where}: no stage above is called {name!r}{did_you_mean(name, seen)}")
            return value

        step.stage.map_leaves(visit)
        seen.add(step.name)
    if problems:
        raise UserError("\n".join(problems))


def plan(pipeline: Pipeline, store: Store) -> list[Planned]:
    """Resolve every step and its key. Raises UserError listing every file, folder and model that is not there."""
    planned: dict[str, Planned] = {}
    problems: list[str] = []
    pins: dict[str, str | UserError] = {}
    for step in pipeline.steps:
        resolver = _Resolver(pipeline, planned, store, step.at, pins)
        tree = key_tree(step.stage.map_leaves(resolver.visit))
        resolved = step.stage.map_leaves(resolver.folder)
        try:
            if not resolver.problems:
                resolved.check()
        except UserError as error:
            resolver.problems.append(f"{pipeline.source.at(step.at)}: {error}")
        key = _key(step.stage, tree)
        problems += resolver.problems
        unpinned = (*resolver.unpinned, *(u for n in resolver.inputs for u in planned[n].unpinned))
        artifact = Artifact(store.artifact(step.stage.NAME, key))
        inputs = tuple(dict.fromkeys(resolver.inputs))
        planned[step.name] = Planned(
            step.name, resolved, key, tree, artifact, unpinned, inputs, tuple(resolver.outside)
        )
    if problems:
        raise UserError("\n".join(problems))
    return list(planned.values())


def _key(stage: Stage, tree: Mapping[str, Any]) -> str:
    identity = {"stage": stage.NAME, "version": stage.VERSION, "config": tree}
    # Keys in the order of the config: in a mapping such as `models` the first one may mean something.
    text = json.dumps(identity, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def explain(step: Planned, before: Artifact | None) -> str:
    """Why a step is no hit: which fields differ from what this pipeline made last time."""
    if before is None or not before.complete:
        return "not built yet"
    manifest = before.manifest
    if manifest["stage"] != step.stage.NAME:
        return f"was a {manifest['stage']} stage"
    if manifest["version"] != step.stage.VERSION:
        return f"the meaning of {step.stage.NAME} changed (version {manifest['version']} -> {step.stage.VERSION})"
    old, new = _flat(manifest["config"]), _flat(step.tree)
    changes = []
    for name in sorted({*old, *new}):
        was, now = old.get(name), new.get(name)
        if was == now:
            continue
        if any(str(v).startswith("artifact:") for v in (was, now)):
            changes.append(f"{name} is rebuilt")
        elif any(str(v).startswith("sha256:") for v in (was, now)):
            changes.append(f"the content of {name} changed")
        else:
            changes.append(f"{name} {_show(was)} -> {_show(now)}")
    if not changes and manifest["key"] != step.key:
        return "the order of its keys changed"
    return "; ".join(changes) or "its artifact is gone"


def _show(value: Any) -> str:
    return "(none)" if value is None else str(value)


def _flat(value: Any, path: KeyPath = ()) -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for name, below in value.items() for k, v in _flat(below, (*path, name)).items()}
    if isinstance(value, list):
        return {k: v for i, below in enumerate(value) for k, v in _flat(below, (*path, i)).items()}
    return {dotted(path): value}
