"""Rows over small images of several shapes, stored as a stage finds them, and the plain computation to compare with."""

import io
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from align.artifact import Store, begin
from align.images import open_image
from align.records import QA, Message, Pair, Row

WORDS = ["red", "blue", "green", "three", "four", "seven", "bar", "line", "left", "right"]
SIZES = ((32, 32), (64, 30), (30, 70), (50, 50), (90, 40))
"""Width and height; with tiles of 32 pixels the tiny Mllama cuts some into one tile, some into two."""


def images(store: Store, count: int = 5) -> list[str]:
    found = []
    for i in range(count):
        width, height = SIZES[i % len(SIZES)]
        pixels = np.random.default_rng(i).integers(0, 255, (height, width, 3), dtype=np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        found.append(str(store.add_blob(data.getvalue(), ".png")))
    return found


def said(role: str, text: str) -> list[Message]:
    return [Message(role=role, content=text)]


def qa(number: int, image: str, question: str, answer: str, **changes: object) -> QA:
    row = QA(
        id=f"r{number}", images=[image], prompt=said("user", question), completion=said("assistant", answer),
        image_id=image, kind="read", split="train",
    )  # fmt: skip
    return row.model_copy(update=changes)


def questions(paths: list[str], count: int, seed: int = 0) -> list[QA]:
    rng = random.Random(seed)
    return [qa(i, paths[i % len(paths)], words(rng, 2, 6), words(rng, 1, 6)) for i in range(count)]


def pairs(paths: list[str], count: int, seed: int = 0) -> list[Pair]:
    rng = random.Random(seed)
    return [
        Pair(
            id=f"p{i}", images=[paths[i % len(paths)]], prompt=said("user", words(rng, 2, 6)),
            chosen=said("assistant", words(rng, 1, 5)), rejected=said("assistant", words(rng, 2, 7)),
            question_id=f"q{i}", image_id="x", kind="read", chosen_score=1.0, rejected_score=0.0,
        )
        for i in range(count)
    ]  # fmt: skip


def words(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def keep(store: Store, rows: list[Row], row_type: type[Row], key: str = "rows") -> str:
    """Write rows as an unfinished artifact's port; returns the port's folder, as a resolved reference."""
    with begin(store, "source", key) as out:
        out.write("data", row_type, rows)
        return str(out.path / "data")


def turns(messages: list[Message], with_image: bool) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for message in messages:
        parts = [{"type": "text", "text": message.content}]
        if with_image and message.role == "user":
            parts.insert(0, {"type": "image"})
            with_image = False
        found.append({"role": message.role, "content": parts})
    return found


def plain_inputs(processor: ProcessorMixin, row: QA | Pair, answer: list[Message]) -> tuple[dict[str, Tensor], int]:
    """One row by the processor alone, and how many of its last tokens are the answer with its end of turn."""
    text = processor.apply_chat_template(turns(row.prompt, True) + turns(answer, False), tokenize=False)
    inputs = processor(images=[[open_image(row.images[0])]], text=[text], return_tensors="pt", add_special_tokens=False)
    tail = processor.tokenizer(answer[0].content + processor.tokenizer.eos_token, add_special_tokens=False)
    return dict(inputs), len(tail["input_ids"])


def plain_logps(model: torch.nn.Module, processor: ProcessorMixin, row: QA | Pair, answer: list[Message]) -> Tensor:
    """Log-probabilities of the answer's tokens [tokens], from the whole logits of the row alone."""
    inputs, length = plain_inputs(processor, row, answer)
    logits = model(**inputs, use_cache=False).logits[0]
    ids = inputs["input_ids"][0, -length:]
    return -torch.nn.functional.cross_entropy(logits[-length - 1 : -1], ids, reduction="none")


def tiny(name: str, folder: Path) -> Path:
    from tests import tiny as models

    made: Path = getattr(models, f"tiny_{name}")(folder / name)
    return made
