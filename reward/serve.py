"""A reward as an HTTP server.

In: requests with a question in OpenAI's chat format, images and candidate answers. Out: one score a candidate, in their
order. What is too large or too much is refused with a clear status; what was taken in is finished before the server
stops. How requests become batches: `reward/serve_batch.py`. Imported by the command alone.
"""

import asyncio
import hmac
import logging
import math
import os
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from align.engine import EngineAway, EngineDied
from align.errors import UserError
from reward.asks import MAX_REFERENCES, MAX_TEXTS, ROLES, BadAsk, Images
from reward.base import Reward, Score
from reward.serve_batch import AWAY_S, Batcher, Full, Gone, Intake, Left, Limits

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


GONE = "the model behind the reward does not answer"
CLOSE = {"Connection": "close"}
BODY_S = 60.0
"""Seconds in which a body has to come: one that never ends would hold up a stop."""
MAX_VALUES = MAX_TEXTS + (1 << 16)
"""Lists, objects and what they hold in a body: two bytes of JSON can take a hundred of memory. No request within the
limits of `reward/asks.py` has as many, even where its texts are nothing but commas."""
VALUE_BYTES = 300
"""Bytes that a value takes when it is parsed, with room for the copies on its way."""

_STRING = {"type": "string"}
_TEXT = {"type": "object", "required": ["type", "text"], "properties": {"type": {"const": "text"}, "text": _STRING}}
_IMAGE = {
    "type": "object",
    "required": ["type", "image_url"],
    "properties": {
        "type": {"const": "image_url"},
        "image_url": {"type": "object", "required": ["url"], "properties": {"url": _STRING}},
    },
}
_PLACE = {
    "type": "object",
    "required": ["type"],
    "properties": {"type": {"const": "image"}},
    "additionalProperties": False,
}
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": list(ROLES)},
        "content": {"anyOf": [_STRING, {"type": "array", "items": {"anyOf": [_TEXT, _IMAGE, _PLACE]}}]},
    },
}
_RIGHT = [{"type": kind} for kind in ("string", "number", "boolean", "object", "null")]
_REFERENCE = {"anyOf": [*_RIGHT, {"type": "array", "maxItems": MAX_REFERENCES, "items": {"anyOf": _RIGHT}}]}
_ONE_OF: list[Any] = [
    {"required": [key], "properties": {key: {"type": kind}}}
    for key, kind in (("messages", "array"), ("prompt", "string"))
]


class Ask(BaseModel):
    """A question with candidate answers. `messages` (OpenAI's chat format) or `prompt` with `images`."""

    # what `reward/asks.py` looks at, said to whoever reads the schema
    model_config = ConfigDict(extra="forbid", json_schema_extra={"oneOf": _ONE_OF})
    id: str | None = Field(None, description="comes back with the scores")
    messages: list[Annotated[dict[str, Any], WithJsonSchema(_MESSAGE)]] | None = Field(
        None, min_length=1, fail_fast=True, description="OpenAI chat messages, the user's last"
    )
    prompt: str | None = None
    images: list[str] | None = Field(None, fail_fast=True, description="data URLs: data:image/png;base64,...")
    candidates: list[str] = Field(min_length=1, fail_fast=True, description="the answers to score")
    reference: Annotated[Any, WithJsonSchema(_REFERENCE)] = Field(
        None, description="the right answer, or all that are right, for rewards that need it"
    )


class OneScore(BaseModel):
    """`score` is null where the candidate could not be scored, and `reason` says why."""

    score: float | None
    parts: dict[str, float | None]
    reason: str


class Scores(BaseModel):
    id: str | None
    scores: list[OneScore]


class Problem(BaseModel):
    detail: str


class Refusal(Exception):
    """A request that is refused before it is parsed."""

    def __init__(self, status: int, detail: str, headers: dict[str, str]) -> None:
        super().__init__(detail)
        self.response = JSONResponse({"detail": detail}, status, headers)


async def pieces(receive: Receive) -> AsyncIterator[bytes]:
    """A body as it comes. Raises ClientDisconnect."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        yield message.get("body", b"")
        more = message.get("more_body", False)


@asynccontextmanager
async def client_of(receive: Receive) -> AsyncIterator[Gone]:
    """A future that is done when the client of a request whose body has come is gone."""

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    gone = asyncio.ensure_future(listen())
    try:
        yield gone
    finally:
        gone.cancel()


class Guard:
    """Token, size and time of the body, and room for it, before anything is parsed; ASGI middleware."""

    def __init__(self, app: Any, limits: Limits, token: str | None, refused: Callable[[int], None]) -> None:
        self.app = app
        self.refused = refused  # is told the status
        self.most = limits.body
        self.room = max(limits.bodies, limits.body)
        self.token = token
        self.held = 0  # bytes of bodies and of what is parsed from them, until they are answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        body = bytearray()
        size = 0
        try:
            try:
                self._check_head(dict(scope["headers"]))
                async with asyncio.timeout(BODY_S):
                    async for piece in pieces(receive):
                        body += piece
                        size += len(piece)
                        self.held += len(piece)
                        if size > self.most:
                            raise self._too_large()
                        self._check_room(size)
            except TimeoutError:
                raise Refusal(408, f"the body took longer than {BODY_S:g} s to come", CLOSE) from None
            values = sum(map(body.count, (b"[", b"{", b",")))  # no fewer: each but the first follows one of these
            if values > MAX_VALUES:
                raise Refusal(422, f"{values} values, and commas and brackets in texts; {MAX_VALUES} are allowed", {})
            size += values * VALUE_BYTES
            self.held += values * VALUE_BYTES
            self._check_room(size)
            whole = [bytes(body)]
            del body  # one copy of it waits with the request, not two

            async def replay() -> MutableMapping[str, Any]:
                return {"type": "http.request", "body": whole.pop(), "more_body": False} if whole else await receive()

            await self.app(scope, replay, send)
        except Refusal as refusal:
            self.refused(refusal.response.status_code)
            await refusal.response(scope, receive, send)
        except ClientDisconnect:
            pass
        except Exception:  # the server's own last resort answers it, out of sight
            self.refused(500)
            raise
        finally:
            self.held -= size

    def _check_room(self, own: int) -> None:
        if self.held > self.room and self.held > own:  # what comes alone is taken, whatever it costs
            raise Refusal(429, "too much is waiting; try again in 1 s", {"Retry-After": "1", **CLOSE})

    def _check_head(self, headers: dict[bytes, bytes]) -> None:
        if self.token is not None:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.token.encode()):
                raise Refusal(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.most:
            raise self._too_large()

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body is larger than {self.most} bytes", CLOSE)


def create_app(
    reward: Reward,
    limits: Limits,
    token: str | None = None,
    allow_urls: bool = False,
    died: Callable[[EngineDied], None] = lambda error: None,
) -> FastAPI:
    """The application around an opened reward. `died` is told when its model is gone for good."""
    batcher, intake = Batcher(reward, limits, died), Intake(limits)
    folder = tempfile.TemporaryDirectory(prefix="vlm-align-")

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.work())
        yield
        batcher.stop()
        await worker
        intake.close()
        folder.cleanup()
        told = "stopped: %d requests taken in, %d answered, %d left by their clients"
        logging.getLogger("uvicorn.error").info(told, batcher.taken, batcher.answered, batcher.left)

    app = FastAPI(title="vlm-align reward", version="1", lifespan=life)
    registry = CollectorRegistry()
    requests = Counter("reward_requests", "Requests by status.", ["status"], registry=registry)
    candidates = Counter("reward_candidates", "Candidates by outcome.", ["outcome"], registry=registry)
    seconds = Histogram("reward_request_seconds", "Time of a scored request.", registry=registry)
    Gauge("reward_waiting", "Candidates waiting.", registry=registry).set_function(lambda: batcher.waiting)

    def refused(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
        requests.labels(str(status)).inc()
        return JSONResponse({"detail": detail}, status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        """What was sent is not sent back: it may be large, or no text at all."""
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return refused(400, f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
        if isinstance(error.body, bytes):  # it was not read as JSON
            return refused(415, "the request needs the header Content-Type: application/json")
        if first["loc"] == ("body",):
            return refused(422, "an object is expected: messages or prompt, and candidates")
        lines = []
        for problem in error.errors()[:10]:
            where = ".".join(str(part) for part in problem["loc"] if part != "body")
            lines.append(f"{where}: {problem['msg']}" if where else str(problem["msg"]))
        return refused(422, "; ".join(lines).encode("utf-8", "replace").decode())

    @app.exception_handler(HTTPException)
    async def unread(request: Request, error: HTTPException) -> JSONResponse:
        """No such page or method, or a body from which nothing could be read: `__cause__` is why."""
        detail = error.detail
        if isinstance(error.__cause__, UnicodeDecodeError):
            detail = f"the body is no UTF-8: {error.__cause__.reason} at byte {error.__cause__.start}"
        elif error.__cause__ is not None:  # too deep, a number of too many digits
            detail = f"the body's JSON cannot be read: {error.__cause__}"
        return refused(error.status_code, detail, dict(error.headers or {}))

    problems: dict[int | str, dict[str, Any]] = {
        400: {"model": Problem, "description": "The body is no JSON in UTF-8."},
        401: {"model": Problem, "description": "The token is missing or wrong."},
        408: {"model": Problem, "description": "The body took too long to come."},
        413: {"model": Problem, "description": "The body is too large."},
        415: {"model": Problem, "description": "The body is not said to be JSON."},
        422: {"model": Problem, "description": "The request cannot be scored; `detail` says why."},
        429: {
            "model": Problem,
            "description": "The queue is full, or too many images are being fetched; see Retry-After.",
        },
        503: {"model": Problem, "description": "The model behind the reward does not answer; see Retry-After."},
    }

    most = f"{limits.candidates} candidates, {limits.images} images of {limits.pixels} pixels, {limits.body} bytes"
    about = f"Score candidate answers to a question about an image. At most {most}."

    bearer = [] if token is None else [Security(HTTPBearer(auto_error=False))]  # for the page; `Guard` looks at it

    @app.post("/score", response_model=Scores, responses=problems, description=about, dependencies=bearer)
    async def score(ask: Ask, request: Request) -> Any:
        """Score candidate answers to a question about an image."""
        began = time.monotonic()
        name = uuid.uuid4().hex
        try:
            async with client_of(request.receive) as gone:
                with Images(None, Path(folder.name), urls=allow_urls, max_pixels=limits.pixels) as images:
                    if len(ask.candidates) <= limits.candidates:  # else waiting would help nothing
                        batcher.check_room(len(ask.candidates))
                    asked = await intake.checked(ask.model_dump(exclude_none=True), images, name, gone)
                    if asked.urls and not gone.done():
                        asked = await intake.fetched(asked, images)
                    found = await batcher.score(asked.candidates, gone)
        except BadAsk as problem:
            return refused(422, str(problem))
        except Full as problem:
            return refused(429, str(problem), {"Retry-After": str(problem.seconds)})
        except (EngineDied, UserError) as problem:  # the second: the key or the model that it is asked for is refused
            again = {"Retry-After": str(AWAY_S)} if isinstance(problem, EngineAway) else {}
            return refused(503, f"{GONE}: {problem}", again)
        except Left:
            return refused(499, "the client has gone")  # for the metrics alone
        shown = [one_score(s) for s in found]
        for s in shown:
            candidates.labels("unscored" if s.score is None else "scored").inc()
        requests.labels("200").inc()
        seconds.observe(time.monotonic() - began)
        return Scores(id=ask.id, scores=shown)

    @app.get("/health", responses={503: problems[503]})
    async def health() -> Any:
        """200 while the server can score, as far as it knows: where the model did not answer, 503 for 10 s."""
        if batcher.in_trouble():
            return JSONResponse({"detail": GONE}, 503)
        return {"status": "ok", "waiting": batcher.waiting}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """For Prometheus."""
        return PlainTextResponse(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    app.add_middleware(Guard, limits=limits, token=token, refused=lambda status: requests.labels(str(status)).inc())
    return app


def one_score(score: Score) -> OneScore:
    """As JSON, which has no NaN and no infinity."""
    parts = {n: v if v is not None and math.isfinite(v) else None for n, v in score.parts.items()}
    if score.value is not None and not math.isfinite(score.value):
        return OneScore(score=None, parts=parts, reason=f"the score is {score.value}")
    reason = score.reason.encode("utf-8", "replace").decode()
    return OneScore(score=score.value, parts=parts, reason=reason)


def serve(
    reward: Reward, host: str, port: int, limits: Limits, token_env: str | None = None, allow_urls: bool = False
) -> None:
    """Serve until SIGINT or SIGTERM; then refuse what is new and finish what was taken in. Raises EngineDied where the
    model is gone for good, so that whoever watches over the process starts it again."""
    import uvicorn

    deaths: list[EngineDied] = []

    def died(error: EngineDied) -> None:
        deaths.append(error)
        server.should_exit = True

    token = os.environ.get(token_env) if token_env else None
    app = create_app(reward, limits, token, allow_urls, died)
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="info"))
    with suppress(KeyboardInterrupt):  # the signal, raised again after the stop
        server.run()
    if deaths:
        raise deaths[0]
