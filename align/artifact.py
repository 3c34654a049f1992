"""A stage's folder, from the first shard to the last rename.

A store holds `artifacts/<stage>-<key>/` and `blobs/` (images by content hash). A running stage works in
`<key>.partial/` under a lock; `artifact.json` is written last and one rename makes the result visible, so a folder
without `.partial` is complete. What was done before an interruption stays in `.partial` and is continued.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from align.digests import Digests
from align.errors import UserError
from align.progress import progress
from align.records import Dropped, Row, read_parquet, write_parquet

R = TypeVar("R", bound=Row)
Q = TypeVar("Q", bound=Row)
PART_ROWS = 8192


class Store:
    """A folder of artifacts and blobs."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()  # as `rows` sees it: an image's path says whether it is one of the store's

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    def artifact(self, stage: str, key: str) -> Path:
        """Where the artifact of this stage and key lies or will lie."""
        return self.root / "artifacts" / f"{stage}-{key[:16]}"

    def add_blob(self, data: bytes, suffix: str) -> Path:
        """Keep bytes under their sha256; a second time is free. Returns the path."""
        name = hashlib.sha256(data).hexdigest() + suffix
        path = self.blobs / name[:2] / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{name}.{os.getpid()}.tmp")
            partial.write_bytes(data)
            partial.replace(path)
        return path

    def digest(self, path: Path) -> str:
        """sha256 of a file, or of a folder's relative names and contents; remembered while size and times hold."""
        return self.digests([path])[0]

    def digests(self, paths: Sequence[Path]) -> list[str]:
        """The same of each of many."""
        return Digests(self.root).of_all(paths)


@dataclass(frozen=True)
class Artifact:
    """A finished stage's folder."""

    path: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """`artifact.json`: stage, version, config, key, seed, counts, seconds, versions of libraries."""
        loaded: dict[str, Any] = json.loads((self.path / "artifact.json").read_text())
        return loaded

    @property
    def metrics(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.path / "metrics.json").read_text())
        return loaded

    @property
    def complete(self) -> bool:
        return (self.path / "artifact.json").is_file()

    def dropped(self) -> Iterator[Dropped]:
        """The rows set aside, with their reasons."""
        return rows(self.path / "dropped", Dropped)


def artifact_at(folder: Path) -> Artifact | None:
    """The finished stage's folder that `folder` is or links to; None for any other, even with an `artifact.json`."""
    artifact = Artifact(folder.resolve())
    try:
        manifest = artifact.manifest
    except (OSError, ValueError):
        return None
    return artifact if isinstance(manifest, dict) and {"stage", "key"} <= manifest.keys() else None


def rows(port: str | Path, row_type: type[R]) -> Iterator[R]:
    """Stream the rows of a resolved reference (an artifact's port folder); images become absolute paths."""
    port = Path(port)
    return read_parquet(sorted(port.glob("part-*.parquet")), row_type, _blobs_of(port))


def count_rows(port: str | Path) -> int:
    """How many rows a port holds, from parquet footers alone."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(p).num_rows for p in Path(port).glob("part-*.parquet"))


def _blobs_of(port: Path) -> Path:
    return port.resolve().parent.parent.parent / "blobs"


@dataclass
class Batch(Generic[Q]):
    """What became of one shard of rows: good rows by port, and the rows set aside."""

    rows: dict[str, list[Q]] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)


class Out:
    """The folder that a running stage fills."""

    def __init__(self, path: Path, store: Store) -> None:
        self.path = path
        self.store = store
        self.rows_in = 0
        self.rows_out: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._parts_dropped = 0
        self._discarded = ["shards"]

    def folder(self, port: str) -> Path:
        """The folder of a `folder` or `model` port, or of anything the stage keeps while it works."""
        path = self.path / port
        path.mkdir(parents=True, exist_ok=True)
        return path

    def clear(self) -> None:
        """Begin anew."""
        shutil.rmtree(self.path)
        self.path.mkdir()

    def discard(self, *folders: str) -> None:
        """Name folders that a stopped stage continues from and a finished one has no use for: they go when the result
        is visible, for one removed before and cut short by a kill would be taken for whole."""
        self._discarded += folders

    def remove_discarded(self, final: Path) -> None:
        """Remove what was named so, from where the folder lies now."""
        for name in self._discarded:
            shutil.rmtree(final / name, ignore_errors=True)

    def write(self, port: str, row_type: type[R], found: Iterable[R]) -> int:
        """Write all rows of a port, streaming in parts of a fixed size. Returns how many."""
        total, stream = 0, iter(found)
        for part in range(10**9):
            chunk = list(islice(stream, PART_ROWS))
            if not chunk and part:
                break
            total += write_parquet(self.path / port / f"part-{part:05d}.parquet", row_type, chunk, self.store.blobs)
        self.rows_out[port] += total
        return total

    def drop(self, found: Iterable[Dropped]) -> None:
        """Write the rows set aside, streaming in parts of a fixed size, and count their reasons; called again, it adds
        to them. Not beside `map_rows`, which writes its own."""
        stream = iter(found)
        while (chunk := list(islice(stream, PART_ROWS))) or not self._parts_dropped:
            self.reasons.update(d.reason for d in chunk)
            write_parquet(self.path / "dropped" / f"part-{self._parts_dropped:05d}.parquet", Dropped, chunk)
            self._parts_dropped += 1

    def map_rows(
        self,
        source: Iterable[R],
        total: int,
        work: Callable[[list[R]], Batch[Any]],
        ports: dict[str, type[Row]],
        *,
        shard: int,
        label: str,
    ) -> None:
        """Apply `work` to shards of rows, keeping each shard's result at once; shards done before a stop are skipped.

        `work` must give the same rows for a shard whatever came before it: seed by row id (`records.row_seed`).
        Counts what came in, what went out by port and what was dropped by reason. A continued stage keeps the size of
        shard that it began with.
        """
        if shard < 1:
            raise ValueError(f"shard: at least 1 is needed, not {shard}")
        kept = self.path / "shards" / "size.json"
        if not kept.exists():
            write_json(kept, shard)
        shard = json.loads(kept.read_text())
        stream = iter(source)
        with progress(total, label) as bar:
            for part in range(10**9):
                chunk = list(islice(stream, shard))
                if not chunk:
                    break
                done = self.path / "shards" / f"part-{part:05d}.json"
                if not all(path.exists() for path in (done, *self._ports(part, ports))):
                    self._keep(part, len(chunk), work(chunk), ports, done)
                counts = json.loads(done.read_text())
                self.rows_in += counts["in"]
                self.rows_out.update(counts["out"])
                self.reasons.update(counts["dropped"])
                bar.update(len(chunk))
        for port in ports:  # a port exists even where no row came
            self.rows_out[port] += 0
            self.folder(port)

    def _ports(self, part: int, ports: dict[str, type[Row]]) -> list[Path]:
        return [self.path / port / f"part-{part:05d}.parquet" for port in ports]

    def _keep(self, part: int, size: int, batch: Batch[Any], ports: dict[str, type[Row]], done: Path) -> None:
        for path, (port, row_type) in zip(self._ports(part, ports), ports.items(), strict=True):
            write_parquet(path, row_type, batch.rows.get(port, []), self.store.blobs)
        write_parquet(self.path / "dropped" / f"part-{part:05d}.parquet", Dropped, batch.dropped)
        counts = {
            "in": size,
            "out": {port: len(batch.rows.get(port, [])) for port in ports},
            "dropped": Counter(d.reason for d in batch.dropped),
        }
        write_json(done, counts)

    def counts(self) -> dict[str, Any]:
        """Rows in, rows out by port, rows dropped by reason."""
        return {"in": self.rows_in, "out": dict(self.rows_out), "dropped": dict(self.reasons)}


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all. Of a path that is no UTF-8 the odd bytes are written as JSON's `\\udcxx`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial.replace(path)


@contextmanager
def begin(store: Store, stage: str, key: str) -> Iterator[Out]:
    """The `.partial` folder of an artifact, locked. Raises UserError while another process works on it."""
    final = store.artifact(stage, key)
    partial = final.with_name(final.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with (store.root / "artifacts" / f".{final.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{final}: another process is building this artifact") from None
        yield Out(partial, store)


def commit(out: Out, manifest: dict[str, Any], metrics: dict[str, Any]) -> Artifact:
    """Make a finished folder visible: metrics, `artifact.json`, then one rename."""
    final = out.path.with_name(out.path.name.removesuffix(".partial"))
    write_json(out.path / "metrics.json", metrics)
    write_json(out.path / "artifact.json", {**manifest, "counts": out.counts(), "created": time.time()})
    if final.exists():  # an incomplete or foreign folder by that name
        shutil.rmtree(final)
    out.path.rename(final)
    out.remove_discarded(final)
    return Artifact(final)
