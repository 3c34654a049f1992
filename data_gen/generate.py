"""Stage `generate`: questions with answers about images, by a teacher or by rule.

In: the manifest. Out: `QA` rows. A teacher looks at the image (`image`), is given its text form too (`grounded`), or
there is none and rules make questions from the text form (`fields`). The unit of work is one request, an image and a
kind of question: rows in are requests, and a request gives up to `per_kind` questions. Replies are parsed strictly; a
reply or a question that cannot be used is set aside with its reason.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from align.artifact import Batch, Out, rows
from align.config import shipped
from align.engine import Engine, EngineConfig, Reply, Request, check_engine, open_engine
from align.errors import UserError, did_you_mean
from align.metrics import normalise
from align.records import QA, ImageRow, Message, Row, Sampling, dropped, read_parquet, row_id, row_seed
from align.stage import RUNTIME, FileRef, Metrics, Ref, Stage
from align.templates import render
from data_gen.facts import Facts, is_text, read_facts
from data_gen.rules import RULES, Pool, in_shares

TEMPLATE = "ask.jinja"
KEYS = {"question", "answer"}
REPLY_KEPT = 2000
"""Characters of a reply kept beside the reason for which it was set aside."""
_TAG = re.compile(r"<(?=[|/]?\w[^<>\s]*>)|\[(?=/?[A-Z_]{3,}\])")


Answer = Callable[[list[Request]], list[Reply]]


class Ask(Row):
    """One request: `count` questions of one kind about one image."""

    image_id: str
    kind: str
    image: ImageRow = Field(exclude=True)


class Generate(Stage):
    """Makes questions and answers."""

    NAME = "generate"
    OUTPUTS = {"questions": QA}

    images: Annotated[str, Ref(ImageRow)]
    mode: Literal["image", "grounded", "fields"] = "image"
    teacher: EngineConfig | None = None
    kinds: list[str] = Field(default=list(RULES), min_length=1)
    per_kind: PositiveInt = 2
    split: Literal["train", "eval", "all"] = "train"
    prompts: FileRef = "configs/prompts/default"  # a folder with ask.jinja: variables kind, count, text_form
    temperature: Annotated[float, Field(ge=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    max_tokens: PositiveInt = 1024
    guided: bool = True  # have the engine allow nothing but the JSON that is asked for, where it can
    shard: Annotated[PositiveInt, RUNTIME] = 256

    def check(self) -> None:
        for kind in self.kinds:
            if self.kinds.count(kind) > 1:
                raise UserError(f"kinds: {kind!r} stands here twice")
        if self.mode == "fields":
            if self.teacher is not None:
                raise UserError("teacher: `mode: fields` makes questions by rule and asks no model; leave it out")
            for kind in self.kinds:
                if kind not in RULES:
                    raise UserError(f"kinds: there is no rule for {kind!r}{did_you_mean(kind, RULES)}")
            return
        if self.teacher is None:
            raise UserError(f"teacher: required for `mode: {self.mode}`; only `mode: fields` goes without")
        if not self._template.is_file():
            raise UserError(f"prompts: {self.prompts}: a folder with a file {TEMPLATE} is expected")
        for kind in self.kinds:
            try:
                render(self._template, kind=kind, count=self.per_kind, text_form="x")
            except UserError as error:
                raise UserError(f"kinds: {kind!r}: {error}") from None
        try:
            check_engine(self.teacher)
        except UserError as error:
            raise UserError(f"teacher: {error}") from None

    @property
    def _template(self) -> Path:
        return shipped(self.prompts) / TEMPLATE

    def run(self, out: Out) -> Metrics:
        pool, images = Pool(), 0
        for row in self._images():
            images += 1
            if self.mode == "fields" and (found := read_facts(row.text_form or "")):
                pool.add(found)
        asks = (
            Ask(id=row_id(row.id, kind), image_id=row.id, kind=kind, image=row)
            for row in self._images()
            for kind in self.kinds
        )
        with ExitStack() as stack:
            engines: list[Engine] = []

            def answer(requests: list[Request]) -> list[Reply]:
                if requests and not engines and self.teacher is not None:  # not before there is something to ask
                    engines.append(stack.enter_context(open_engine(self.teacher)))
                return engines[0].generate(requests) if requests else []

            def work(chunk: list[Ask]) -> Batch[QA]:
                if self.mode == "fields":
                    return self._by_rule(chunk, pool)
                return self._by_teacher(chunk, answer)

            ports: dict[str, type[Row]] = {"questions": QA}
            out.map_rows(asks, images * len(self.kinds), work, ports, shard=self.shard, label="requests")
        made = read_parquet(sorted((out.path / "questions").glob("part-*.parquet")), QA)
        kinds = Counter(dict.fromkeys(self.kinds, 0))
        kinds.update(row.kind for row in made)
        return {"images": images, "questions": kinds.total(), "kinds": dict(kinds)}

    def _images(self) -> Iterator[ImageRow]:
        return (row for row in rows(self.images, ImageRow) if self.split in ("all", row.split))

    def _by_rule(self, chunk: list[Ask], pool: Pool) -> Batch[QA]:
        batch: Batch[QA] = Batch({"questions": []})
        source = _compact({"mode": self.mode, "seed": self.seed})
        for ask in chunk:
            found = read_facts(ask.image.text_form or "")
            if ask.image.text_form is None:
                batch.dropped.append(dropped(ask, "no text form"))
            elif found is None:
                batch.dropped.append(dropped(ask, "no facts", "the text form is no JSON of fields, table or boxes"))
            else:
                asked = ask_by_rule(ask.kind, found, ask.image, pool, self.per_kind, self.seed)
                made = [to_qa(ask, n, q, a, source, True) for n, (q, a) in enumerate(asked)]
                batch.rows["questions"] += made
                if not made:
                    batch.dropped.append(dropped(ask, "nothing to ask", "no rule of this kind fits the text form"))
        return batch

    def _by_teacher(self, chunk: list[Ask], answer: Answer) -> Batch[QA]:
        batch: Batch[QA] = Batch({"questions": []})
        grounded = self.mode == "grounded"
        asks = {ask.id: ask for ask in chunk if not grounded or ask.image.text_form is not None}
        batch.dropped += [dropped(ask, "no text form") for ask in chunk if ask.id not in asks]
        replies = {reply.id: reply for reply in answer([self._request(ask) for ask in asks.values()])}
        source = self._source()
        for ask in asks.values():
            reply = replies.get(ask.id)
            if reply is None or reply.error or not reply.texts:
                batch.dropped.append(dropped(ask, "no answer", reply.error if reply else ""))
                continue
            try:
                found = parse_reply(reply.texts[0])
            except Unparsed as error:
                cut = "cut off at max_tokens: " if "length" in reply.finish else ""
                detail = f"{cut}{error}: {reply.texts[0][:REPLY_KEPT]}".encode(errors="replace").decode()
                batch.dropped.append(dropped(ask, "unparsed", detail))
                continue
            for n, (item, reason) in enumerate(judge_items(found, self.per_kind)):
                row = to_qa(ask, n, item.question.strip(), item.answer.strip(), source, grounded)
                if reason:
                    batch.dropped.append(dropped(row, reason))
                else:
                    batch.rows["questions"].append(row)
        return batch

    def _request(self, ask: Ask) -> Request:
        text = content(ask.image.text_form or "") if self.mode == "grounded" else None
        prompt = render(self._template, kind=ask.kind, count=self.per_kind, text_form=text)
        return Request(
            id=ask.id,
            messages=[Message(role="user", content=prompt)],
            images=ask.image.images,
            sampling=Sampling(temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens),
            seed=row_seed(self.seed, ask.id),
            json_schema=reply_schema(self.per_kind) if self.guided else None,
        )

    def _source(self) -> str:
        digest = hashlib.sha256(self._template.read_bytes()).hexdigest()
        return _compact(
            {
                "mode": self.mode,
                "teacher": model_name(self.teacher.model) if self.teacher else "",
                "template": digest,
                "temperature": self.temperature,
                "top_p": self.top_p,
                "seed": self.seed,
            }
        )


class Unparsed(Exception):
    """A reply that is not the JSON that was asked for."""


@dataclass(frozen=True)
class Item:
    """A question with its answer as the teacher wrote them."""

    question: str
    answer: str


def parse_reply(text: str) -> list[Item]:
    """The questions of a reply: a JSON array of objects with exactly `question` and `answer`, both text, and nothing
    around it. Raises Unparsed."""
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise Unparsed(f"no JSON ({error})") from None
    if not isinstance(value, list) or not value:
        raise Unparsed("no array of questions")
    for item in value:
        if not isinstance(item, dict) or set(item) != KEYS:
            raise Unparsed("an entry is no object of exactly question and answer")
        if not all(isinstance(part, str) for part in item.values()):
            raise Unparsed("a question or an answer is no text")
        if not all(is_text(part) for part in item.values()):
            raise Unparsed("a question or an answer holds half a character")
    return [Item(**item) for item in value]


def judge_items(items: list[Item], count: int) -> Iterator[tuple[Item, str]]:
    """Each question of a reply and the reason not to use it, empty for a good one."""
    seen: set[str] = set()
    good = 0
    for item in items:
        form = normalise(item.question)
        if not item.question.strip():
            reason = "empty question"
        elif not item.answer.strip():
            reason = "empty answer"
        elif form in seen:
            reason = "repeated question"
        elif good == count:
            reason = "too many"
        else:
            reason = ""
            good += 1
        seen.add(form)
        yield item, reason


def ask_by_rule(kind: str, found: Facts, image: ImageRow, pool: Pool, count: int, seed: int) -> list[tuple[str, str]]:
    """Up to `count` different questions of a kind about an image, the same ones for the same seed and image."""
    rng = Random(row_seed(seed, image.id, kind))
    asked = RULES[kind](in_shares(found, image.width, image.height), pool, rng)
    answers: dict[str, str] = {}
    for question, answer in asked:
        answers.setdefault(question, answer)
    return list(answers.items())[:count]


def to_qa(ask: Ask, index: int, question: str, answer: str, source: str, grounded: bool) -> QA:
    """The row of one question."""
    return QA(
        id=row_id(ask.image_id, ask.kind, index, question, answer),
        images=ask.image.images,
        prompt=[Message(role="user", content=question)],
        completion=[Message(role="assistant", content=answer)],
        image_id=ask.image_id,
        kind=ask.kind,
        split=ask.image.split,
        grounded=grounded,
        source=source,
    )


def reply_schema(count: int) -> dict[str, Any]:
    """The JSON schema of a reply, for engines that can hold a model to one."""
    text = {"type": "string"}
    item = {
        "type": "object",
        "properties": {"question": text, "answer": text},
        "required": ["question", "answer"],
        "additionalProperties": False,
    }
    return {"type": "array", "items": item, "minItems": 1, "maxItems": count}


def content(text: str) -> str:
    """A text form made safe to stand in a prompt: what looks like a tag or a special token is no longer one."""
    return _TAG.sub(lambda match: f"{match[0]} ", text)


def model_name(model: str) -> str:
    """A name for provenance that does not depend on where the store lies: an artifact's folder, or the hub id."""
    path = Path(model)
    if not path.is_dir():
        return model
    return path.parent.name if path.name == "model" else path.name


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _compact(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
