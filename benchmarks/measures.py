"""Seconds, peaks of memory, gradients and floating point operations."""

import gc
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Clock(TrainerCallback):
    """Seconds by step, the first step's loss and gradient norm, the last loss, and the first step's gradients."""

    def __init__(self, gradients: Path | None, device: torch.device) -> None:
        self.gradients = gradients
        self.device = device
        self.first: dict[str, float] = {}
        self.last = 0.0
        self._at: list[float] = []

    @property
    def seconds(self) -> list[float]:
        return [b - a for a, b in zip(self._at, self._at[1:], strict=False)]

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._at.append(_now(self.device))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._at.append(_now(self.device))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self.gradients is not None and state.global_step == 0:
            from safetensors.torch import save_file

            named = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
            save_file(named, self.gradients)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" in logs:
            self.last = float(logs["loss"])
            if not self.first:
                self.first = {"loss": self.last, "grad_norm": float(logs["grad_norm"])}


class Peak:
    """The peak of memory since it was made, above what was in use then: of the GPU, or of the process where there is
    none."""

    def __init__(self, device: torch.device) -> None:
        gc.collect()
        self._cuda = device.type == "cuda"
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device) / 2**20
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the kernel's mark of the peak starts anew
            self._before = _status("VmRSS")
        except OSError:
            self._before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
                2**20 if sys.platform == "darwin" else 1024
            )

    def mebibytes(self) -> float:
        if self._cuda:
            return torch.cuda.max_memory_allocated() / 2**20 - self._before
        try:
            return _status("VmHWM") - self._before
        except OSError:
            return _most() - self._before


def _most() -> float:
    """The process's peak ever, where the kernel gives no mark that can be reset; macOS counts bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def counted(work: Callable[[], object]) -> float:
    """The floating point operations of a call, forward and backward, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def matmul_peak(device: str = "cuda", size: int = 8192) -> float:
    """TFLOP/s of the fastest of twenty square bfloat16 matrix products: what this machine reaches at best."""
    where = torch.device(device)
    a = torch.randn(size, size, dtype=torch.bfloat16, device=where)
    times = []
    for _ in range(20):
        started = _now(where)
        torch.mm(a, a)
        times.append(_now(where) - started)
    return 2 * size**3 / min(times) / 1e12
