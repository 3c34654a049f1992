"""What is asked of a reward from outside: a question with answers and images, as OpenAI's chat format has them.

In: a mapping from a file or a request. Out: candidates, whose images lie on disk, or `BadAsk` with one clear reason.
Two forms: `messages` in OpenAI's chat format (text and `image_url` parts), or `prompt` with `images`; beside either
`candidates` (texts) or `completion` (one text), and `reference` where there is one. Images are data URLs, paths where
files are allowed, http(s) URLs where those are.
"""

import base64
import binascii
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import did_you_mean
from align.images import MAX_PIXELS, BadImage, probe
from align.records import Candidate, Message

KEYS = ("id", "messages", "prompt", "images", "completion", "candidates", "reference")
ROLES = ("system", "user", "assistant")
MAX_CANDIDATES = 1024
MAX_IMAGE_BYTES = 64 << 20


class BadAsk(Exception):
    """An ask that cannot be scored; the text is one line for whoever sent it."""


@dataclass(frozen=True)
class Asked:
    """One candidate an answer, in their order."""

    candidates: list[Candidate]


class Images:
    """Takes in images: checks each, and keeps those that came as bytes as files in `folder` by their sha256.

    `files` is the folder from which relative paths count, None where files are not allowed; `urls` says whether
    http(s) is. Nothing that is kept outlives the `with`.
    """

    def __init__(
        self,
        files: Path | None,
        folder: Path,
        *,
        urls: bool = False,
        max_pixels: int = MAX_PIXELS,
        fetch: Callable[[str, int], bytes] | None = None,
    ) -> None:
        self.files = files
        self.folder = folder
        self.urls = urls
        self.max_pixels = max_pixels
        self._fetch = fetch
        self._read: set[Path] = set()  # files that were found whole

    def __enter__(self) -> "Images":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def take(self, source: str) -> str:
        """The path of an image. Raises BadAsk."""
        if source.startswith("data:"):
            return self.keep(_data(source))
        if source.startswith(("http://", "https://")):
            if not self.urls:
                raise BadAsk("images from URLs are not allowed here; send a data URL")
            if self._fetch is None:
                from reward.fetch import fetch

                self._fetch = fetch
            return self.keep(self._fetch(source, MAX_IMAGE_BYTES))
        if self.files is None:
            raise BadAsk("an image has to be a data URL: data:image/png;base64,...")
        if "\0" in source or "://" in source:
            raise BadAsk(f"not a path of an image: {source[:80]!r}")
        path = self.files / source
        if path not in self._read:
            try:
                self._check(path.read_bytes())
            except OSError as problem:
                raise BadAsk(f"no image at {source[:200]!r}: {problem.strerror or problem}") from None
            self._read.add(path)
        return str(path)

    def _check(self, data: bytes) -> None:
        try:
            found = probe(data)
        except BadImage as problem:
            raise BadAsk(f"unreadable image: {problem}") from None
        if found.width * found.height > self.max_pixels:
            raise BadAsk(f"an image of {found.width} x {found.height} pixels; {self.max_pixels} pixels are allowed")

    def keep(self, data: bytes) -> str:
        """Bytes of an image as a file. Raises BadAsk."""
        self._check(data)
        path = self.folder / hashlib.sha256(data).hexdigest()
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return str(path)


def _data(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise BadAsk("a data URL has to be base64: data:image/png;base64,...")
    if len(body) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise BadAsk(f"an image of more than {MAX_IMAGE_BYTES} bytes")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadAsk(f"the image's base64 cannot be read: {error}") from None


def read_ask(given: Any, images: Images, name: str, max_candidates: int = MAX_CANDIDATES) -> Asked:
    """Candidates from a mapping; their ids are made from `name`. Raises BadAsk."""
    if not isinstance(given, Mapping):
        raise BadAsk(f"an object is expected, not {type(given).__name__}")
    for key in given:
        if key not in KEYS:
            raise BadAsk(f"unknown key {str(key)[:80]!r}{did_you_mean(str(key)[:80], KEYS)}")
    answers = _answers(given, max_candidates)
    reference = given.get("reference")
    if reference is not None and not isinstance(reference, str):
        raise BadAsk("reference: a text is expected")
    prompt, sources = _prompt(given)
    taken = [images.take(source) for source in sources]
    for text in [*answers, *(m.content for m in prompt), reference or ""]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadAsk("a text holds a lone surrogate, which is no character") from None
    return Asked(
        [
            Candidate(
                id=f"{name}-{n}",
                images=taken,
                prompt=prompt,
                completion=[Message(role="assistant", content=answer)],
                question_id=name,
                image_id=taken[0] if taken else "",
                kind="",
                split="eval",
                reference=reference,
                sampler="",
                temperature=0.0,
                system="",
                seed=0,
                finish="stop",
            )
            for n, answer in enumerate(answers)
        ]
    )


def _answers(given: Mapping[str, Any], most: int) -> list[str]:
    if (given.get("candidates") is None) == (given.get("completion") is None):
        raise BadAsk("candidates (a list of texts) or completion (one text) is needed, not both")
    if given.get("completion") is not None:
        return [_text_or_messages(given["completion"], "completion")]
    found = given["candidates"]
    if not isinstance(found, Sequence) or isinstance(found, str | bytes) or not found:
        raise BadAsk("candidates: a list of at least one text is expected")
    if len(found) > most:
        raise BadAsk(f"{len(found)} candidates; {most} are allowed in one row")
    return [_text_or_messages(answer, f"candidates[{n}]") for n, answer in enumerate(found)]


def _text_or_messages(value: Any, key: str) -> str:
    """A text, or TRL's form of a completion: a list of one assistant message."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and len(value) == 1 and isinstance(value[0], Mapping):
        content = value[0].get("content")
        if value[0].get("role") == "assistant" and isinstance(content, str):
            return content
    raise BadAsk(f"{key}: a text is expected")


def _prompt(given: Mapping[str, Any]) -> tuple[list[Message], list[str]]:
    """The messages, and the images in their order."""
    if (given.get("messages") is None) == (given.get("prompt") is None):
        raise BadAsk("messages (OpenAI's chat format) or prompt is needed, not both")
    sources: list[str] = []
    listed = given.get("images")
    if listed is not None:
        if not isinstance(listed, Sequence) or isinstance(listed, str) or not all(isinstance(s, str) for s in listed):
            raise BadAsk("images: a list of texts is expected")
        sources += listed
    prompt = given.get("messages") if given.get("messages") is not None else given["prompt"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence):
        raise BadAsk("messages: a list is expected")
    messages = [_message(turn, n, sources) for n, turn in enumerate(prompt)]
    if not messages or messages[-1].role != "user":
        raise BadAsk("messages: the last one has to be the user's; the answers go into candidates")
    return messages, sources


def _message(turn: Any, n: int, sources: list[str]) -> Message:
    where = f"messages[{n}]"
    if not isinstance(turn, Mapping) or turn.get("role") not in ROLES:
        raise BadAsk(f"{where}: an object with role ({', '.join(ROLES)}) and content is expected")
    content = turn.get("content")
    if isinstance(content, str):
        return Message(role=turn["role"], content=content)
    if not isinstance(content, Sequence):
        raise BadAsk(f"{where}.content: a text or a list of parts is expected")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url" and turn["role"] == "user":
            url = part.get("image_url")
            url = url.get("url") if isinstance(url, Mapping) else url
            if not isinstance(url, str):
                raise BadAsk(f"{where}: image_url without a url")
            sources.append(url)
        else:
            raise BadAsk(f"{where}: parts are text, and in the user's turns image_url, not {str(kind)[:40]!r}")
    return Message(role=turn["role"], content="\n".join(texts))
