"""`python -m benchmarks.filters [ROWS]`: the filters that hold rows against each other, on synthetic rows.

Half of ROWS, then ROWS (a million if left out), each in a process of its own: rows a second, peak resident memory, and
how the time grows when the rows double. A tenth of the questions are asked again word for word, another tenth nearly.
Prints a table and JSON; 99.9 % of the planted repeats, and nothing else, must be set aside, or it ends with an error.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from align.artifact import Out, Store, rows
from align.records import QA, Message, row_id
from data_gen.filter import Filter

ROWS_AN_IMAGE = 20
FILTERS = ("format", "length", "language", "repetition", "personal_data", "text_duplicates")
NOUNS = ("bar", "line", "column", "label", "row", "word", "price", "total", "color", "corner", "title", "figure")


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        with tempfile.TemporaryDirectory(dir=sys.argv[3]) as folder:
            print(json.dumps(measure(int(sys.argv[2]), Path(folder))))
        return
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    found = []
    for size in (total // 2, total):
        command = [sys.executable, "-m", "benchmarks.filters", "one", str(size), tempfile.gettempdir()]
        found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    half, whole = found
    print("| rows | repeats | found | seconds | CPU s | rows/s | peak MB | MB before |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    counts, times = "| {rows:,} | {planted:,} | {found:,} |", " {seconds:.0f} | {cpu:.0f} | {rate:,.0f} |"
    for each in found:
        print((counts + times + " {peak_mb:.0f} | {start_mb:.0f} |").format(**each))
    seconds, cpu = (whole[name] / half[name] for name in ("seconds", "cpu"))
    print(f"twice the rows took {seconds:.2f} times the time, {cpu:.2f} times the CPU time")
    print(json.dumps(found))


def measure(size: int, folder: Path) -> dict[str, Any]:
    """Write the rows, filter them, and check that what was planted was found."""
    store = Store(folder)
    source = Out(store.root / "artifacts" / "generate-1", store)
    source.write("questions", QA, synthetic(size))
    start_mb = _peak_mb()
    started, cpu = time.perf_counter(), time.process_time()
    stage = Filter.model_validate(
        {"input": str(source.path / "questions"), "filters": [{"filter": name} for name in FILTERS]}
    )
    out = Out(store.root / "artifacts" / "filter-1", store)
    stage.run(out)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    kept = sum(1 for _ in rows(out.path / "kept", QA))
    planted = sum(1 for n in range(size) if n % 10 in (8, 9))
    found = out.reasons["text_duplicates"]
    if not 0.999 * planted <= found <= planted or out.reasons.total() != found or kept != size - found:
        raise RuntimeError(f"{planted} repeats were planted, {dict(out.reasons)} set aside, {kept} of {size} kept")
    times = {"seconds": seconds, "cpu": cpu, "rate": size / seconds}
    return {"rows": size, "planted": planted, "found": found, **times, "peak_mb": _peak_mb(), "start_mb": start_mb}


def synthetic(size: int) -> Iterator[QA]:
    """`size` rows: of every ten about an image the ninth repeats the first but for case, the tenth the second but for a
    word at its end."""
    for block in range(0, size, 10):
        rng = Random(block)
        image = row_id("image", block // ROWS_AN_IMAGE)
        made: list[tuple[str, str]] = []
        for n in range(8):
            words = " ".join(rng.sample(NOUNS, 6))
            made.append((f"What does the {words} show beside the {rng.choice(NOUNS)} of item {block + n}?", words))
        made += [(made[0][0].upper(), made[0][1]), (made[1][0].replace("What does", "Now what does"), made[1][1])]
        for n, (question, answer) in enumerate(made[: size - block]):
            yield QA(
                id=row_id(block, n),
                images=[str(image)],
                prompt=[Message(role="user", content=question)],
                completion=[Message(role="assistant", content=answer)],
                image_id=image,
                kind="read",
                split="train",
            )


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
