"""The process that vLLM lives in: `align.engines.vllm_worker FD ORDER`, started by `vllm.py`.

In: one JSON line a shard of requests, on the socket FD. Out: one JSON line of replies. A shard's answers are a
function of its requests: caches are emptied before it, and no request runs before all of its wave are there, so that
the batches are always the same ones. Requests are added in order of their image, so that prefix and encoder caches
serve the questions of one image; an image is known to vLLM by its content hash. Sample i draws with seed + i.

On a CPU the whole engine runs in this process, step by step; on GPUs vLLM spawns its core and workers below it.
"""

import math
import os
import socket
import sys
import time
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter

from align.engine import VLLM, Reply, Request
from align.engines.images import digest
from align.engines.served import cpu_build
from align.images import BadImage, open_image

if TYPE_CHECKING:
    from PIL import Image
    from vllm import LLM, RequestOutput, SamplingParams

IN_FLIGHT = 512
"""Requests handed to vLLM before it is waited for (a wave): their pixels lie in memory."""


class Order(BaseModel):
    """What the worker is to load."""

    folder: str
    config: VLLM


class Word(BaseModel):
    """What the worker says: first whether it is ready (`refused` is empty) and as what the model was loaded, then the
    replies to each shard."""

    refused: str = ""
    dtype: str = ""
    device: str = ""
    died: str = ""
    replies: list[Reply] | None = None


REQUESTS = TypeAdapter(list[Request])
WORD = TypeAdapter(Word)


def main(descriptor: str, order: str) -> None:
    """Load the model, then answer until the other end closes the line."""
    with socket.socket(fileno=int(descriptor)) as end:
        line = end.makefile("rwb")

    def say(word: Word) -> None:
        line.write(word.model_dump_json().encode() + b"\n")
        line.flush()

    try:
        llm = load(Order.model_validate_json(order))
        worker = Worker(llm)
    except Exception as error:  # whatever vLLM raises, the user can only change the config or the machine
        say(Word(refused=cause(error)))
        raise
    loaded = llm.llm_engine.vllm_config
    say(Word(dtype=str(loaded.model_config.dtype), device=str(loaded.device_config.device_type)))
    from vllm.v1.engine.exceptions import EngineDeadError

    for asked in line:
        try:
            say(Word(replies=worker.generate(REQUESTS.validate_json(asked))))
        except EngineDeadError as error:
            say(Word(died=cause(error)))
            raise


def load(order: Order) -> "LLM":
    """vLLM with the model of the order."""
    config = order.config
    alone = cpu_build() and config.tensor_parallel_size == 1
    if alone:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    return LLM(
        order.folder,
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        gpu_memory_utilization=config.gpu_memory_utilization,
        tensor_parallel_size=config.tensor_parallel_size,
        distributed_executor_backend="uni" if alone else None,
        enforce_eager=config.enforce_eager,
        enable_prefix_caching=True,
        enable_chunked_prefill=not cpu_build(),
        trust_remote_code=False,
    )


class Worker:
    """vLLM, asked shard by shard."""

    def __init__(self, llm: "LLM") -> None:
        self._llm = llm
        self._last: tuple[str, Image.Image, str] | None = None

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in their order. Raises EngineDeadError."""
        self._llm.reset_prefix_cache()
        self._llm.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()
        replies: dict[int, Reply] = {}
        order = iter(sorted(range(len(requests)), key=lambda i: requests[i].images))
        while wave := list(islice(order, IN_FLIGHT)):
            self._llm.sleep(level=0, mode="keep")
            added = [i for i in wave if self._add(requests[i], replies, i)]
            self._await_grammars()
            self._llm.wake_up(tags=["scheduling"])
            outputs: list[RequestOutput] = self._llm.wait_for_completion(use_tqdm=False)
            for i, output in zip(added, outputs, strict=True):  # vLLM returns them in the order they were added
                replies[i] = read_output(requests[i], output)
        return [replies[i] for i in range(len(requests))]

    def _await_grammars(self) -> None:
        """vLLM compiles schemas in threads and begins with the requests whose schema is ready."""
        core = getattr(self._llm.llm_engine.engine_core, "engine_core", None)  # in another process where it is None
        for request in core.scheduler.requests.values() if core is not None else ():
            schema = request.structured_output_request
            while schema is not None and not schema.is_grammar_ready:
                time.sleep(0.001)

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
            replies[i] = Reply(request.id, error=f"{type(error).__name__}: {cause(error)}")
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
    """The candidates for an answer's first token that is not white space; its first where all are. A token without
    text is a part of a character."""
    steps = one.logprobs or [{}]
    for step, token in zip(steps, one.token_ids, strict=False):
        if token in step and not (step[token].decoded_token or "").isspace():
            return dict(step)
    return dict(steps[0])


def cause(error: BaseException) -> str:
    """One line that says what went wrong: pydantic puts it on the second, behind `Value error,`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = next((line for line in lines if line.startswith("Value error, ")), None)
    line = named.removeprefix("Value error, ") if named else (lines or [type(error).__name__])[0]
    return line.partition(" [type=")[0][:400]


if __name__ == "__main__":
    main(*sys.argv[1:])
