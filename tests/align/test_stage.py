"""What a stage's fields may be given."""

from typing import Annotated, ClassVar

import pytest

from align.config import Source, build
from align.errors import UserError
from align.records import QA
from align.stage import Dataset, FileRef, FolderRef, ModelRef, Outside, PortType, Ref, Stage


class Takes(Stage):
    """Every way to name something."""

    NAME: ClassVar[str] = "takes"
    OUTPUTS: ClassVar[dict[str, PortType]] = {}

    rows: Annotated[str, Ref(QA)] = "above"
    several: Annotated[list[str], Ref(QA)] = []
    listed: list[FileRef] = []
    by_name: dict[str, Annotated[str, Ref(QA)]] = {}
    folder: FolderRef | None = None
    source: Annotated[str, Outside()] = "here"
    hub: Annotated[str | None, Dataset()] = None
    model: ModelRef = "m"
    text: str = ""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rows", ""), ("several", ["a", ""]), ("listed", ["a", ""]), ("by_name", {"a": ""}), ("folder", ""),
        ("source", ""), ("hub", ""), ("model", ""),
    ],
)  # fmt: skip
def test_an_empty_value_is_no_path_and_no_name(key: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"^x: {key}[^:]*: a name or a path is expected, not an empty text$"):
        build(Takes, {key: value}, Source("x"))
    assert build(Takes, {"text": "", "folder": None, "rows": "."}, Source("x")).folder is None
