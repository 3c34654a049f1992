from pathlib import Path

import pytest

from pipelines import catalog
from tests.pipelines.toys import TOYS


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The toy stages in the catalogue, an empty working directory, and a log of shards worked on."""
    for name, entry in TOYS.items():
        monkeypatch.setitem(catalog.STAGES, name, entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKED", str(tmp_path / "worked"))
    return tmp_path
