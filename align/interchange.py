"""The forms in which other tools keep conversations about images, and back: one record a row, nothing lost.

| form | file | whose |
| --- | --- | --- |
| `trl` | parquet with pixels | TRL, `load_dataset`: `images`, `prompt`, `completion` or `chosen`, `rejected` |
| `datasets` | `save_to_disk` folder | the same columns, for `load_from_disk` |
| `llava` | JSON list | LLaVA: `image`, `conversations` of `human` and `gpt`; questions with answers only |
| `sharegpt` | JSON list | LLaMA-Factory: `conversations`, `images`, `system`, `chosen`, `rejected` |
| `messages` | JSON lines | ms-swift: `messages`, `images`, `rejected_response` |

In JSON an image is a path below the folder and `<image>` stands for it in the first user turn. What a form has no place
for lies under `vlm_align`, which other tools ignore. Everything here is a pure function of one record.
"""

import json
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from align.metrics import collapse
from align.provenance import compact
from align.records import QA, Message, Pair, row_id

Form = Literal["trl", "datasets", "llava", "sharegpt", "messages"]
EXTRA = "vlm_align"
TAG = "<image>"
ROW_TYPES: dict[str, type[QA] | type[Pair]] = {"rows": QA, "pairs": Pair}
_TURNS = ("prompt", "completion", "chosen", "rejected")
_NAMES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
_RUN = re.compile(r"<image>(?:\s*<image>)*")
_ABROAD = {"user": "human", "assistant": "gpt", "system": "system"}


class Unfit(Exception):
    """A row or record that cannot be converted: a short reason to count, and what exactly was wrong."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Foreign:
    """A record read: the turns, the images as they stood there, and the row's other values where it had been ours."""

    turns: dict[str, list[Message]]  # prompt with completion, or prompt with chosen and rejected
    images: list[Any] = field(default_factory=list)  # paths, or {"bytes", "path"}
    values: dict[str, Any] = field(default_factory=dict)
    id: str | None = None  # only where the record had been ours: elsewhere ids repeat


def to_record(row: QA | Pair, form: Form, names: Sequence[str]) -> dict[str, Any]:
    """A row as a JSON record of `form`; `names` are its images' paths. Raises Unfit where it cannot say it."""
    rest = {k: v for k, v in row.model_dump(mode="json").items() if k not in ("id", "images", *_TURNS)}
    record = _record(row, form, names)
    record[EXTRA] = rest
    found = from_record(record, form)[0].turns
    exact = {key: getattr(row, key) for key in found}
    if found != exact:  # an empty system turn, a text that says "<image>": said again, exactly
        rest["turns"] = {key: [m.model_dump() for m in turns] for key, turns in exact.items()}
    return record


def _record(row: QA | Pair, form: Form, names: Sequence[str]) -> dict[str, Any]:
    pair = isinstance(row, Pair)
    if form == "messages":
        answer = row.chosen if isinstance(row, Pair) else row.completion
        record: dict[str, Any] = {"id": row.id, "messages": _tagged([*row.prompt, *answer], len(names), "")}
        if isinstance(row, Pair):
            record["rejected_response"] = _only(row.rejected)
        return {**record, "images": list(names)}
    if pair and form == "llava":
        raise Unfit("no pairs", "LLaVA's form has no place for a preference")
    system, turns = _without_system(row.prompt)
    said = turns if isinstance(row, Pair) else [*turns, *row.completion]
    for i, message in enumerate(said):
        if message.role != ("user", "assistant")[i % 2]:
            raise Unfit(
                "turns", "this form needs turns of user and assistant by turns, a system turn before them at most"
            )
    talk = [
        {"from": _ABROAD[m["role"]], "value": m["content"]} for m in _tagged(said, len(names), "\n" * (form == "llava"))
    ]
    record = {"id": row.id, "conversations": talk, "system": system}
    if isinstance(row, Pair):
        record["chosen"] = {"from": "gpt", "value": _only(row.chosen)}
        record["rejected"] = {"from": "gpt", "value": _only(row.rejected)}
    if form == "sharegpt":
        record["images"] = list(names)
    elif names:
        record["image"] = names[0] if len(names) == 1 else list(names)
    return record


def _only(turns: list[Message]) -> str:
    if len(turns) != 1 or turns[0].role != "assistant":
        raise Unfit("turns", "this form needs one assistant turn as the answer")
    return turns[0].content


def _without_system(prompt: list[Message]) -> tuple[str, list[Message]]:
    first = prompt[0].content if prompt and prompt[0].role == "system" else None
    return first or "", prompt if first is None else prompt[1:]


def _tagged(turns: Sequence[Message], images: int, behind: str) -> list[dict[str, str]]:
    """Turns as dictionaries, the tags of the images before the first user turn's text. A text that says the tag itself
    gets a space into it, or the number of tags would not be the number of images."""
    found = []
    for message in turns:
        text = message.content.replace(TAG, "< image>")
        if message.role == "user" and images:
            text, images = (TAG + behind) * images + text, 0
        found.append({"role": message.role, "content": text})
    if images:
        raise Unfit("turns", "an image, and no user turn that it could stand in")
    return found


def from_record(record: Any, form: Form) -> list[Foreign]:
    """A JSON record of `form` read, whoever wrote it. A foreign record with several answers gives one row an answer,
    each with the turns before it. Raises Unfit."""
    if not isinstance(record, dict):
        raise Unfit("no record", f"a mapping is expected, not {type(record).__name__}")
    for key in ("videos", "audios", "video", "audio", "tools"):
        if record.get(key):
            raise Unfit("other media", f"the record has {key}")
    for key in ("label", "kto_tag"):  # TRL's unpaired preference and ms-swift's; LLaMA-Factory's
        if record.get(key) is False or str(record.get(key)).casefold() == "false":
            raise Unfit("judged bad", f"{key} says that the answer is none to imitate")
    if record.get("rejected_images") and record["rejected_images"] != record.get("images"):
        raise Unfit("rejected images", "the rejected answer is about images of its own")
    values: dict[str, Any] = dict(record[EXTRA]) if isinstance(record.get(EXTRA), dict) else {}
    exact = values.pop("turns", None)
    images = record.get("images") if record.get("images") is not None else record.get("image")
    pictures = list(images) if isinstance(images, list | tuple) else [] if images is None else [images]
    _check_places(record)
    pictures = pictures or _part_images(record)
    if form in ("trl", "datasets"):
        turns = [_columns(record)]
        values = {k: v for k, v in record.items() if k not in ("id", "images", *_TURNS) and v is not None}
    else:
        turns = _spoken(record, len(pictures), bool(values))
    if isinstance(exact, dict):
        turns = [{key: [Message.model_validate(m) for m in said] for key, said in exact.items()}]
    ours = str(record["id"]) if "image_id" in values and record.get("id") is not None else None
    return [Foreign(said, pictures, values, ours) for said in turns]


def _part_images(record: dict[str, Any]) -> list[Any]:
    """The images that stand as parts in turns (Qwen-VL's and OpenAI's chat formats). Raises Unfit for a part without
    its image, where there is no column of them either."""
    found: list[Any] = []
    for key in ("prompt", "messages", "conversations", *_TURNS):
        turns = record.get(key)
        said = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list | tuple) else []
        for turn in said:
            parts = turn.get("content")
            for part in parts if isinstance(parts, list | tuple) else []:
                kind = part.get("type") if isinstance(part, dict) else None
                if kind not in ("image", "image_url"):
                    continue
                image = next((part[k] for k in (kind, "image", "url", "path") if part.get(k) is not None), None)
                image = image.get("url") if isinstance(image, dict) and kind == "image_url" else image
                if image is None:
                    raise Unfit("images", "an image part in a turn, and no image in the record")
                if image not in found:  # a preference's prompt may stand in chosen and in rejected
                    found.append(image)
    return found


def _check_places(record: dict[str, Any]) -> None:
    """Raises Unfit where images stand as parts between parts of text, so that their places say which is meant, and
    where they stand in a later turn than the first of the user."""
    for key in ("prompt", "messages", "conversations", *_TURNS):
        turns = record.get(key)
        said = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list | tuple) else []
        asked = [turn for turn in said if turn.get("role") == "user"]
        for turn in said:
            parts = turn.get("content")
            kinds = [part.get("type") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
            shown = [kind in ("image", "image_url") for kind in kinds]
            if any(shown) and (not asked or turn is not asked[0]):
                raise Unfit("placeholders", "images that stand in a later turn")
            runs = sum(here and not before for before, here in zip([False, *shown], shown, strict=False))
            if runs > 1 or (sum(shown) > 1 and not (shown[0] or shown[-1])):
                raise Unfit("placeholders", "images that stand within the text")


def _columns(record: dict[str, Any]) -> dict[str, list[Message]]:
    """TRL's columns: conversational, or plain text (its standard format)."""
    if "chosen" in record or "rejected" in record:
        better, worse = (_messages(record.get(key), "assistant") for key in ("chosen", "rejected"))
        if better == worse:
            raise Unfit("equal answers", "chosen and rejected are the same")
        shared = 0  # an implicit prompt: what chosen and rejected begin with (TRL, `extract_prompt`)
        for a, b in zip(better, worse, strict=False):
            if a != b:
                break
            shared += 1
        prompt = _prompt(record, better[:shared])
        if prompt is not None:
            return _whole({"prompt": prompt, "chosen": better[shared:], "rejected": worse[shared:]})
        return _whole({"prompt": _messages(record["prompt"], "user"), "chosen": better, "rejected": worse})
    if "messages" in record and "prompt" not in record:
        said = _messages(record["messages"], "user")
        _check_learnt(record["messages"][-1:])
        return _whole({"prompt": said[:-1], "completion": said[-1:]})
    answer = _messages(record.get("completion"), "assistant")
    _check_learnt(record["completion"][-1:])
    if "image_id" not in record and (prompt := _prompt(record, answer[:-1])) is not None:
        return _whole({"prompt": prompt, "completion": answer[-1:]})
    return _whole({"prompt": _messages(record.get("prompt"), "user"), "completion": answer})


def _prompt(record: dict[str, Any], begun: list[Message]) -> list[Message] | None:
    """The prompt where the answers begin with turns of it, `begun`; None where they are answers alone. Data sets such
    as ultrafeedback_binarized give the question in `prompt` and in whole conversations. Raises Unfit where the two
    differ."""
    given = _messages(record["prompt"], "user") if record.get("prompt") is not None else []
    if not given:
        return begun
    if not begun or begun[0].role == "assistant":
        return None

    def ends_with(longer: list[Message], end: list[Message]) -> bool:
        return [(m.role, collapse(m.content)) for m in longer[-len(end) :]] == [
            (m.role, collapse(m.content)) for m in end
        ]

    if ends_with(begun, given):
        return begun
    if ends_with(given, begun):
        return given
    raise Unfit("two prompts", "the answers begin with other turns than those of the prompt")


def _check_learnt(turns: Any) -> None:
    """Raises Unfit for an answer that is in its record not to be learnt."""
    if any(map(_passed_over, turns)):
        raise Unfit("judged bad", "the answer is not to be learnt: its turn has loss or weight 0")


def _passed_over(turn: Any) -> bool:
    """Whether a turn is context alone: `loss` of ms-swift, `weight` of OpenAI's format."""
    return isinstance(turn, dict) and any(turn.get(key) is not None and not turn[key] for key in ("loss", "weight"))


def _messages(value: Any, role: Literal["user", "assistant"]) -> list[Message]:
    """Messages, or one of `role` from plain text. Parts are joined; the images among them are the row's own."""
    if isinstance(value, str):
        return [Message(role=role, content=value)]
    if not isinstance(value, list | tuple):
        raise Unfit("columns", "a text or a list of messages is expected in prompt, completion, chosen and rejected")
    return [_message(turn, "role", "content") for turn in value]


def _message(turn: Any, role_key: str, text_key: str) -> Message:
    if not isinstance(turn, dict) or role_key not in turn:
        raise Unfit("turns", f"a turn with {role_key!r} and {text_key!r} is expected")
    role, content = _NAMES.get(str(turn[role_key])), turn.get(text_key)
    if isinstance(content, list | tuple):
        parts = [part.get("text") or "" for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
    if role is None or not isinstance(content, str):
        raise Unfit("turns", f"a turn of {turn[role_key]!r} cannot be used")
    return Message.model_validate({"role": role, "content": content})


def _spoken(record: dict[str, Any], images: int, ours: bool) -> list[dict[str, list[Message]]]:
    """The turns of the JSON forms."""
    said = record.get("conversations") or record.get("messages")
    if not isinstance(said, list) or not said:
        raise Unfit("turns", "no conversations or messages in the record")
    keys = ("from", "value") if isinstance(said[0], dict) and "from" in said[0] else ("role", "content")
    turns = _untagged([_message(turn, *keys) for turn in said], images)
    passed_over = list(map(_passed_over, said))
    system = record.get("system")
    if isinstance(system, str) and system:
        first = turns[0] if turns[0].role == "system" else None
        if first is not None and collapse(first.content) != collapse(system):
            raise Unfit("two system turns", "the record has a system column and another system turn")
        if first is None:
            turns, passed_over = [Message(role="system", content=system), *turns], [False, *passed_over]
    worse = record.get("rejected_response")
    if worse is not None:
        if not isinstance(worse, str):
            raise Unfit("turns", f"rejected_response is a text, not {type(worse).__name__}")
        rejected = [Message(role="assistant", content=worse)]
        return [_preference(turns[:-1], turns[-1:], rejected, said[-1:])]
    if record.get("rejected_messages"):  # ms-swift: the whole conversation again, with the worse answer
        whole = _untagged([_message(turn, *_keys_of(turn)) for turn in record["rejected_messages"]], images)
        before = [[collapse(m.content) for m in said if m.role != "system"] for said in (turns[:-1], whole[:-1])]
        if before[1] and before[0] != before[1]:
            raise Unfit("two prompts", "the two conversations differ before their last answers")
        return [_preference(turns[:-1], turns[-1:], whole[-1:], said[-1:])]
    if record.get("rejected"):
        chosen, rejected = ([_message(record.get(k), *_keys_of(record.get(k)))] for k in ("chosen", "rejected"))
        return [_preference(turns, chosen, rejected, [record["chosen"]])]
    if ours:
        return [_whole({"prompt": turns[:-1], "completion": turns[-1:]})]
    answers = [i for i, message in enumerate(turns) if message.role == "assistant" and i]
    if not answers:
        raise Unfit("turns", "no answer in the record")
    learnt = [i for i in answers if not passed_over[i]]
    if not learnt:
        _check_learnt(said)
    return [_whole({"prompt": turns[:i], "completion": turns[i : i + 1]}) for i in learnt]


def _preference(
    prompt: list[Message], chosen: list[Message], rejected: list[Message], better: list[Any]
) -> dict[str, list[Message]]:
    _check_learnt(better)
    return _whole({"prompt": prompt, "chosen": chosen, "rejected": rejected})


def _keys_of(turn: Any) -> tuple[str, str]:
    return ("from", "value") if isinstance(turn, dict) and "from" in turn else ("role", "content")


def _untagged(turns: list[Message], images: int) -> list[Message]:
    """Turns without the images' tags, each with one line break beside it. Raises Unfit where they do not fit."""
    found, count = [], 0
    first = next((i for i, message in enumerate(turns) if message.role == "user"), -1)
    for i, message in enumerate(turns):
        text = message.content
        tags = text.count(TAG) if message.role == "user" else 0
        if tags and i != first:
            raise Unfit("placeholders", "images that stand in a later turn")
        if tags:
            count += tags
            _check_run(text)
            text = text.replace(f"{TAG}\n", "").replace(f"\n{TAG}", "").replace(TAG, "")
        found.append(message if not tags else Message(role=message.role, content=text))
    if count not in (0, images):
        raise Unfit("placeholders", f"{count} times {TAG} for {images} images")
    return found


def _check_run(text: str) -> None:
    """Raises Unfit where the tags are not all at the beginning or all at the end, or, one tag, in a line of its own: a
    text that speaks of images by their places would not say which without them."""
    found = list(_RUN.finditer(text))
    outside = text[: found[0].start()].strip(), text[found[-1].end() :].strip()
    alone = text.count(TAG) == 1 and any(line.strip() == TAG for line in text.split("\n"))
    if len(found) > 1 or not (alone or "" in outside):
        raise Unfit("placeholders", "images that stand within the text")


def check_turns(row: QA | Pair) -> None:
    """Raises Unfit for a row that no form could be read back from: turns without a message, two equal answers."""
    _whole({key: getattr(row, key) for key in _TURNS if hasattr(row, key)})


def _whole(turns: dict[str, list[Message]]) -> dict[str, list[Message]]:
    for key, said in turns.items():
        if not said:
            raise Unfit("turns", f"nothing in {key}")
    better, worse = ([(m.role, collapse(m.content)) for m in turns.get(key, ())] for key in ("chosen", "rejected"))
    if better and better == worse:
        raise Unfit("equal answers", "chosen and rejected are the same")
    return turns


def row_of(found: Foreign, images: list[str], image_id: str, origin: str, number: object) -> QA | Pair:
    """The row of a record: its own values where it had been ours, plain ones elsewhere. `origin` and `number` say where
    it is from. Raises ValueError for values that do not fit."""
    row_type: type[QA] | type[Pair] = Pair if "rejected" in found.turns else QA
    values: dict[str, Any] = {
        "id": found.id or row_id("import", origin, number),
        "image_id": image_id,
        "kind": "imported",
    }
    about: dict[str, Any] = {"mode": "import", "file": origin, "record": number}
    if row_type is QA:
        values |= {"split": "train"}
    else:
        # Two numbers in the right order: the file says which one is preferred, not by how much.
        values |= {"question_id": row_id("question", origin, number), "chosen_score": 1.0, "rejected_score": 0.0}
    for key, value in found.values.items():
        if key == "source" and found.id is None:  # another tool's word for it
            about |= {key: value} if isinstance(value, str) else {}
            continue
        if key in row_type.model_fields:
            mapping = typing.get_origin(row_type.model_fields[key].annotation) is dict
            values[key] = json.loads(value) if mapping and isinstance(value, str) else value
    if found.id is None:
        values["source"] = compact(about)
    return row_type.model_validate({**values, "images": images, **found.turns})
