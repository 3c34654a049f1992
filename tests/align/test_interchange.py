"""Rows through the form of every other tool and back, and the other tools' own loaders on what was written."""

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align.artifact import Out, Store, begin, commit, rows
from align.errors import UserError
from align.export_data import ExportData, push
from align.import_data import ImportData
from align.interchange import Unfit, from_record, row_of, to_record
from align.interchange_files import read_records, write_records
from align.records import QA, Message, Pair, Row

FORMS = ("trl", "datasets", "llava", "sharegpt", "messages")
WORDS = (
    "red",
    "12",
    "%",
    "\n",
    "  ",
    "<image>",
    "\u00e4\u0e01\u0939",
    '"',
    "\\",
    "|",
    "{{x}}",
    "\u2028",
    "<|im_end|>",
    "Answer: 3",
)


def text(draw: random.Random) -> str:
    return "".join(draw.choice(WORDS) for _ in range(draw.randint(1, 6)))


def say_(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def say(role: str, content: str) -> Message:
    return Message.model_validate({"role": role, "content": content})


def prompt(draw: random.Random) -> list[Message]:
    turns = [say("system", draw.choice(["", text(draw)]))] if draw.random() < 0.3 else []
    for _ in range(draw.choice([0, 0, 1])):
        turns += [say("user", text(draw)), say("assistant", text(draw))]
    return [*turns, say("user", text(draw))]


def a_row(draw: random.Random, i: int, images: list[str], kind: type[QA] | type[Pair]) -> QA | Pair:
    shared = {"id": f"id {i}", "prompt": prompt(draw), "image_id": f"image {i}", "kind": draw.choice(["read", "a/b"])}
    mine = draw.sample(images, draw.choice([0, 1, 1, 1, 2]))
    if kind is QA:
        return QA(
            **shared, images=mine, completion=[say("assistant", text(draw))], split=draw.choice(["train", "eval"]),
            grounded=draw.random() < 0.5, source=text(draw),
        )  # fmt: skip
    return Pair(
        **shared, images=mine, chosen=[say("assistant", text(draw))], rejected=[say("assistant", text(draw) + "!")],
        question_id="q", chosen_score=draw.random(), rejected_score=-draw.random(), edit=text(draw), source=text(draw),
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def images(store: Store) -> list[str]:
    found = []
    for i, (form, suffix) in enumerate([("PNG", ".png"), ("JPEG", ".jpg"), ("JPEG", ".png"), ("WEBP", ".webp")]):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 30), (50 * i, 10, 200)).save(buffer, form)
        found.append(str(store.add_blob(buffer.getvalue(), suffix)))
    return found


def written(store: Store, row_type: type[Row], found: list[Any]) -> str:
    with begin(store, "set", "0" * 16) as out:
        out.write("rows", row_type, found)
        manifest = {"stage": "reject", "key": "abc", "seed": 3, "libraries": {"trl": "1"}}
        return str(commit(out, manifest, {}).path / "rows")


def exported(store: Store, stage: ExportData) -> tuple[Path, Out]:
    stage.check()
    out = Out(store.root / "artifacts" / "export.partial", store)
    stage.run(out)
    return out.path / "dataset", out


def imported(store: Store, stage: ImportData) -> tuple[list[QA], list[Pair], Out]:
    stage.check()
    out = Out(store.root / "artifacts" / "import.partial", store)
    stage.run(out)
    return list(rows(out.path / "rows", QA)), list(rows(out.path / "pairs", Pair)), out


class TestRoundTrip:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("kind", [QA, Pair])
    def test_nothing_is_lost(self, form: Any, kind: Any, store: Store, images: list[str], tmp_path: Path) -> None:
        if form == "llava" and kind is Pair:
            with pytest.raises(UserError, match="llava has no place for pairs"):
                ExportData(pairs="x", form=form).check()
            return
        draw = random.Random(f"{form} {kind}")
        found = [a_row(draw, i, images, kind) for i in range(250)]
        port = written(store, kind, found)
        folder, out = exported(store, ExportData(**{"rows" if kind is QA else "pairs": port}, form=form))
        assert out.counts() == {"in": 250, "out": {"dataset": 250}, "dropped": {}}
        elsewhere = Store(tmp_path / "elsewhere")
        back = imported(elsewhere, ImportData(source=str(folder), form=form))
        assert back[2].reasons == {}
        same = {r.id: r.model_copy(update={"images": [Path(p).name for p in r.images]}) for r in found}
        again = {r.id: r.model_copy(update={"images": [Path(p).name for p in r.images]}) for r in (*back[0], *back[1])}
        assert again == same
        for row in (*back[0], *back[1]):  # the very bytes
            assert [Path(p).read_bytes() for p in row.images] == [
                (store.blobs / Path(p).name[:2] / Path(p).name).read_bytes() for p in row.images
            ]

    @pytest.mark.parametrize("form", FORMS)
    def test_what_import_would_refuse_is_not_written(self, form: Any, store: Store, images: list[str]) -> None:
        draw = random.Random(1)
        whole, silent = (a_row(draw, i, images, QA) for i in range(2))
        pair = a_row(draw, 2, images, Pair)
        if form != "llava":
            assert isinstance(pair, Pair)
            equal = pair.model_copy(update={"rejected": [say("assistant", f" {pair.chosen[0].content}")]})
            _, out = exported(store, ExportData(pairs=written(store, Pair, [equal]), form=form))
            assert out.reasons == {"equal answers": 1}
        port = written(store, QA, [whole, silent.model_copy(update={"completion": []})])
        folder, out = exported(store, ExportData(rows=port, form=form))
        assert out.reasons == {"turns": 1}
        assert len(imported(store, ImportData(source=str(folder), form=form))[0]) == 1

    def test_turns_that_a_form_cannot_say_are_set_aside(self, store: Store) -> None:
        odd = QA(
            id="1", images=[], prompt=[say("user", "a"), say("user", "b")], completion=[say("assistant", "c")],
            image_id="i", kind="read", split="train",
        )  # fmt: skip
        _, out = exported(store, ExportData(rows=written(store, QA, [odd]), form="sharegpt"))
        assert out.counts() == {"in": 1, "out": {"dataset": 0}, "dropped": {"turns": 1}}


class TestOtherLoaders:
    def rows_of(self, store: Store, images: list[str], kind: Any, **more: Any) -> str:
        say_it = [say("system", "Be brief."), say("user", "How many?")]
        if kind is QA:
            row: Row = QA(
                id="1", images=images[:1], prompt=say_it, completion=[say("assistant", "3")], image_id="i",
                kind="count", split="train", **more,
            )  # fmt: skip
        else:
            row = Pair(
                id="1", images=images[:1], prompt=say_it, chosen=[say("assistant", "3")],
                rejected=[say("assistant", "4")], question_id="q", image_id="i", kind="count", chosen_score=1,
                rejected_score=0,
            )  # fmt: skip
        return written(store, kind, [row])

    @pytest.mark.parametrize("kind", [QA, Pair])
    def test_datasets_and_trl_read_the_columns(
        self, kind: Any, store: Store, images: list[str], tmp_path: Path
    ) -> None:
        import datasets
        from trl.data_utils import is_conversational, prepare_multimodal_messages

        port = self.rows_of(store, images, kind)
        given = {"rows" if kind is QA else "pairs": port}
        folder, _ = exported(store, ExportData(**given))
        table = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
        exported(store, ExportData(**given, form="datasets"))
        saved = datasets.load_from_disk(str(folder / "train"))
        for found in (table[0], saved[0]):
            assert is_conversational(found)
            assert found["images"][0].size == (40, 30)
            turns = prepare_multimodal_messages(found["prompt"], found["images"])
            assert [part["type"] for part in turns[1]["content"]] == ["image", "text"]
            assert (found["chosen"] if kind is Pair else found["completion"]) == [{"role": "assistant", "content": "3"}]

    def test_llava(self, store: Store, images: list[str]) -> None:
        folder, _ = exported(store, ExportData(rows=self.rows_of(store, images, QA), form="llava"))
        (record,) = json.loads((folder / "train.json").read_text())
        assert record["conversations"] == [
            {"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": "3"},
        ]  # fmt: skip
        with Image.open(folder / record["image"]) as image:
            assert image.size == (40, 30)

    def test_llama_factory_finds_its_columns(self, store: Store, images: list[str]) -> None:
        folder, _ = exported(store, ExportData(pairs=self.rows_of(store, images, Pair), form="sharegpt", name="mine"))
        info = json.loads((folder / "dataset_info.json").read_text())["mine_train"]
        assert info["ranking"] is True
        (record,) = json.loads((folder / info["file_name"]).read_text())
        assert set(info["columns"].values()) <= set(record)
        assert record["conversations"] == [{"from": "human", "value": "<image>How many?"}]
        assert (record["system"], record["rejected"]) == ("Be brief.", {"from": "gpt", "value": "4"})

    def test_messages(self, store: Store, images: list[str]) -> None:
        folder, _ = exported(store, ExportData(pairs=self.rows_of(store, images, Pair), form="messages"))
        record = json.loads((folder / "train.jsonl").read_text())
        assert record["messages"] == [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "<image>How many?"},
            {"role": "assistant", "content": "3"},
        ]  # fmt: skip
        assert record["rejected_response"] == "4"

    def test_the_card_is_one_that_the_hub_reads(self, store: Store, images: list[str]) -> None:
        from huggingface_hub import DatasetCard

        port = self.rows_of(store, images, QA, source="teacher x | template y\n")
        folder, _ = exported(store, ExportData(rows=port, licence="cc-by-4.0", name="mine"))
        card = DatasetCard.load(folder / "README.md")
        assert card.data.license == "cc-by-4.0"
        assert card.data.size_categories == ["n<1K"]
        assert card.data.configs == [
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
        ]
        assert "| count | 1 |" in card.text
        assert "- 1 rows: teacher x \\| template y" in card.text
        assert "- key: abc" in card.text


class TestForeign:
    """Files as the tools' own documentation shows them."""

    def take(self, tmp_path: Path, store: Store, form: Any, records: list[Any]) -> tuple[list[QA], list[Pair], Out]:
        folder = tmp_path / "foreign"
        folder.mkdir()
        Image.new("RGB", (40, 30)).save(folder / "a.png")
        Image.new("RGB", (20, 30)).save(tmp_path / "outside.png")
        (folder / "data.json").write_text(json.dumps(records))
        return imported(store, ImportData(source=str(folder), form=form))

    def test_llava_with_several_answers_gives_a_row_an_answer(self, tmp_path: Path, store: Store) -> None:
        talk = [
            {"from": "human", "value": "What is this?\n<image>"}, {"from": "gpt", "value": "A bus."},
            {"from": "human", "value": "Its color?"}, {"from": "gpt", "value": "Red."},
        ]  # fmt: skip
        records = [{"id": "same", "image": "a.png", "conversations": talk}] * 2
        found, _, _ = self.take(tmp_path, store, "llava", records)
        assert [r.completion[0].content for r in found] == ["A bus.", "Red."] * 2
        assert [len(r.prompt) for r in found] == [1, 3] * 2
        assert found[0].prompt[0].content == "What is this?"
        assert len({r.id for r in found}) == 4
        assert found[0].image_id == Path(found[0].images[0]).stem

    def test_half_of_a_surrogate_pair_is_that_records_fault(self, tmp_path: Path, store: Store) -> None:
        def talk(text: str) -> list[dict[str, str]]:
            return [{"from": "human", "value": "What?"}, {"from": "gpt", "value": text}]

        records = [{"id": 1, "conversations": talk("half \ud83d")}, {"id": 2, "conversations": talk("\U0001f600")}]
        records.append({"id": 3, "image": "x\udc00.png", "conversations": talk("a")})
        records.append({"id": 4, "image": "x\0.png", "conversations": talk("a")})
        found, _, out = self.take(tmp_path, store, "llava", records)
        assert [r.completion[0].content for r in found] == ["\U0001f600"]
        assert out.reasons == {"values": 2, "no image file": 1}

    def test_sharegpt_preferences(self, tmp_path: Path, store: Store) -> None:
        record = {
            "conversations": [{"from": "human", "value": "<image>Where?"}], "images": ["a.png"],
            "chosen": {"from": "gpt", "value": "Here."}, "rejected": {"from": "gpt", "value": "There."},
        }  # fmt: skip
        _, (pair,), _ = self.take(tmp_path, store, "sharegpt", [record])
        assert (pair.prompt[0].content, pair.chosen[0].content, pair.rejected[0].content) == (
            "Where?",
            "Here.",
            "There.",
        )
        assert pair.chosen_score > pair.rejected_score

    def test_trl_plain_text_and_implicit_prompts(self) -> None:
        (plain,) = from_record({"prompt": "Sky?", "completion": "Blue."}, "trl")
        assert plain.turns == {"prompt": [say("user", "Sky?")], "completion": [say("assistant", "Blue.")]}
        asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Sky?"}]}
        chosen, rejected = ({"role": "assistant", "content": text} for text in ("Blue.", "Green."))
        (implicit,) = from_record(
            {"chosen": [asked, chosen], "rejected": [asked, rejected], "images": ["a.png"]}, "trl"
        )
        assert implicit.turns["prompt"] == [say("user", "Sky?")]
        assert implicit.turns["rejected"] == [say("assistant", "Green.")]

    @pytest.mark.parametrize("form", ["trl", "sharegpt"])
    @pytest.mark.parametrize(
        "part",
        [
            {"type": "image", "image": "a.png"},
            {"type": "image", "url": "a.png"},
            {"type": "image_url", "image_url": {"url": "a.png"}},
        ],
    )
    def test_images_that_stand_as_parts_are_the_rows_own(self, form: Any, part: dict[str, Any]) -> None:
        asked = {"role": "user", "content": [part, {"type": "text", "text": "Where?"}]}
        answer = {"role": "assistant", "content": "Here."}
        (found,) = from_record({"messages": [asked, answer], "conversations": None}, form)
        assert found.images == ["a.png"]
        assert found.turns["prompt"] == [say("user", "Where?")]
        with pytest.raises(Unfit, match="images"):
            from_record({"messages": [{**asked, "content": [{"type": "image"}]}, answer]}, form)
        with pytest.raises(Unfit, match="placeholders"):
            from_record({"messages": [say_("Hi"), answer, asked, answer]}, form)

    @pytest.mark.parametrize(
        ("form", "more", "reason"),
        [
            ("trl", {"prompt": "q", "completion": "bad", "label": False}, "judged bad"),
            ("messages", {"label": False}, "judged bad"),
            ("sharegpt", {"kto_tag": False}, "judged bad"),
            ("messages", {"messages": [say_("q"), {"role": "assistant", "content": "a", "loss": False}]}, "judged bad"),
            ("trl", {"messages": [say_("q"), {"role": "assistant", "content": "a", "weight": 0}]}, "judged bad"),
            ("messages", {"images": ["a.png"], "rejected_images": ["b.png"]}, "rejected images"),
            ("messages", {"rejected_response": "a "}, "equal answers"),
            ("messages", {"rejected_response": ["b"]}, "turns"),
            ("trl", {"prompt": "q", "chosen": "a", "rejected": "a"}, "equal answers"),
            ("trl", {"prompt": "q", "chosen": [{"role": "assistant", "content": [{"type": "text", "text": 4}]}],
                     "rejected": "b"}, "turns"),
            ("trl", {"prompt": "other", "chosen": [say_("q"), {"role": "assistant", "content": "a"}],
                     "rejected": [say_("q"), {"role": "assistant", "content": "b"}]}, "two prompts"),
            ("messages", {"rejected_messages": [say_("r"), {"role": "assistant", "content": "b"}]}, "two prompts"),
            ("messages", {"system": "Long.", "messages": [{"role": "system", "content": "Brief."}, say_("q"),
                          {"role": "assistant", "content": "a"}]}, "two system turns"),
        ],
    )  # fmt: skip
    def test_what_is_not_to_be_imitated_is_set_aside(self, form: Any, more: dict[str, Any], reason: str) -> None:
        talk = {"messages": [say_("q"), {"role": "assistant", "content": "a"}]} if form != "trl" else {}
        with pytest.raises(Unfit) as raised:
            from_record({**talk, **more}, form)
        assert raised.value.reason == reason

    def test_what_was_judged_good_comes_in_and_what_is_context_stays_context(self) -> None:
        turns = [say_("q"), {"role": "assistant", "content": "a", "loss": False}, say_("r"),
                 {"role": "assistant", "content": "b", "loss": True}]  # fmt: skip
        (found,) = from_record({"messages": turns, "label": True}, "messages")
        assert [m.content for m in found.turns["prompt"]] == ["q", "a", "r"]
        assert found.turns["completion"] == [say("assistant", "b")]

    @pytest.mark.parametrize("given", ["q", " q\n", [say_("q")], [{"role": "system", "content": "s"}, say_("q")]])
    @pytest.mark.parametrize("system", [False, True])
    def test_a_question_is_asked_once(self, given: Any, system: bool) -> None:
        begun = [{"role": "system", "content": "s"}] * system + [say_("q")]
        better, worse = ([*begun, {"role": "assistant", "content": text}] for text in "ab")
        (pair,) = from_record({"prompt": given, "chosen": better, "rejected": worse}, "trl")
        (row,) = from_record({"prompt": given, "completion": better}, "trl")
        for turns in (pair.turns, row.turns):
            assert turns["prompt"][-1] == say("user", "q")
            assert [m.role for m in turns["prompt"]] == ["system"] * (system or len(given) == 2) + ["user"]
        assert (pair.turns["chosen"], pair.turns["rejected"]) == ([say("assistant", "a")], [say("assistant", "b")])
        assert row.turns["completion"] == [say("assistant", "a")]

    def test_one_system_turn(self) -> None:
        turns = [{"role": "system", "content": "Brief."}, say_("q"), {"role": "assistant", "content": "a"}]
        (found,) = from_record({"messages": turns, "system": "Brief."}, "messages")
        assert [m.role for m in found.turns["prompt"]] == ["system", "user"]

    @pytest.mark.parametrize(
        ("text", "images", "left"),
        [
            ("<image>\n<image>\nWhich?", 2, "Which?"), ("Which? <image> <image>", 2, "Which?"),
            ("Seen:\n<image>\nWhat?", 1, "Seen:\nWhat?"), ("In <image>, what?", 1, None),
            ("First <image> then <image>", 2, None), ("<image> before <image>", 2, None),
            ("A:\n<image>\nB:\n<image>\nWhich?", 2, None),
        ],
    )  # fmt: skip
    def test_images_that_a_text_speaks_of_by_their_places(self, text: str, images: int, left: str | None) -> None:
        parts = [
            part
            for i, piece in enumerate(text.split("<image>"))
            for part in [{"type": "image"}] * bool(i) + [{"type": "text", "text": piece}] * bool(piece.strip())
        ]
        answer = {"role": "assistant", "content": "a"}
        names = [f"{i}.png" for i in range(images)]
        for form, content in (("messages", text), ("trl", parts)):
            record = {"messages": [{"role": "user", "content": content}, answer], "images": names}
            if left is None and (form == "messages" or images > 1):
                with pytest.raises(Unfit, match="placeholders"):
                    from_record(record, form)
            elif left is not None:
                (found,) = from_record(record, form)
                assert found.turns["prompt"][0].content.split() == left.split()

    def test_ms_swift_preferences(self) -> None:
        asked, better, worse = say_("Where?"), *({"role": "assistant", "content": text} for text in ("Here.", "There."))
        record = {"messages": [asked, better], "rejected_messages": [asked, worse]}
        (found,) = from_record(record, "sharegpt")
        assert found.turns["chosen"] == [say("assistant", "Here.")]
        assert found.turns["rejected"] == [say("assistant", "There.")]

    def test_what_cannot_be_used_is_set_aside_with_a_reason(self, tmp_path: Path, store: Store) -> None:
        good = [{"from": "human", "value": "<image>\nx"}, {"from": "gpt", "value": "y"}]
        records = [
            {"image": "a.png", "conversations": good},
            {"image": "gone.png", "conversations": good},
            {"image": "../outside.png", "conversations": good},
            {"image": str(tmp_path / "outside.png"), "conversations": good},
            {"image": "https://example.com/a.png", "conversations": good},
            {"image": "data.json", "conversations": good},
            {"conversations": good},
            {"image": "a.png", "conversations": good[:1]},
            {"image": "a.png", "conversations": [{"from": "robot", "value": "x"}]},
            {"video": "a.mp4", "conversations": good},
            "no record",
        ]
        found, _, out = self.take(tmp_path, store, "llava", records)
        assert len(found) == 1
        assert out.reasons == {
            "no image file": 3, "image url": 1, "bad image": 1, "placeholders": 1, "turns": 2, "other media": 1,
            "no record": 1,
        }  # fmt: skip
        assert out.rows_in == 11

    def test_values_of_ours_that_were_spoilt_are_named(self, tmp_path: Path, store: Store) -> None:
        talk = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
        _, _, out = self.take(
            tmp_path, store, "llava", [{"conversations": talk, "vlm_align": {"image_id": "i", "split": "training"}}]
        )
        assert out.reasons == {"values": 1}


class TestFiles:
    @pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
    def test_streams_of_any_length(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("align.interchange_files._CHUNK", 7)
        found = [{"a": i, "b": "x" * (i % 23), "c": ["]", "[", ","]} for i in range(60)]
        write_records(tmp_path / name, found)
        assert list(read_records(tmp_path / name)) == found
        if name == "a.json":
            assert json.loads((tmp_path / name).read_text()) == found

    @pytest.mark.parametrize("text", ["[]", "", "[\n]\n", " "])
    def test_nothing(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text(text)
        assert list(read_records(tmp_path / "a.json")) == []

    def test_numbers_are_not_cut_at_a_chunk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("align.interchange_files._CHUNK", 3)
        (tmp_path / "a.json").write_text("[12345678, 9]")
        assert list(read_records(tmp_path / "a.json")) == [12345678, 9]

    def test_no_json_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text('[{"a": 1}, {"a": oops}]')
        with pytest.raises(UserError, match=r"a\.json: not valid JSON near"):
            list(read_records(tmp_path / "a.json"))

    def test_an_empty_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no file of the form llava is in it"):
            ImportData(source=str(tmp_path), form="llava").check()
        with pytest.raises(UserError, match="no folder that save_to_disk wrote is in it"):
            ImportData(source=str(tmp_path), form="datasets").check()


class TestPush:
    def test_a_login_is_asked_for_before_anything_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        with pytest.raises(UserError, match="push: no login for the hub"):
            ExportData(rows="x", push="me/mine").check()

    def test_what_goes_over_the_wire(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        called: list[tuple[str, dict[str, Any]]] = []
        for name in ("create_repo", "upload_folder"):
            monkeypatch.setattr(
                f"huggingface_hub.HfApi.{name}",
                lambda self, *args, _name=name, **given: called.append((_name, {"args": args, **given})),
            )
        push(tmp_path, "me/mine", private=True)
        assert called[0] == (
            "create_repo", {"args": ("me/mine",), "repo_type": "dataset", "private": True, "exist_ok": True},
        )  # fmt: skip
        assert called[1][1]["folder_path"] == tmp_path
        assert called[1][1]["repo_id"] == "me/mine"

    def test_a_hub_that_cannot_be_reached_is_one_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import httpx

        def refused(self: Any, *args: Any, **given: Any) -> None:
            raise httpx.ConnectError("no route\nto the hub")

        monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refused)
        with pytest.raises(UserError) as raised:
            push(tmp_path, "me/mine", private=True)
        assert str(raised.value) == "push: me/mine: no route"


def test_an_edit_made_by_another_tool_comes_back() -> None:
    row = QA(
        id="1", images=[], prompt=[say("user", "a")], completion=[say("assistant", "b")], image_id="i", kind="read",
        split="train",
    )  # fmt: skip
    record = to_record(row, "llava", [])
    record["conversations"][1]["value"] = "better"
    assert from_record(record, "llava")[0].turns["completion"] == [say("assistant", "better")]


def test_a_pair_has_no_llava_form() -> None:
    pair = Pair(
        id="1", images=[], prompt=[say("user", "a")], chosen=[say("assistant", "b")], rejected=[say("assistant", "c")],
        question_id="q", image_id="i", kind="read", chosen_score=1, rejected_score=0,
    )  # fmt: skip
    with pytest.raises(Unfit, match="no pairs"):
        to_record(pair, "llava", [])


@pytest.mark.parametrize(("theirs", "kept"), [("coco", {"source": "coco"}), (7, {}), (None, {})])
def test_a_foreign_record_says_where_it_is_from(theirs: Any, kept: dict[str, str]) -> None:
    rows_of = {
        "trl": {"prompt": "How many?", "completion": "4", "source": theirs},
        "sharegpt": {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "4"}]},
        "messages": {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "4"}],
                     "rejected_response": "5"},
    }  # fmt: skip
    for form, record in rows_of.items():
        (found,) = from_record(record, form)
        row = row_of(found, [], "i", "a.json", [3, 0])
        told = {"mode": "import", "file": "a.json", "record": [3, 0], **(kept if form == "trl" else {})}
        assert json.loads(row.source) == told
