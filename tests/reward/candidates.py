"""Candidates for the tests of rewards."""

from pathlib import Path
from typing import Any

from align.records import Candidate, Message


def candidate(text: str, reference: str | None = None, **more: Any) -> Candidate:
    """A candidate with this answer and reference, the rest filled in."""
    values: dict[str, Any] = {
        "id": f"id of {text} {reference}",
        "images": [],
        "prompt": [Message(role="user", content="How tall is the blue bar?")],
        "completion": [Message(role="assistant", content=text)],
        "question_id": "q",
        "image_id": "i",
        "kind": "read",
        "split": "train",
        "reference": reference,
        "sampler": "student",
        "temperature": 1.0,
        "system": "",
        "seed": 0,
        "finish": "stop",
    }
    return Candidate(**{**values, **more})


def png(path: Path, colour: tuple[int, int, int] = (200, 30, 30)) -> str:
    """A small picture on disk."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return str(path)
