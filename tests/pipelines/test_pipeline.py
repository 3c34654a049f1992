import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align.artifact import Store
from align.config import shipped_root
from align.errors import UserError
from pipelines.pipeline import load_pipeline, plan, single
from pipelines.validate import check_steps

GOOD = """
name: toy
params: {count: 10}
stages:
  numbers: {stage: numbers, n: "${count}"}
  scaled: {stage: scale, input: numbers, options: {factor: 3}}
  trained: {stage: train, input: scaled/even, others: [numbers, scaled/odd]}
"""


def write(text: str, name: str = "p.yaml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def keys(text: str, *words: str) -> dict[str, str]:
    return {p.name: p.key for p in plan(load_pipeline(write(text), words), Store(Path("store")))}


@pytest.mark.usefixtures("toys")
class TestErrors:
    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("stage: scale", "stage: scal", "p.yaml:6: stages.scaled.stage: 'scal' is no stage; did you mean 'scale'?"),
            ("factor: 3", "facto: 3", "p.yaml:6: stages.scaled.options.facto: unknown key; did you mean 'factor'?"),
            ("factor: 3", "factor: x", "p.yaml:6: stages.scaled.options.factor: a whole number is expected, not 'x'"),
            ("input: numbers", "input: number", "stages.scaled.input: no stage above is called 'number'; did you mean"),
            ("input: numbers", "input: trained", "stages.scaled.input: 'trained' stands below or is this stage"),
            ("input: numbers", "input: scaled", "stages.scaled.input: 'scaled' stands below or is this stage"),
            ("scaled/even", "scaled", "'scaled' has several outputs: say one of scaled/even, scaled/odd"),
            ("scaled/even", "scaled/evn", "'scaled' has no output 'evn'; did you mean 'even'?"),
            ("scaled/odd", "scaled/off", "stages.trained.others[1]: 'scaled' has no output 'off'"),
            ("name: toy", "nam: toy", "p.yaml:2: nam: unknown key; did you mean 'name'?"),
            ("name: toy", "name: a/b", "name: letters, digits, '-', '_' and '.' are expected, not 'a/b'"),
            ("${count}", "${cont}", "stages.numbers.n: no parameter 'cont'; did you mean 'count'?"),
            ("stage: numbers, n", "n", "p.yaml:5: stages.numbers: `stage: <kind>` is required"),
            ("name: toy", "seed: x", "p.yaml:2: seed: a whole number from 0 on is expected, not 'x'"),
        ],
    )
    def test_one_line_says_where_and_what(self, old: str, new: str, message: str) -> None:
        assert old in GOOD
        with pytest.raises(UserError) as raised:
            load_pipeline(write(GOOD.replace(old, new)))
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)

    def test_rows_of_another_type_are_refused(self) -> None:
        text = GOOD.replace("input: scaled/even", "input: words").replace(
            "  trained", "  words: {stage: words}\n  trained"
        )
        with pytest.raises(UserError, match="words/words holds rows of Other, but rows of Number is needed here"):
            load_pipeline(write(text))

    def test_every_problem_is_listed(self) -> None:
        text = GOOD.replace("stage: scale", "stage: scal").replace("n: ", "m: ")
        with pytest.raises(UserError) as raised:
            load_pipeline(write(text))
        assert len(str(raised.value).splitlines()) == 2

    def test_what_is_not_there_is_found_while_planning(self) -> None:
        text = GOOD.replace('n: "${count}"', "file: none.txt").replace(
            "input: scaled/even,", "input: scaled/even, folder: nowhere, model: 'no/such model',"
        )
        with pytest.raises(UserError) as raised:
            plan(load_pipeline(write(text)), Store(Path("store")))
        lines = str(raised.value).splitlines()
        assert "stages.numbers.file: 'none.txt' does not exist" in lines[0]
        assert any("stages.trained.folder: 'nowhere' does not exist" in line for line in lines)
        assert any("stages.trained.model: no stage above, folder or hub id" in line for line in lines)

    def test_what_several_stages_are_given_is_named_once(self) -> None:
        text = GOOD.replace("params: {count: 10}", "params: {count: 10, base: null, scaled: 1}")
        text = text.replace("input: scaled/even,", 'input: scaled/even, model: "${base}",')
        text += '  again: {stage: train, input: numbers, model: "${base}"}\n'
        with pytest.raises(UserError, match=r"^command line: base: no stage above, folder or hub id .* '/nowhere'$"):
            plan(load_pipeline(write(text), ("base=/nowhere",)), Store(Path("store")))
        with pytest.raises(UserError, match=r"known: base, count, name, numbers, scaled, seed, trained$"):
            load_pipeline(write(text.split("  again")[0]), ("zzzzzz=1",))

    def test_a_mistyped_model_is_found_before_anything_runs(self) -> None:
        text = GOOD.replace("input: scaled/even,", "input: scaled/even, model: traned,")
        with pytest.raises(UserError, match=r"p\.yaml:7: stages\.trained\.model: no stage above is called 'traned'"):
            load_pipeline(write(text))

    @pytest.mark.parametrize("text", ["name: store\nstages: {n: {stage: numbers}}", "stages: {logs: {stage: numbers}}"])
    def test_names_of_the_folder_of_runs_are_taken(self, text: str) -> None:
        with pytest.raises(UserError, match=r"'(store|logs)' is taken in the folder of runs; choose another$"):
            load_pipeline(write(text))

    def test_a_file_within_itself_is_refused(self) -> None:
        with pytest.raises(UserError, match="nested deeper than"):
            load_pipeline(write("stages: &a {x: *a}"))

    def test_a_stage_checks_its_own_values(self) -> None:
        with pytest.raises(UserError, match=r"^command line: count: at least 0 is needed$"):
            plan(load_pipeline(write(GOOD), ("count=-1",)), Store(Path("store")))

    def test_a_parameter_without_a_value_is_named_and_does_not_hinder_validation(self) -> None:
        text = GOOD.replace("params: {count: 10}", "params: {count: null, spare: null, start: null}")
        text = text.replace("input: numbers,", "input: '${start}',")
        with pytest.raises(UserError) as raised:
            load_pipeline(write(text))
        assert str(raised.value).splitlines() == [
            f"p.yaml:3: params.{name}: has no value: give {name}=..." for name in ("count", "start")
        ]
        loaded = load_pipeline(Path("p.yaml"), incomplete=True)
        assert loaded.missing == ("count", "start")
        with pytest.raises(UserError, match="factor: a whole number is expected"):
            load_pipeline(Path("p.yaml"), ("scaled.options.factor=x",), incomplete=True)

    def test_what_the_command_line_said_is_named_as_such(self) -> None:
        with pytest.raises(UserError, match=r"^command line: scaled\.options\.factor: a whole number is expected"):
            load_pipeline(write(GOOD), ("scaled.options.factor=x",))
        loaded = load_pipeline(write(GOOD), ("trained.others[1]=scaled/even",))
        assert loaded.steps[2].stage.model_dump()["others"] == ["numbers", "scaled/even"]
        with pytest.raises(UserError, match=r"trained\.others has 2 items"):
            load_pipeline(write(GOOD), ("trained.others[2]=numbers",))

    def test_validation_runs_a_stage_s_own_checks(self) -> None:
        with pytest.raises(UserError, match=r"^command line: count: at least 0 is needed$"):
            check_steps(load_pipeline(write(GOOD), ("count=-1",)))
        check_steps(load_pipeline(write(GOOD.replace("n: ", "file: none.txt, n: "))))  # no file is looked for

    @pytest.mark.parametrize("word", ["cont=3", "scaled.options.factr=1", "scald.input=x"])
    def test_an_override_of_nothing_is_refused(self, word: str) -> None:
        with pytest.raises(UserError, match="did you mean"):
            load_pipeline(write(GOOD), (word,))


@pytest.mark.usefixtures("toys")
class TestKeys:
    def test_equal_configs_have_equal_keys_whatever_the_names(self) -> None:
        renamed = (
            GOOD.replace("numbers:", "first:").replace("input: numbers", "input: first").replace("[numbers", "[first")
        )
        assert list(keys(GOOD).values()) == list(keys(renamed).values())

    def test_a_change_moves_its_own_key_and_those_below(self) -> None:
        base, changed = keys(GOOD), keys(GOOD, "scaled.options.factor=4")
        assert {n for n in base if base[n] != changed[n]} == {"scaled", "trained"}
        assert {n for n in base if base[n] != keys(GOOD, "count=9")[n]} == {"numbers", "scaled", "trained"}
        assert set(base.values()).isdisjoint(keys(GOOD, "seed=1").values())

    def test_runtime_values_move_no_key(self) -> None:
        assert keys(GOOD) == keys(GOOD, "scaled.options.loud=true", "scaled.stop_at=1")

    def test_the_content_of_outside_files_counts_and_their_name_does_not(self) -> None:
        Path("a.txt").write_text("x")
        Path("b.txt").write_text("x")
        text = GOOD.replace("stage: numbers,", "stage: numbers, file: a.txt,")
        first = keys(text)
        assert first == keys(text, "numbers.file=b.txt")
        Path("b.txt").write_text("y")
        assert first["numbers"] != keys(text, "numbers.file=b.txt")["numbers"]

    def test_a_folder_counts_by_names_and_contents(self) -> None:
        Path("d").mkdir()
        Path("d/x").write_text("1")
        text = GOOD.replace("input: scaled/even,", "input: scaled/even, folder: d,")
        first = keys(text)["trained"]
        assert keys(text)["trained"] == first
        Path("d/x").rename("d/y")
        assert keys(text)["trained"] != first

    def test_a_folder_with_an_artifact_json_of_its_own_is_a_folder(self) -> None:
        Path("d").mkdir()
        Path("d/artifact.json").write_text('{"name": "a build of something else"}')
        text = GOOD.replace("input: scaled/even,", "input: scaled/even, folder: d,")
        before = keys(text)["trained"]
        Path("d/artifact.json").write_text("no json at all")
        assert keys(text)["trained"] != before

    def test_of_a_folder_of_prompts_what_the_stage_reads_counts(self) -> None:
        Path("d").mkdir()
        for name in ("ask.jinja", "describe.jinja", "blind.jinja"):
            Path("d", name).write_text("{{ kind }}" if name == "ask.jinja" else "x")
        Path("model").mkdir()
        text = """
        stages:
          images: {stage: images, source: p}
          questions:
            {stage: generate, images: images, prompts: d, teacher: {engine: server, base_url: http://x/v1, model: m}}
        """
        Path("p").mkdir()
        Image.new("RGB", (20, 20)).save("p/a.png")
        given = {"one": (), "two": ("questions.two_steps=true",)}
        given["rules"] = ("questions.mode=fields", "questions.teacher=null", "questions.kinds=[read]")

        def all_keys() -> dict[str, str]:
            return {name: keys(text, *words)["questions"] for name, words in given.items()}

        def moved(name: str) -> set[str]:
            before = all_keys()
            Path("d", name).write_text(Path("d", name).read_text() + ".")
            after = all_keys()
            return {n for n in before if before[n] != after[n]}

        assert len(set(all_keys().values())) == 3
        assert moved("blind.jinja") == set()
        assert moved("describe.jinja") == {"two"}
        assert moved("ask.jinja") == {"one", "two"}

    def test_another_seed_moves_the_keys_of_what_draws(self) -> None:
        Path("p").mkdir()
        Image.new("RGB", (20, 20)).save("p/a.png")
        Path("q.jsonl").write_text('{"image": "a.png", "question": "what?", "answer": "that"}')
        text = """
        stages:
          images: {stage: images, source: p}
          known: {stage: questions, images: images, file: q.jsonl}
          made: {stage: generate, mode: fields, images: images, kinds: [read]}
        """
        before, after = keys(text), keys(text, "seed=1")
        assert {name for name in before if before[name] != after[name]} == {"made"}
        found = load_pipeline(shipped_root() / "pipelines" / "demo.yaml"), Store(Path("store"))
        other = load_pipeline(shipped_root() / "pipelines" / "demo.yaml", ("seed=1",)), Store(Path("store"))
        assert {s.key for s in plan(*found)}.isdisjoint(s.key for s in plan(*other))

    def test_hidden_files_are_no_content(self) -> None:
        Path("d").mkdir()
        Path("d/x").write_text("1")
        before = Store(Path("store")).digest(Path("d"))
        Path("d/.DS_Store").write_text("2")
        assert Store(Path("store")).digest(Path("d")) == before

    def test_a_name_that_is_no_utf8_is_a_name_all_the_same(self) -> None:
        Path("d").mkdir()
        Path(os.fsdecode(b"d/\xff\xfe.png")).write_text("1")
        assert Store(Path("store")).digest(Path("d")) == Store(Path("store")).digest(Path("d"))

    def test_a_data_set_counts_by_its_commit_and_is_looked_up_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def pinned(commit: str) -> str:
            def pin(name: str, kind: str) -> str:
                asked.append((name, kind))
                return commit * 40

            monkeypatch.setattr("pipelines.pipeline.pin", pin)
            words = ("dataset=org/name", "column=image")
            (step,) = plan(single("images", words), Store(Path("store")))
            assert step.stage.model_dump()["dataset"] == f"org/name@{commit * 40}"
            return step.key

        assert pinned("a") == pinned("a") != pinned("b")
        assert asked == [("org/name", "dataset")] * 3

    def test_a_folder_that_is_no_model_is_named_once(self) -> None:
        Path("empty").mkdir()
        text = GOOD.replace("input: scaled/even,", "input: scaled/even, model: empty,")
        text += "  again: {stage: train, input: numbers, model: empty}\n"
        with pytest.raises(UserError, match=r"^p\.yaml:7: stages\.trained\.model: empty: no config\.json.*folder$"):
            plan(load_pipeline(write(text)), Store(Path("store")))

    def test_what_cannot_be_pinned_is_named_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("cache").absolute()))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        text = GOOD.replace("input: scaled/even,", "input: scaled/even, model: org/name,")
        text += "  again: {stage: train, input: numbers, model: org/name}\n"
        text += "  last: {stage: train, input: numbers, model: org/b}\n"
        with pytest.raises(UserError) as raised:
            plan(load_pipeline(write(text)), Store(Path("store")))
        lines = str(raised.value).splitlines()
        assert len(lines) == 2
        assert lines[0].startswith("p.yaml:7: stages.trained.model: org/name@main: not in the local cache, and the hub")
        assert lines[1].startswith("p.yaml:9: stages.last.model: org/b@main: ")
        with pytest.raises(UserError, match=r"^vlm-align images: dataset: org/name@main: .*cannot be reached"):
            plan(single("images", ("dataset=org/name", "column=image")), Store(Path("store")))

    def test_a_value_without_stable_form_raises(self) -> None:
        from align.config import Config
        from align.stage import key_tree

        class Odd(Config):
            value: bytes = b""

        with pytest.raises(TypeError, match="no stable form"):
            key_tree(Odd())

    def test_a_single_command_has_the_key_of_the_same_stage_in_a_pipeline(self) -> None:
        (step,) = plan(single("numbers", ("n=10",)), Store(Path("store")))
        assert step.key == keys(GOOD)["numbers"]


REWARD = """
stages:
  scored: {stage: score, input: ., reward: mine.yaml}
"""
MINE = "reward: combine\nrewards:\n  form: {reward: rules, rules: [{rule: exact}]}\n  other: other.yaml\n"
OTHER = "reward: rules\nanswer_after: 'A:'\nrules: [{rule: anls}]\n"


@pytest.mark.usefixtures("toys")
class TestRewardFiles:
    """A key of a reward that stands in a file of its own is set like any other."""

    def given(self, *words: str) -> dict[str, Any]:
        write(OTHER, "other.yaml")
        write(MINE, "mine.yaml")
        (step,) = load_pipeline(write(REWARD), words).steps
        found: dict[str, Any] = step.stage.model_dump()["reward"]
        return found

    def test_what_the_file_says_already_changes_nothing(self) -> None:
        assert self.given("scored.reward.rewards.other.answer_after=A:") == self.given()
        assert self.given("scored.reward.how=minimum")["how"] == "minimum"
        changed = self.given(
            "scored.reward.rewards.other.rules[0].weight=3", "scored.reward.rewards.form.answer_after=B"
        )
        assert changed["rewards"]["other"] == {**self.given()["rewards"]["other"], "rules": [self.weighed()]}
        assert changed["rewards"]["form"]["answer_after"] == "B"

    def weighed(self) -> dict[str, Any]:
        (rule,) = self.given()["rewards"]["other"]["rules"]
        return {**rule, "weight": 3.0}

    @pytest.mark.parametrize(
        ("word", "other", "message"),
        [
            ("how=mi", OTHER, r"^command line: scored\.reward\.how: 'sum' or 'minimum' is expected"),
            ("rewards.other.x=1", OTHER, r"^command line: scored\.reward\.rewards\.other\.x: unknown key"),
            ("rewards.other.answer_after=B", f"{OTHER}x: 1\n", r"^other\.yaml:4: x: unknown key"),
            ("how=sum", f"{OTHER}x: 1\n", r"^other\.yaml:4: x: unknown key"),
            ("rewards.none.x=1", OTHER, r"^mine\.yaml:\d: rewards\.none\.reward: this key is required"),
        ],
    )
    def test_a_mistake_names_the_file_that_it_is_in(self, word: str, other: str, message: str) -> None:
        write(other, "other.yaml")
        write(MINE, "mine.yaml")
        with pytest.raises(UserError, match=message):
            load_pipeline(write(REWARD), (f"scored.reward.{word}",))

    def test_a_stage_by_its_own_command_too(self) -> None:
        write(OTHER, "other.yaml")
        stage = single("score", ("input=x", "reward=other.yaml", "reward.answer_after=B: c")).steps[0].stage
        assert stage.model_dump()["reward"]["answer_after"] == "B: c"
        write(OTHER.replace("'A:'", "3"), "other.yaml")
        with pytest.raises(
            UserError, match=r"^other\.yaml:2: answer_after: text is expected, not 3; put it in quotes$"
        ):
            single("score", ("input=x", "reward=other.yaml", "reward.rules[0].weight=2"))

    def test_a_file_that_is_no_reward_has_no_keys(self) -> None:
        write("a: 1\n", "other.yaml")
        with pytest.raises(UserError, match=r"reward is 'other\.yaml', which has no keys"):
            single("score", ("input=x", "reward=other.yaml", "reward.a=2"))
