"""Answers from a vLLM engine in this process (its core and workers are children that it spawns).

Requests are added in order of their image, so that prefix and encoder caches serve the questions of one image; an
image is known to vLLM by its content hash. A request's draws depend on its own seed: sample i draws with seed + i.
Batch composition still moves logits in their last digits, and with them, rarely, a token.
"""

import gc
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from align.engine import VLLM, EngineDied, Reply, Request
from align.engines.images import digest
from align.engines.served import chunked_prefill, engine_environment, vllm_folder
from align.engines.watch import no_orphans
from align.errors import UserError
from align.images import BadImage, open_image

if TYPE_CHECKING:
    from PIL import Image
    from vllm import LLM, RequestOutput, SamplingParams

IN_FLIGHT = 512
"""Requests handed to vLLM before it is waited for: their pixels lie in memory."""


@contextmanager
def open_vllm(config: VLLM) -> Iterator["VLLMEngine"]:
    """The engine, up until the block ends. Raises UserError where vLLM is missing or cannot load the model."""
    folder = vllm_folder(config.model)
    with _environment(), no_orphans():
        from vllm import LLM

        try:
            llm = LLM(
                str(folder),
                dtype=config.dtype,
                max_model_len=config.max_model_len,
                gpu_memory_utilization=config.gpu_memory_utilization,
                tensor_parallel_size=config.tensor_parallel_size,
                enforce_eager=config.enforce_eager,
                enable_prefix_caching=True,
                enable_chunked_prefill=chunked_prefill(),
                trust_remote_code=False,
            )
        except Exception as error:  # whatever vLLM raises, the user can only change the config or the machine
            raise UserError(f"{config.model}: vLLM cannot load this model: {_cause(error)}") from error
        try:
            yield VLLMEngine(llm)
        finally:
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()


@contextmanager
def _environment() -> Iterator[None]:
    added = {name: value for name, value in engine_environment().items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


class VLLMEngine:
    """See `align.engine.Engine`."""

    def __init__(self, llm: "LLM") -> None:
        self._llm = llm
        self._last: tuple[str, Image.Image, str] | None = None

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """See `align.engine.Engine.generate`."""
        from vllm.v1.engine.exceptions import EngineDeadError

        replies: dict[int, Reply] = {}
        order = iter(sorted(range(len(requests)), key=lambda i: requests[i].images))
        try:
            while wave := list(islice(order, IN_FLIGHT)):
                added = [i for i in wave if self._add(requests[i], replies, i)]
                outputs: list[RequestOutput] = self._llm.wait_for_completion(use_tqdm=False)
                for i, output in zip(added, outputs, strict=True):  # vLLM returns them in the order they were added
                    replies[i] = read_output(requests[i], output)
        except EngineDeadError as error:
            raise EngineDied(f"vLLM's engine died: {_cause(error)}") from None
        return [replies[i] for i in range(len(requests))]

    def _add(self, request: Request, replies: dict[int, Reply], i: int) -> bool:
        """Hand one request to vLLM; False, with an error reply, where it cannot be asked."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            self._llm.enqueue_chat([self._chat(request)], [_params(request)], use_tqdm=False)
        except EngineDeadError:
            raise
        except BadImage as error:
            replies[i] = Reply(request.id, error=f"image: {error}")
        except Exception as error:  # too long a prompt, a template that refuses, a schema that is none
            replies[i] = Reply(request.id, error=f"{type(error).__name__}: {_cause(error)}")
        else:
            return True
        return False

    def _chat(self, request: Request) -> list[Any]:
        images = [self._image(path) for path in request.images]
        chat: list[Any] = []
        for message in request.messages:
            content: str | list[dict[str, Any]] = message.content
            if message.role == "user" and images:
                content = [{"type": "image_pil", "image_pil": image, "uuid": uuid} for image, uuid in images]
                content.append({"type": "text", "text": message.content})
                images = []
            chat.append({"role": message.role, "content": content})
        return chat

    def _image(self, path: str) -> "tuple[Image.Image, str]":
        if self._last is None or self._last[0] != path:
            self._last = (path, open_image(path), digest(path))
        return self._last[1], self._last[2]


def _params(request: Request) -> "SamplingParams":
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    sampling = request.sampling
    schema = request.json_schema
    return SamplingParams(
        n=request.n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=request.seed,
        logprobs=request.top_logprobs or None,
        structured_outputs=StructuredOutputsParams(json=schema) if schema is not None else None,
    )


def read_output(request: Request, output: "RequestOutput") -> Reply:
    """vLLM's output of one request as a Reply."""
    if len(output.outputs) != request.n or any(o.finish_reason not in ("stop", "length") for o in output.outputs):
        reasons = sorted({str(o.finish_reason) for o in output.outputs})
        return Reply(request.id, error=f"vLLM gave {len(output.outputs)} of {request.n} answers ({', '.join(reasons)})")
    logprobs: list[dict[str, float]] = []
    if request.top_logprobs:
        for one in output.outputs:
            found: dict[str, float] = {}
            for entry in _first(one).values():
                token = entry.decoded_token or ""
                if (entry.rank is None or entry.rank <= request.top_logprobs) and math.isfinite(entry.logprob):
                    found[token] = max(entry.logprob, found.get(token, entry.logprob))
            logprobs.append(found)
    return Reply(request.id, [o.text for o in output.outputs], [str(o.finish_reason) for o in output.outputs], logprobs)


def _first(one: Any) -> dict[int, Any]:
    """The candidates for an answer's first token that is not white space; its first where all are."""
    steps = one.logprobs or [{}]
    for step, token in zip(steps, one.token_ids, strict=False):
        if token in step and (step[token].decoded_token or "").strip():
            return dict(step)
    return dict(steps[0])


def _cause(error: BaseException) -> str:
    """One line that says what went wrong: pydantic puts it on the second, behind `Value error,`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = next((line for line in lines if line.startswith("Value error, ")), None)
    line = named.removeprefix("Value error, ") if named else (lines or [type(error).__name__])[0]
    return line.partition(" [type=")[0][:400]
