"""Figures into docs/benchmarks.md, its plots, and the raw figures beside it.

In: what each way of a workload measured. Out: a JSON that keeps the last figures of every workload, so that one alone
can be measured again; and the page, written anew from all of them.
"""

import json
from pathlib import Path
from statistics import median
from typing import Any

from align.artifact import write_json
from benchmarks.workloads import BATCHES, WORKLOADS

WAYS = ("trl", "tuned", "tree")
COLOURS = {"trl": "#999999", "tuned": "#5b8db8", "tree": "#2a9d4a"}
NAMES = {"trl": "TRL", "tuned": "TRL tuned", "tree": "trees"}


class Page:
    """The page `name`.md in a folder, with `name`.json and SVGs beside it."""

    def __init__(self, folder: Path, name: str, gpu: bool = False) -> None:
        self.folder, self.name, self.gpu = folder, name, gpu
        self._file = folder / f"{name}.json"
        self.figures: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def add(self, name: str, found: dict[str, Any], taken: dict[str, Any]) -> None:
        """Keep a workload's figures and write everything anew."""
        kept = {way: {k: v for k, v in one.items() if k != "equal"} for way, one in found.items()}
        self.figures[name] = {"taken": taken, "ways": kept}
        write_json(self._file, {n: self.figures[n] for n in WORKLOADS if n in self.figures})
        timed = [n for n in WORKLOADS if n in self.figures and not WORKLOADS[n].peak]
        peaks = [n for n in WORKLOADS if n in self.figures and WORKLOADS[n].peak]
        text = [self._head(), _TIMES, *map(self.row, timed)]
        if timed:
            self._plot("speed", speed_plot({n: self._ratios(n) for n in timed}))
            text.append(f"\n![How many times faster than TRL]({self.name}-speed.svg)")
        if peaks:
            text += ["", _PEAKS, *map(self.row, peaks)]
            self._plot("memory", memory_plot(self._peaks()))
            text.append(f"\n![Peak memory by batch size]({self.name}-memory.svg)")
        (self.folder / f"{self.name}.md").write_text("\n".join(text) + "\n", encoding="utf-8")

    def row(self, name: str) -> str:
        """A line of the tables."""
        work, found = WORKLOADS[name], self.figures[name]
        ways = found["ways"]
        apart = f"{found['taken']['numbers apart']:.0e} / {found['taken']['gradients apart']:.0e}"
        if work.peak:
            peaks = [ways[way]["peak"] for way in WAYS]
            ratios = " / ".join(f"{p / max(peaks[2], 1):.1f}x" for p in peaks[:2])
            cells = [name, work.about, *(f"{p:,.0f}" for p in peaks), ratios, f"{work.target[0]:g}x", apart]
        else:
            times = [_step(ways[way]) for way in WAYS]
            reached = " / ".join(f"{r:.1f}x" for r in self._ratios(name))
            target = " / ".join(f"{t:g}x" for t in work.target)
            cells = [name, work.about, *(f"{t:.4g}" for t in times), reached, target, self._extra(ways["tree"]), apart]
        return f"| {' | '.join(cells)} |"

    def _extra(self, tree: dict[str, Any]) -> str:
        if not self.gpu or "tflop" not in tree:
            return f"{tree['preparation']:.1f} s"
        rate = tree["tflop"] / _step(tree)
        best = max(one["taken"].get("matmul_peak", 0.0) for one in self.figures.values())
        share = f", {100 * rate / best:.0f} % of {best:.0f}" if best else ""
        return f"{tree['preparation']:.1f} s; {rate:.0f} TFLOP/s{share}"

    def _ratios(self, name: str) -> tuple[float, float]:
        trl, tuned, tree = (_step(self.figures[name]["ways"][way]) for way in WAYS)
        return trl / tree, tuned / tree

    def _peaks(self) -> dict[str, list[tuple[int, float]]]:
        """By way: batch size and MiB."""
        points: dict[str, list[tuple[int, float]]] = {way: [] for way in WAYS}
        for size in BATCHES:
            if f"W8-{size}" in self.figures:
                for way in WAYS:
                    points[way].append((size, self.figures[f"W8-{size}"]["ways"][way]["peak"]))
        return points

    def _plot(self, what: str, svg: str) -> None:
        (self.folder / f"{self.name}-{what}.svg").write_text(svg, encoding="utf-8")

    def _head(self) -> str:
        taken = [one["taken"] for one in self.figures.values()]
        last = max(taken, key=lambda t: t["date"])
        days = sorted({t["date"] for t in taken})
        when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        made = "make bench-gpu" if self.gpu else "make bench"
        models = (
            "models of the published sizes with random weights in bfloat16 and a float32 adapter"
            if self.gpu
            else "small random models in float32"
        )
        loads = sorted(t["load"] for t in taken)
        tolerance = "5e-2" if self.gpu else "1e-5 (each adapter tensor's gradient to 1e-4 of its largest number)"
        return f"""# Benchmarks{" on a GPU" if self.gpu else ""}

Made by `{made}` ({when}): {models}, on {last["machine"]}, {last["threads"]} threads, torch {last["torch"]},
transformers {last["transformers"]}, trl {last["trl"]}; the machine's load average lay between {loads[0]:g} and
{loads[-1]:g}. Every way runs in a process of its own, one after the other, on the same rows. First loss, gradient norm
and gradients (W5: every reward, W7: the features) must be equal in all three to {tolerance}, or there is no row;
*apart* is the largest difference seen. The figures as measured are in `{self.name}.json`.

- *TRL* is TRL as it comes; for Mllama, where it crashes, with this project's collator. *TRL tuned* has checkpointing
  off, each image processed once and kept in memory, and only labelled positions at the head. In W5 both are batched
  transformers, one batch an image, as its processor makes it and with the image processed once; W7 has TRL's own
  loading in both, since no real data set fits into memory.
- Seconds are the median step after the first; in W6 all seconds of SFT and DPO together, 3 epochs each, from rows on
  disk to the last step, with encoding, tower and reference; in W7 seconds an image on one thread, the cache read from
  disk. *Preparation* over trees (encoding, the tower once an image, the reference) is apart but in W6, which leaves out
  what the stages do besides: digests of files and of the language model, and the proof.
- Batches hold whole images, in all three ways. The stages' batches do from `batch_size` 8 x rows an image up, see
  [training.md](training.md); at a `batch_size` of 8 they mix eight images, and trees save what one pair or row can.
- On AMD's processors with AVX-512 trees multiply by frozen weights through oneDNN, for torch's MKL keeps to AVX2 there;
  the other ways run as torch has them. What that is worth: [experiments.md](experiments.md).
- Adapters are as a training leaves them, so that every tensor has a gradient. DPO begins at its reference.
- What is below its target, and why: [experiments.md](experiments.md), "Where a step over trees spends its time". No GPU
  has been at hand: `make bench-gpu` is there, its page is not.
"""


_TIMES = """| | workload | TRL, s | tuned, s | trees, s | reached | target | preparation | apart |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""
_PEAKS = """Peak memory above the loaded model in one step of DPO, MiB:

| | workload | TRL | tuned | trees | ratio | target | apart |
| --- | --- | --- | --- | --- | --- | --- | --- |"""


def _step(found: dict[str, Any]) -> float:
    seconds = found["seconds"]
    return float(median(seconds[1:] or seconds))


def _svg(width: int, height: int, parts: list[str]) -> str:
    style = "font:12px sans-serif;fill:#333"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    ground = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, ground, f'<g style="{style}">', *parts, "</g>", "</svg>"]) + "\n"


def _legend(ways: tuple[str, ...], names: dict[str, str], x: int) -> list[str]:
    return [
        f'<rect x="{x + 110 * i}" y="8" width="12" height="12" fill="{COLOURS[way]}"/>'
        f'<text x="{x + 110 * i + 17}" y="18">{names[way]}</text>'
        for i, way in enumerate(ways)
    ]


def speed_plot(ratios: dict[str, tuple[float, float]]) -> str:
    """Bars: how many times faster than TRL as it comes and tuned, by workload; a tick where the target is."""
    left, wide, high = 210, 460, 44
    scaled = [n for n in ratios if not n.startswith("W7")] or list(ratios)  # W7's bars would dwarf the others
    longest = max(value for n in scaled for value in (*ratios[n], *WORKLOADS[n].target))
    parts = _legend(("trl", "tuned"), {"trl": "against TRL", "tuned": "against tuned"}, left)
    for row, (name, pair) in enumerate(ratios.items()):
        top = 32 + row * high
        parts.append(
            f'<text x="{left - 8}" y="{top + 21}" text-anchor="end">{name} {WORKLOADS[name].about[:26]}</text>'
        )
        for n, (way, ratio) in enumerate(zip(("trl", "tuned"), pair, strict=True)):
            length = min(wide, wide * ratio / longest)
            y = top + 16 * n
            parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="14" fill="{COLOURS[way]}"/>')
            parts.append(f'<text x="{left + length + 5:.1f}" y="{y + 12}">{ratio:.1f}x</text>')
            at = left + min(wide, wide * WORKLOADS[name].target[n] / longest)
            parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y - 1}" y2="{y + 15}" stroke="#c0392b"/>')
    return _svg(left + wide + 60, 40 + high * len(ratios), parts)


def memory_plot(peaks: dict[str, list[tuple[int, float]]]) -> str:
    """Lines: MiB above the model by pairs a step."""
    left, top, wide, high = 70, 36, 480, 260
    most = max((p for points in peaks.values() for _, p in points), default=1.0)
    largest = max((size for points in peaks.values() for size, _ in points), default=1)
    parts = _legend(WAYS, NAMES, left)

    def at(size: float, peak: float) -> str:
        return f"{left + wide * size / largest:.1f},{top + high * (1 - peak / most):.1f}"

    for share in (0, 0.25, 0.5, 0.75, 1):
        y = top + high * (1 - share)
        parts.append(f'<line x1="{left}" x2="{left + wide}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{share * most:,.0f}</text>')
    for size in BATCHES:
        x = left + wide * size / largest
        parts.append(f'<text x="{x}" y="{top + high + 16}" text-anchor="middle">{size}</text>')
    for way, points in peaks.items():
        line = " ".join(at(*point) for point in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[way]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{COLOURS[way]}"/>' for x, y in
                  (at(*point).split(",") for point in points)]  # fmt: skip
    parts.append(f'<text x="{left + wide / 2}" y="{top + high + 34}" text-anchor="middle">pairs a step; MiB</text>')
    return _svg(left + wide + 30, top + high + 44, parts)
