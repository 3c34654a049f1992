"""Answers from vLLM in a process of the stage's own (`vllm_worker.py`), asked over a socket pair.

vLLM changes the process that it lives in (threads, random state, torch itself), keeps its memory, and can be ended by
the system with it; so it lives in a child that is gone when the block ends. The child runs under `supervise.py`: it
ends with this process however that ends. Its output goes where this process's goes, to the stage's log.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from align.engine import VLLM, EngineDied, Reply, Request
from align.engines.child import python_module
from align.engines.served import cpu_build, engine_environment, vllm_folder, weights_bytes
from align.engines.vllm_worker import REQUESTS, WORD, Order, Word
from align.errors import UserError
from align.loaded import note

SMALL = 100_000_000
"""Bytes of weights under which one thread is the fastest on a CPU."""


@contextmanager
def open_vllm(config: VLLM) -> Iterator["VLLMEngine"]:
    """The engine, up until the block ends. Raises UserError where vLLM is missing or cannot load the model."""
    engine = VLLMEngine(config, vllm_folder(config.model))
    try:
        engine.wait_until_ready()
        yield engine
    finally:
        engine.stop()


class VLLMEngine:
    """See `align.engine.Engine`."""

    def __init__(self, config: VLLM, folder: Path) -> None:
        self._model = config.model
        self._line, theirs = socket.socketpair()
        self._words = self._line.makefile("rb")
        order = Order(folder=str(folder), config=config).model_dump_json()
        command = python_module("align.engines.vllm_worker", str(theirs.fileno()), order)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("supervise.py")), *command],
                stdin=subprocess.PIPE,
                start_new_session=True,
                pass_fds=[theirs.fileno()],
                env={**_environment(folder), **os.environ},
            )

    @property
    def pid(self) -> int:
        """The supervisor's; vLLM is its child."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Return when the model is loaded. Raises UserError when it cannot be."""
        line = self._words.readline()
        word = WORD.validate_json(line) if line else Word(refused=f"its process {self._end()}")
        if word.refused:
            raise UserError(f"{self._model}: vLLM cannot load this model: {word.refused}")
        note(self._model, word.dtype, word.device)

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """See `align.engine.Engine.generate`."""
        try:
            self._line.sendall(REQUESTS.dump_json(list(requests)) + b"\n")
            word = WORD.validate_json(line) if (line := self._words.readline()) else Word()
        except OSError:
            word = Word()
        if word.replies is None:
            raise EngineDied(f"vLLM's engine died: {word.died or f'its process {self._end()}'}")
        return word.replies

    def stop(self) -> None:
        """End vLLM and everything it started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._words.close()
        self._line.close()

    def _end(self) -> str:
        code = self._process.wait()
        if code <= 128:
            return f"ended with exit code {code}"
        name = signal.Signals(code - 128).name
        return f"was killed ({name}{': out of memory?' if name == 'SIGKILL' else ''})"


def _environment(folder: Path) -> dict[str, str]:
    """For the child, where the user has not set it. Threads are set before torch is there: without a number vLLM takes
    one, whatever the size of the model."""
    found = engine_environment(folder)
    if cpu_build():
        threads = 1 if weights_bytes(folder) < SMALL else len(os.sched_getaffinity(0))
        found["OMP_NUM_THREADS"] = str(threads)
    return found
