from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from align.config import Config, Source, build, interpolate, parse_overrides, read_yaml, set_at
from align.errors import UserError


class Cat(Config):
    animal: Literal["cat"]
    lives: int = 9


class Dog(Config):
    animal: Literal["dog"]
    tricks: list[str] = []


class Zoo(Config):
    name: str
    visitors: int = Field(0, ge=0)
    pets: list[Annotated[Cat | Dog, Field(discriminator="animal")]] = []


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_every_problem_is_one_line_with_file_line_key_and_nearest_name(tmp_path: Path) -> None:
    path = write(tmp_path / "z.yaml", "name: x\nvisitors: -1\nvisitrs: 3\npets:\n  - {animal: cat, livs: 3}\n")
    data, source = read_yaml(path)
    with pytest.raises(UserError) as raised:
        build(Zoo, data, source)
    lines = str(raised.value).splitlines()
    assert len(lines) == 3
    assert f"{path}:2: visitors: a number of at least 0 is expected, not -1" in lines
    assert f"{path}:3: visitrs: unknown key; did you mean 'visitors'?" in lines
    assert f"{path}:5: pets[0].livs: unknown key; did you mean 'lives'?" in lines


def test_missing_key_names_the_key(tmp_path: Path) -> None:
    data, source = read_yaml(write(tmp_path / "z.yaml", "visitors: 1\n"))
    with pytest.raises(UserError, match=r"z\.yaml: name: this key is required"):
        build(Zoo, data, source)


def test_unknown_union_member_lists_what_there_is(tmp_path: Path) -> None:
    data, source = read_yaml(write(tmp_path / "z.yaml", "name: a\npets: [{animal: cow}]\n"))
    with pytest.raises(UserError, match=r"z\.yaml:2: pets\[0\]\.animal: 'cow' is not known here; known: cat, dog"):
        build(Zoo, data, source)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", ":2: a: the key stands here twice"),
        ("a:\n  b: 1\n  b: 2\n", ":3: a.b: the key stands here twice"),
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "a mapping of keys to values is expected, not list"),
        ("", "a mapping of keys to values is expected, not NoneType"),
    ],
)
def test_bad_yaml_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        read_yaml(write(tmp_path / "bad.yaml", text))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_unreadable_files_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / "latin.yaml")


def test_overrides_are_yaml_values_at_dotted_keys() -> None:
    found = parse_overrides(["a.b=0.5", "c=[x, y]", "d=", "e=a=b", "f=true"])
    assert found == {("a", "b"): 0.5, ("c",): ["x", "y"], ("d",): "", ("e",): "a=b", ("f",): True}
    tree = {"a": {"z": 1}}
    set_at(tree, ("a", "b", "c"), 2)
    assert tree == {"a": {"z": 1, "b": {"c": 2}}}
    with pytest.raises(UserError, match=r"a\.z\.q: a\.z is 1, which has no keys"):
        set_at(tree, ("a", "z", "q"), 2)
    with pytest.raises(UserError, match="expected key=value"):
        parse_overrides(["word"])


def test_parameters_keep_their_type_and_unknown_ones_are_named() -> None:
    source = Source("f.yaml")
    tree = {"n": "${n}", "path": "${root}/img", "list": ["${n}"]}
    assert interpolate(tree, {"n": 3, "root": "a"}, source) == {"n": 3, "path": "a/img", "list": [3]}
    with pytest.raises(UserError, match=r"f\.yaml: path: no parameter 'root'; did you mean 'roots'\?"):
        interpolate(tree, {"n": 3, "roots": "a"}, source)
