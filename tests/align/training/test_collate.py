"""A batch is what the processor makes of the same rows together; pixels are kept within their bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from align.artifact import Store
from align.families import family_of
from align.images import open_image
from align.models import load
from align.records import QA, Message
from align.training.collate import IGNORED, Collator, Pixels, pad, stack
from align.training.encode import Encoded, Encoder, Example, encode
from tests.align.training.corpus import images, pairs, plain_inputs, questions, tiny, turns


def encoder_of(model: Any, processor: Any) -> Encoder:
    return Encoder(processor, family_of(model.config))


def completion(row: QA) -> tuple[list[Message], list[list[Message]]]:
    return row.prompt, [row.completion]


@pytest.mark.parametrize("name", ["mllama", "idefics3", "idefics3-split", "llava"])
def test_batch_equals_the_processors(name: str, tmp_path: Path) -> None:
    family, _, split = name.partition("-")
    model, processor = load(str(tiny(family, tmp_path)))
    if split:  # rows with different numbers of sub-images
        processor.image_processor = Idefics3ImageProcessorPil(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=True
        )
    rows = questions(images(Store(tmp_path / "store")), 5)
    encoder = encoder_of(model, processor)
    pixels = Pixels(encoder.pixels, 10**9)
    examples, aside = encode(rows, completion, encoder, 2000, pixels.put)
    assert not aside
    batch = Collator(examples, pixels, processor.tokenizer.pad_token_id)([{"index": i} for i in range(5)])

    texts = [
        processor.apply_chat_template(turns(r.prompt, True) + turns(r.completion, False), tokenize=False) for r in rows
    ]
    plain = processor(
        images=[[open_image(r.images[0])] for r in rows], text=texts, padding=True, padding_side="right",
        return_tensors="pt", add_special_tokens=False,
    )  # fmt: skip
    labels = batch.pop("labels")
    assert batch.keys() == plain.keys()
    for key, expected in plain.items():
        found = batch[key]
        assert found.dtype == expected.dtype, key
        if key == "cross_attention_mask":  # what stands on padding is never read
            real = plain["attention_mask"].bool()
            found, expected = found[real], expected[real]
        assert torch.equal(found, expected), key
    for row, line, ids in zip(rows, labels, batch["input_ids"], strict=True):
        _, length = plain_inputs(processor, row, row.completion)
        assert (line != IGNORED).sum() == length
        assert torch.equal(line[line != IGNORED], ids[line != IGNORED])
        assert processor.tokenizer.decode(line[line != IGNORED]).startswith(row.completion[0].content)


def test_pairs_are_all_chosen_then_all_rejected(tmp_path: Path) -> None:
    model, processor = load(str(tiny("mllama", tmp_path)))
    rows = pairs(images(Store(tmp_path / "store")), 3)
    encoder = encoder_of(model, processor)
    pixels = Pixels(encoder.pixels, 10**9)
    examples, _ = encode(rows, lambda row: (row.prompt, [row.chosen, row.rejected]), encoder, 2000, pixels.put)
    collator = Collator(examples, pixels, processor.tokenizer.pad_token_id)
    batch = collator([{"index": 2}, {"index": 0}])
    answers = zip(batch["input_ids"], batch["completion_mask"].bool(), strict=True)
    said = [processor.tokenizer.decode(ids[mask]) for ids, mask in answers]
    end = processor.tokenizer.eos_token
    order = [rows[2].chosen, rows[0].chosen, rows[2].rejected, rows[0].rejected]
    assert said == [answer[0].content + end for answer in order]
    assert torch.equal(batch["pixel_values"][:2], batch["pixel_values"][2:])
    assert torch.equal(batch["pixel_values"][0], pixels.get(examples[2])["pixel_values"][0])
    collator.references = torch.tensor([[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]])
    batch = collator([{"index": 2}, {"index": 0}])
    assert batch["ref_chosen_logps"].tolist() == [-5.0, -1.0]
    assert batch["ref_rejected_logps"].tolist() == [-6.0, -2.0]


def test_pixels_stay_within_their_bytes_and_the_least_used_go_first() -> None:
    made: list[str] = []

    def make(prompt: str, image: str) -> dict[str, torch.Tensor]:
        made.append(image)
        return {"pixel_values": torch.full((1, 25), float(ord(image)))}  # 100 bytes

    pixels = Pixels(make, 250)
    examples = {name: Example(name, name, "", ()) for name in "abc"}
    for name in "abab":
        assert pixels.get(examples[name])["pixel_values"][0, 0] == ord(name)
    assert made == ["a", "b"]
    pixels.get(examples["c"])  # a is the one not used for longest
    pixels.get(examples["b"])
    assert made == ["a", "b", "c"]
    pixels.get(examples["a"])
    assert made == ["a", "b", "c", "a"]
    none = Pixels(make, 0)
    none.get(examples["a"])
    none.get(examples["a"])
    assert made[4:] == ["a", "a"]


def test_padding_by_hand() -> None:
    short = Encoded({"input_ids": torch.tensor([5, 6]), "mask": torch.ones(2, 1, 2, dtype=torch.int8)}, 1)
    longer = Encoded({"input_ids": torch.tensor([7, 8, 9]), "mask": torch.ones(3, 1, 2, dtype=torch.int8)}, 1)
    batch = pad([short, longer], 3)
    assert batch["input_ids"].tolist() == [[5, 6, 3], [7, 8, 9]]
    assert batch["mask"].tolist() == [[[[1, 1]], [[1, 1]], [[0, 0]]], [[[1, 1]]] * 3]
    both = stack([{"pixels": torch.ones(1, 1, 2)}, {"pixels": torch.ones(2, 2, 1)}])
    assert both["pixels"].tolist() == [[[1, 1], [0, 0]], [[1, 0], [1, 0]], [[1, 0], [1, 0]]]
