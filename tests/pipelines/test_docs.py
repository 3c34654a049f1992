"""The YAML that the docs show is taken by the code: every reward, stage and engine in it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.config import Config, Source, build, interpolate
from align.engine import EngineConfig
from pipelines.catalog import STAGES, stage_class
from pipelines.pipeline import load_pipeline
from reward.load import read_reward

DOCS = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
SHOWN = [(path.name, text) for path in DOCS for text in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL)]


PARAMS = {"round": 1, "teacher": "org/name", "other": "org/other"}


class Asks(Config):
    """Something with an engine."""

    engine: EngineConfig


def stages_in(tree: Any) -> list[dict[str, Any]]:
    """Every stage in a tree, those of a block of rounds too."""
    if not isinstance(tree, dict):
        return []
    inside = [found for value in tree.values() for found in stages_in(value)]
    return [tree, *inside] if "stage" in tree else inside


@pytest.mark.parametrize(("file", "text"), SHOWN, ids=[f"{file}-{n}" for n, (file, _) in enumerate(SHOWN)])
def test_what_the_docs_show_is_valid(file: str, text: str, tmp_path: Path) -> None:
    if file == "engines.md":
        for line in text.splitlines():
            build(Asks, {"engine": yaml.safe_load(line).popitem()[1]}, Source(file))
        return
    data = yaml.safe_load(text)
    if isinstance(data.get("reward"), str):
        read_reward(data)
        return
    if "stages" in data:
        (tmp_path / "p.yaml").write_text(text)
        load_pipeline(tmp_path / "p.yaml", incomplete=True)
        return
    found = stages_in(data)
    assert found
    for config in found:
        kind = stage_class(config.pop("stage"))
        assert build(kind, interpolate(config, PARAMS, Source(file)), Source(file))


def test_every_stage_and_pipeline_stands_in_the_readme() -> None:
    readme = (DOCS[0].parents[1] / "README.md").read_text()
    pipelines = [p.stem for p in (DOCS[0].parents[1] / "configs" / "pipelines").glob("*.yaml")]
    assert [name for name in [*STAGES, *pipelines] if f"`{name}`" not in readme] == []
