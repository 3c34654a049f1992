"""What is asked of a reward from outside: a question with answers and images, as OpenAI's chat format has them.

In: a mapping from a file or a request. Out: candidates, whose images lie on disk, or `BadAsk` with one clear reason.
Two forms: `messages` in OpenAI's chat format (text and `image_url` parts), or `prompt` with `images`; beside either
`candidates` (texts) or `completion` (one text), and `reference` where there is one, a list where several are right.
Images are data URLs, bytes, paths where files are allowed, http(s) URLs where those are. Everything but the images
behind URLs is checked first (`check_ask`), so that nothing is fetched for an ask that is refused. The limits of an ask
stand here, for files, server and Python.
"""

import base64
import binascii
import hashlib
import json
import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from numbers import Integral, Number, Real
from pathlib import Path
from typing import Any, ClassVar

from align.errors import did_you_mean, is_text
from align.images import MAX_PIXELS, BadImage, probe
from align.records import Candidate, Message

KEYS = ("id", "messages", "prompt", "images", "completion", "candidates", "reference")
ROLES = ("system", "user", "assistant")
MAX_CANDIDATES = 1024
MAX_IMAGES = 16
MAX_REFERENCES = 64
MAX_TEXT = 32_768
"""Characters of one text: an edit distance grows with their square."""
MAX_TEXTS = 1 << 20
"""Characters of all texts together."""
MAX_IMAGE_BYTES = 64 << 20


SURROGATE = "a text holds a lone surrogate, which is no character"


class BadAsk(Exception):
    """An ask that cannot be scored; the text is one line for whoever sent it."""


@dataclass(frozen=True)
class Asked:
    """An ask that was found good. `images` are paths, and http(s) URLs where these are still to be fetched."""

    name: str
    prompt: list[Message]
    answers: list[str]
    references: list[str]
    images: list[str]

    @property
    def urls(self) -> list[str]:
        """The images that are still to be fetched, each once."""
        return list(dict.fromkeys(image for image in self.images if is_url(image)))

    def with_images(self, found: Mapping[str, str]) -> "Asked":
        """The same with the paths of what was fetched, by URL."""
        return replace(self, images=[found.get(image, image) for image in self.images])

    @property
    def candidates(self) -> list[Candidate]:
        """One candidate an answer, in their order; their ids are made from the name."""
        return [
            Candidate(
                id=f"{self.name}-{n}",
                images=self.images,
                prompt=self.prompt,
                completion=[Message(role="assistant", content=answer)],
                question_id=self.name,
                image_id=self.images[0] if self.images else "",
                kind="",
                split="eval",
                reference=self.references[0] if self.references else None,
                accepted=self.references[1:],
                sampler="",
                temperature=0.0,
                system="",
                seed=0,
                finish="stop",
            )
            for n, answer in enumerate(self.answers)
        ]


def is_url(source: str | bytes) -> bool:
    """Whether an image is to be fetched."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


class Images:
    """Takes in images: checks each, and keeps those that came as bytes as files in `folder` by their sha256.

    `files` is the folder from which relative paths count, None where files are not allowed; `urls` says whether
    http(s) is. Whoever keeps images in one folder shares them, so that one picture is one path; a file is gone when
    the last `with` that took it ends.
    """

    _users: ClassVar[Counter[Path]] = Counter()
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, files: Path | None, folder: Path, *, urls: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        self.files = files
        self.folder = folder
        self.urls = urls
        self.max_pixels = max_pixels
        self._read: set[Path] = set()  # files that were found whole
        self._kept: set[Path] = set()

    def __enter__(self) -> "Images":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for path in self._kept:
                self._users[path] -= 1
                if self._users[path] < 1:
                    del self._users[path]
                    path.unlink(missing_ok=True)
            self._kept.clear()

    def take(self, source: str | bytes) -> str:
        """The path of an image; a URL that may be fetched as it is. Raises BadAsk."""
        if isinstance(source, bytes):
            return self.keep(source)
        if source.startswith("data:"):
            return self.keep(_data(source))
        if is_url(source):
            if not self.urls:
                raise BadAsk("images from URLs are not allowed here; send a data URL")
            from reward.fetch import check_url

            check_url(source)
            return source
        if self.files is None:
            raise BadAsk("an image has to be a data URL: data:image/png;base64,...")
        if "\0" in source or "://" in source:
            raise BadAsk(f"not a path of an image: {source[:80]!r}")
        path = self.files / source
        if path not in self._read:
            try:
                if path.exists() and not path.is_file():  # a folder, a pipe that never ends
                    raise BadAsk(f"no image at {source[:200]!r}: no regular file")
                self._check(path.read_bytes())
            except OSError as problem:
                raise BadAsk(f"no image at {source[:200]!r}: {problem.strerror or problem}") from None
            self._read.add(path)
        return str(path)

    def fetch(self, urls: Iterable[str]) -> dict[str, str | BadAsk]:
        """The paths of what lies behind URLs, or why there is none. Some are fetched at a time."""
        from reward.fetch import fetch_each

        return fetch_each(list(dict.fromkeys(urls)), MAX_IMAGE_BYTES, self.keep)

    def _check(self, data: bytes) -> None:
        try:
            probe(data, self.max_pixels)
        except BadImage as problem:
            too_large = problem.reason == "bomb"
            raise BadAsk(
                f"the image is too large: {problem.detail}" if too_large else f"unreadable image: {problem}"
            ) from None

    def keep(self, data: bytes) -> str:
        """Bytes of an image as a file. Raises BadAsk."""
        path = self.folder / hashlib.sha256(data).hexdigest()
        if path in self._kept:
            return str(path)
        self._check(data)
        with self._lock:
            if not path.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(".tmp")
                partial.write_bytes(data)
                partial.replace(path)
            if path not in self._kept:
                self._kept.add(path)
                self._users[path] += 1
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


def read_ask(given: Any, images: Images, name: str) -> Asked:
    """An ask from a mapping, its images taken in, those behind URLs too. Raises BadAsk."""
    asked = check_ask(given, images, name)
    found = images.fetch(asked.urls) if asked.urls else {}
    return asked.with_images(whole(found))


def whole(found: Mapping[str, str | BadAsk]) -> dict[str, str]:
    """Paths by URL. Raises BadAsk where one could not be had."""
    for path in found.values():
        if isinstance(path, BadAsk):
            raise path
    return {url: path for url, path in found.items() if isinstance(path, str)}


def check_ask(
    given: Any, images: Images, name: str, max_candidates: int = MAX_CANDIDATES, max_images: int = MAX_IMAGES
) -> Asked:
    """An ask from a mapping, with all but the images behind URLs checked and taken in. Raises BadAsk."""
    if not isinstance(given, Mapping):
        raise BadAsk(f"an object is expected, not {type(given).__name__}")
    for key in given:
        if key not in KEYS:
            raise BadAsk(f"unknown key {str(key)[:80]!r}{did_you_mean(str(key)[:80], KEYS)}")
    answers = _answers(given, max_candidates)
    references = _references(given.get("reference"))
    prompt, sources = _prompt(given)
    _check_texts([*answers, *(m.content for m in prompt), *references])
    _check_texts(["".join(references)])  # answers are compared with each of them
    if not all(is_text(source) for source in sources if isinstance(source, str)):
        raise BadAsk(SURROGATE)
    if isinstance(given.get("id"), str):  # of any other kind each place says itself what it takes
        _check_texts([given["id"]])
    if len(sources) > max_images:
        raise BadAsk(f"{len(sources)} images; {max_images} are allowed in one row")
    order = sorted(range(len(sources)), key=lambda n: not is_url(sources[n]))  # what costs least first
    taken = {n: images.take(sources[n]) for n in order}
    return Asked(name, prompt, answers, references, [taken[n] for n in range(len(sources))])


def _check_texts(texts: Sequence[str]) -> None:
    longest, together = max(map(len, texts)), sum(map(len, texts))
    if longest > MAX_TEXT:
        raise BadAsk(f"a text of {longest} characters; {MAX_TEXT} are allowed")
    if together > MAX_TEXTS:
        raise BadAsk(f"texts of {together} characters together; {MAX_TEXTS} are allowed in one row")
    if not all(map(is_text, texts)):
        raise BadAsk(SURROGATE)


def _references(value: Any) -> list[str]:
    """All right answers, each once: of a text, a number, a date or a boolean, or of a list or an array of them. None
    and NaN, which is what a table has for it, are none."""
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    listed = list(value) if several or (hasattr(value, "ndim") and value.ndim) else [value]
    if len(listed) > MAX_REFERENCES:
        raise BadAsk(f"{len(listed)} references; {MAX_REFERENCES} are allowed in one row")
    return list(dict.fromkeys(text for text in map(_reference, listed) if text is not None))


def _reference(value: Any) -> str | None:
    """A number as it is written: what a column holds as 12.0 is 12. An object as JSON."""
    try:
        if hasattr(value, "item") and not isinstance(value, Number):  # a boolean or a date of NumPy's, a tensor
            value = value.item()
        if value is None or (isinstance(value, Number) and value != value):
            return None
        if isinstance(value, Mapping):  # the fields of a form
            return json.dumps(value, ensure_ascii=False)
        if isinstance(value, str | bool | date | Integral):
            return str(value)
        if isinstance(value, Real | Decimal) and math.isfinite(value):
            return str(round(value)) if value == round(value) else str(value)  # float32's own digits
    except (ValueError, TypeError, ArithmeticError, RuntimeError):
        pass  # several numbers in a tensor, more digits than Python writes, an object that is no JSON
    what = str(value) if isinstance(value, float) else type(value).__name__
    raise BadAsk(f"reference: a text or a number is expected, or a list of them, not {what}")


def _answers(given: Mapping[str, Any], most: int) -> list[str]:
    if (given.get("candidates") is None) == (given.get("completion") is None):
        raise BadAsk("candidates (a list of texts) or completion (one text) is needed: one of them, and one alone")
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


def _prompt(given: Mapping[str, Any]) -> tuple[list[Message], list[str | bytes]]:
    """The messages, and the images in their order."""
    if (given.get("messages") is None) == (given.get("prompt") is None):
        raise BadAsk("messages (OpenAI's chat format) or prompt is needed: one of them, and one alone")
    sources: list[str | bytes] = []
    listed = given.get("images")
    if listed is not None:
        if not isinstance(listed, Sequence) or isinstance(listed, str | bytes):
            raise BadAsk("images: a list is expected")
        sources += [_source(image) for image in listed]
    prompt = given.get("messages") if given.get("messages") is not None else given["prompt"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence):
        raise BadAsk("messages: a list is expected")
    messages = [_message(turn, n, sources) for n, turn in enumerate(prompt)]
    if not messages or messages[-1].role != "user":
        raise BadAsk("messages: the last one has to be the user's; the answers go into candidates")
    return messages, sources


def _source(image: Any) -> str | bytes:
    """An image as a text or bytes; data sets keep both as {"bytes": ..., "path": ...} in parquet."""
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if not isinstance(image, str | bytes):
        raise BadAsk("images: a list of texts is expected")
    return image


def _message(turn: Any, n: int, sources: list[str | bytes]) -> Message:
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
        elif kind == "image" and set(part) == {"type"} and turn["role"] == "user":
            continue  # stands for one of `images`, as TRL has it
        elif kind == "image_url" and turn["role"] == "user":
            url = part.get("image_url")
            url = url.get("url") if isinstance(url, Mapping) else url
            if not isinstance(url, str):
                raise BadAsk(f"{where}: image_url without a url")
            sources.append(url)
        else:
            raise BadAsk(f"{where}: parts are text, and in the user's turns image_url, not {str(kind)[:40]!r}")
    return Message(role=turn["role"], content="\n".join(texts))
