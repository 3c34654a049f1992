"""A pipeline file into a plan: which stages, under which keys, which of them are there already and why not.

In: YAML and `key=value` words. Out: `Pipeline` (validated configs in file order) and `Planned` steps (resolved
folders, cache keys, the reason of every miss). Nothing runs here and no model loads.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from align.artifact import Artifact, Store, artifact_at
from align.config import (
    KeyPath,
    Source,
    build,
    dotted,
    interpolate,
    parameters_in,
    parse_overrides,
    read_yaml,
    shipped,
    undotted,
)
from align.errors import UserError, did_you_mean, is_text
from align.hub import HUB_ID, RepoType, pin
from align.stage import Outside, PortType, Ref, Stage, key_tree
from pipelines.across import check_adapters, check_samplers, wrong_devices
from pipelines.catalog import STAGES, stage_class
from pipelines.names import SINGLE, in_runs, port_of, wrong_name
from pipelines.overrides import override, set_key
from pipelines.rounds import Entry, unrolled

TOP_KEYS = ("name", "seed", "params", "stages")
MOST_SEED = 2**32


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
    missing: tuple[str, ...] = ()  # parameters that the user has yet to give
    unused: tuple[str, ...] = ()  # stages that are left out, for no other refers to them


@dataclass(frozen=True)
class Planned:
    """A step that is ready to run: references resolved, key known."""

    name: str
    stage: Stage
    key: str
    tree: Mapping[str, Any]  # what the key was made of
    artifact: Artifact
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
    if path.is_dir():
        raise UserError(f"{name}: is a folder; a pipeline's YAML file is expected")
    raise UserError(f"{name}: no such file, and no shipped pipeline of that name{did_you_mean(name, names)}")


def load_pipeline(path: Path, words: tuple[str, ...] = (), incomplete: bool = False) -> Pipeline:
    """Read, override, interpolate and validate. A parameter without a value that a stage uses is a mistake, or, where
    `incomplete` is allowed, listed in `missing`. Raises UserError listing every problem found."""
    data, source = read_yaml(path)
    if "reward" in data and "stages" not in data:
        raise UserError(
            f"{path}: is a reward, not a pipeline: for `vlm-align score`, `serve-reward` and `bench-reward`"
        )
    for key in data:
        if key not in TOP_KEYS:
            raise UserError(f"{source.at((key,))}: unknown key{did_you_mean(str(key), TOP_KEYS)}")
    stages, params = data.get("stages"), data.get("params") or {}
    if not isinstance(stages, dict) or not stages:
        raise UserError(f"{source.at(('stages',))}: a mapping of stage names to stages is required")
    if not isinstance(params, dict):
        raise UserError(f"{source.at(('params',))}: a mapping of names to values is expected")
    override(data, stages, params, words, source)
    name, seed = str(data.get("name") or path.stem), data.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < MOST_SEED:
        raise UserError(f"{source.at(('seed',))}: a whole number from 0 on is expected, not {seed!r}")
    if wrong := wrong_name(name):
        raise UserError(f"{source.at(('name',))}: {wrong}")
    used = parameters_in(stages)
    missing = tuple(n for n, value in params.items() if value is None and n in used)
    if missing and not incomplete:
        raise UserError("\n".join(f"{source.at(('params', n))}: has no value: give {n}=..." for n in missing))
    params = {**params, **{n: f"${{{n}}}" for n in missing}}
    steps: list[Step] = []
    problems: list[str] = []
    try:
        for entry in unrolled(stages, params, source):
            try:
                steps.append(_step(entry, params, seed, source))
            except UserError as error:
                problems += str(error).splitlines()
    except UserError as error:  # a block of rounds that cannot be written out
        problems += str(error).splitlines()
    for twice, count in Counter(s.name for s in steps).items():
        if count > 1:
            problems.append(f"{source.at(('stages',))}: {twice!r} is a stage of its own and one of a round")
    known = [p for p in problems if not any(f"${{{n}}}" in p for n in missing)]  # a missing value is no wrong value
    if known:
        raise UserError("\n".join(dict.fromkeys(known)))
    unused = unused_in(steps)
    pipeline = Pipeline(name, tuple(s for s in steps if s.name not in unused), source, missing, unused)
    if not problems:  # else a stage that others refer to is not there
        check_references(pipeline)
        check_samplers(pipeline)
        check_adapters(pipeline)
    return pipeline


def unused_in(steps: list[Step]) -> tuple[str, ...]:
    """The stages on demand that no other refers to, in a pipeline that has other stages."""
    used: set[str] = set()

    def visit(path: KeyPath, found: tuple[object, ...], value: str) -> str:
        if any(isinstance(m, Ref) for m in found):
            used.add(value.partition("/")[0])
        return value

    for step in steps:
        step.stage.map_leaves(visit)
    unused = tuple(s.name for s in steps if s.stage.ON_DEMAND and s.name not in used)
    return unused if len(unused) < len(steps) else ()


def _step(entry: Entry, params: dict[str, Any], seed: int, source: Source) -> Step:
    name, config, at = entry.name, entry.config, entry.at
    if wrong := wrong_name(name):
        raise UserError(f"{source.at(at)}: a stage's name: {wrong}")
    if not isinstance(config, dict) or "stage" not in config:
        raise UserError(f"{source.at(at)}: `stage: <kind>` is required; known: {', '.join(STAGES)}")
    config = interpolate(config, {**params, **entry.params}, source, at)
    kind = str(config.pop("stage"))
    if kind not in STAGES:
        raise UserError(f"{source.at((*at, 'stage'))}: {kind!r} is no stage{did_you_mean(kind, STAGES)}")
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


def single(kind: str, words: tuple[str, ...], root: Path | None = None) -> Pipeline:
    """A pipeline of one stage from the command line: the same keys as in YAML, in a file of them, as words, or both;
    references are artifact folders, or steps of the runs in `root`. Raises UserError."""
    config: dict[str, Any] = {}
    source = Source(f"vlm-align {kind}")
    if words and "=" not in words[0] and words[0].endswith((".yaml", ".yml")):
        config, source = read_yaml(shipped(words[0]))
        words = words[1:]
        if config.pop("stage", kind) != kind:
            raise UserError(f"{source.at(('stage',))}: these are the keys of another stage, not of {kind}")
    for path, word in parse_overrides(words).items():
        set_key(config, path, word, source)
    stage = build(stage_class(kind), config, source)
    if root is not None:
        stage = in_runs(stage, root, source)
    return Pipeline(SINGLE, (Step(kind, stage),), source)


_KEYED = re.compile(r"(\w+(?:\.\w+|\[\d+\])*): (.*)", re.DOTALL)


def at_its_key(source: Source, step: Step, text: str) -> str:
    """What a stage's check says, `key: what is wrong`, with the place of the key."""
    found = _KEYED.fullmatch(text)
    if found is None or undotted(found[1])[0] not in type(step.stage).model_fields:
        return f"{source.at(step.at)}: {text}"
    return f"{source.at((*step.at, *undotted(found[1])))}: {found[2]}"


@dataclass
class _Resolver:
    """Turns the marked strings of one step into key values and folders; collects problems instead of stopping."""

    pipeline: Pipeline
    above: Mapping[str, Planned]
    store: Store
    at: KeyPath
    reads: Callable[[str], tuple[str, ...] | None]  # the stage's
    pins: dict[str, str]  # of the whole plan: a model or data set is looked at once; empty: there is none such
    problems: list[str] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)
    outside: list[tuple[str, str]] = field(default_factory=list)

    def visit(self, path: KeyPath, found: tuple[object, ...], value: str) -> str:
        """The value's form in the key (JSON text); its folder is kept for `folder`."""
        try:
            key, folder = self._resolve(path, found, value)
            if not is_text(folder):  # the working folder's name, for the value itself is text
                raise UserError(f"{folder!r}: a path in UTF-8 is needed; rename the folder")
        except UserError as error:
            self.problems.append(f"{self.pipeline.source.at((*self.at, *path))}: {error}")
            key, folder = value, value
        self.folders[dotted(path)] = folder
        return key

    def folder(self, path: KeyPath, found: tuple[object, ...], value: str) -> str:
        return self.folders[dotted(path)]

    def _resolve(self, at: KeyPath, found: tuple[object, ...], value: str) -> tuple[str, str]:
        ref = next((m for m in found if isinstance(m, Ref)), None)
        outside = any(isinstance(m, Outside) for m in found)
        if ref is not None:
            name, _, port = value.partition("/")
            if name in self.above:
                planned = self.above[name]
                port = port_of(type(planned.stage), name, port, ref.to)
                return _artifact_key(planned.key, port), str(planned.artifact.path / port)
            artifact = _artifact_at(Path(value), ref.to)
            if artifact is not None:
                return artifact
            if ref.to == "model":
                return self._model(value, family=not outside)
            if not outside:
                rows = "; rows of a file come in by `import-data source=FILE`" if Path(value).is_file() else ""
                raise UserError(f"no stage above and no artifact folder is called {value!r}{rows}")
        elif not outside:
            return self._pinned(value, "dataset")
        path = shipped(Path(value).expanduser())
        if not path.exists():
            near = get_close_matches(value.partition("/")[0], self.above, n=1) if ref is not None else []
            raise UserError(f"{value!r} does not exist{f'; did you mean the stage {near[0]!r}?' if near else ''}")
        if ref is not None and ref.to == "folder" and not path.is_dir():
            raise UserError(f"{value!r} is no folder")
        names = self.reads(dotted(at))
        if names is not None and path.is_dir():
            return "+".join(self._digests([path / name for name in names])), str(path.absolute())
        key = self._digest(path)
        if names:
            beside = self._digests([path.parent / name for name in names])
            key += f"+{hashlib.sha256(json.dumps([names, beside]).encode()).hexdigest()}"
        return key, str(path.absolute())

    def _digest(self, path: Path) -> str:
        return self._digests([path])[0]

    def _digests(self, paths: list[Path]) -> list[str]:
        digests = self.store.digests(paths)
        self.outside += [(str(path.absolute()), digest) for path, digest in zip(paths, digests, strict=True)]
        return [f"sha256:{digest}" for digest in digests]

    def _model(self, value: str, family: bool = True) -> tuple[str, str]:
        """A folder or a hub id; `family` asks for a vision-language model of a known family."""
        path = Path(value).expanduser()
        if path.exists():
            from align.models import base_of, check_model, is_adapter

            if value not in self.pins:
                self.pins[value] = ""
                if family:
                    check_model(str(path))
                self.pins[value] = value
            if not self.pins[value]:  # said where it stands first
                return value, value
            key = self._digest(path)
            if is_adapter(path):  # a user's own adapter is only half of the model
                key += f"+{self._model(base_of(path))[0]}"
            return key, str(path.absolute())
        if not HUB_ID.fullmatch(value):
            raise UserError(f"no stage above, folder or hub id (org/name) is called {value!r}")
        return self._pinned(value, "model")

    def _pinned(self, value: str, kind: RepoType) -> tuple[str, str]:
        """A hub id at its commit. Raises UserError where it stands first, if the commit cannot be found out."""
        if value not in self.pins:
            self.pins[value] = ""
            try:
                self.pins[value] = pin(value, kind)
            except UserError as error:
                made = [f"{s}/{p}" for s, a in self.above.items() for p, to in a.stage.OUTPUTS.items() if to == kind]
                near = get_close_matches(value, made, n=1)
                raise UserError(f"{error}{f'; did you mean the stage {near[0]!r}?' if near else ''}") from None
        name = f"{value.partition('@')[0]}@{self.pins[value]}"
        return f"hub:{name}", name


def _artifact_key(key: str, port: str) -> str:
    return f"artifact:{key}/{port}"


def _artifact_at(path: Path, wanted: PortType) -> tuple[str, str] | None:
    for folder, port in ((path, ""), (path.parent, path.name)):
        artifact = artifact_at(folder)
        if artifact is not None:
            manifest = artifact.manifest
            port = port_of(stage_class(manifest["stage"]), str(folder), port, wanted)
            return _artifact_key(manifest["key"], port), str(artifact.path / port)
    return None


def check_references(pipeline: Pipeline) -> None:
    """References to stages must point upward and fit; no file is looked at. Raises UserError with every problem."""
    problems: dict[str, list[str]] = defaultdict(list)  # what is wrong -> the places
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
                    below = f"{name!r} stands below or is this stage; only a stage above can be used"
                    problems[below].append(where)
                else:
                    try:
                        port_of(kinds[name], name, port, ref.to)
                    except UserError as error:
                        problems[str(error)].append(where)
            elif isinstance(ref.to, type) or (ref.to == "model" and "/" not in value):
                problems[f"no stage above is called {name!r}{did_you_mean(name, seen)}"].append(where)
            return value

        step.stage.map_leaves(visit)
        seen.add(step.name)
    if problems:
        raise UserError("\n".join(_at_places(dict.fromkeys(places), text) for text, places in problems.items()))


def _at_places(places: Iterable[str], text: str) -> str:
    """A mistake where it stands first, and where else."""
    first, *others = places
    also = f" (also at {', '.join(others)})" if others else ""
    return f"{first}: {text}{also}"


def plan(pipeline: Pipeline, store: Store) -> list[Planned]:
    """Resolve every step and its key. Raises UserError listing every file, folder and model that is not there."""
    planned: dict[str, Planned] = {}
    problems: list[str] = []
    pins: dict[str, str] = {}
    for step in pipeline.steps:
        resolver = _Resolver(pipeline, planned, store, step.at, step.stage.reads, pins)
        tree = key_tree(step.stage.map_leaves(resolver.visit))
        resolved = step.stage.map_leaves(resolver.folder)
        try:
            if not resolver.problems:
                resolved.check()
        except UserError as error:
            resolver.problems += [at_its_key(pipeline.source, step, line) for line in str(error).splitlines()]
        key = _key(step.stage, tree)
        problems += resolver.problems
        artifact = Artifact(store.artifact(step.stage.NAME, key))
        if not artifact.complete:
            problems += [at_its_key(pipeline.source, step, line) for line in wrong_devices(step.stage)]
        planned[step.name] = Planned(step.name, resolved, key, tree, artifact, tuple(resolver.outside))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))  # a parameter that several stages use is named once
    return list(planned.values())


def _key(stage: Stage, tree: Mapping[str, Any]) -> str:
    identity = {"stage": stage.NAME, "version": stage.VERSION, "config": tree}
    # Keys in the order of the config: in a mapping such as `models` the first one may mean something.
    text = json.dumps(identity, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
