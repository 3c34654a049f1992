"""Manifests with real picture files, and rows of questions, for the tests of what reads them."""

import json
from pathlib import Path
from random import Random

from PIL import Image

from align.artifact import Out, Store
from align.records import QA, Dropped, ImageRow, Message, read_parquet, row_id, write_parquet

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
"""Real images, where they lie beside the checkout."""


def noise(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A picture of coarse coloured blocks: unlike that of any other seed."""
    rng = Random(seed)
    small = Image.new("RGB", (8, 8))
    small.putdata([(rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(64)])
    return small.resize(size, Image.Resampling.NEAREST)


def put_images(
    root: Path, pictures: dict[str, Image.Image | bytes], texts: dict[str, str] | None = None
) -> list[ImageRow]:
    """Images in a store below `root`; `name` starts with the split (`train/a.png`)."""
    store = Store(root)
    made = []
    for name, picture in pictures.items():
        file = root / "tmp.png"
        root.mkdir(parents=True, exist_ok=True)
        if isinstance(picture, bytes):
            file.write_bytes(picture)
        else:
            picture.save(file)
        width, height = (64, 64) if isinstance(picture, bytes) else picture.size
        path = store.add_blob(file.read_bytes(), ".png")
        row = {"id": path.stem, "images": [str(path)], "name": name, "width": width, "height": height, "mode": "RGB"}
        more = {"format": "PNG", "split": name.partition("/")[0], "text_form": (texts or {}).get(name)}
        made.append(ImageRow.model_validate({**row, **more}))
    return made


def port(root: Path, stage: str, name: str, rows: list[ImageRow] | list[QA]) -> str:
    """Rows as the output of a finished stage; its folder, as a reference is resolved to."""
    folder = root / "artifacts" / stage / name
    kind = type(rows[0]) if rows else QA
    write_parquet(folder / "part-00000.parquet", kind, rows, Store(root).blobs)
    return str(folder)


def qa(image: ImageRow, question: str, answer: str, kind: str = "read") -> QA:
    return QA(
        id=row_id(image.id, kind, question, answer),
        images=image.images,
        prompt=[Message(role="user", content=question)],
        completion=[Message(role="assistant", content=answer)],
        image_id=image.id,
        kind=kind,
        split=image.split,
    )


def new_out(root: Path, name: str) -> Out:
    return Out(root / "artifacts" / name, Store(root))


def set_aside(out: Out) -> list[Dropped]:
    return list(read_parquet(sorted((out.path / "dropped").glob("*.parquet")), Dropped))


def array(*pairs: tuple[str, str]) -> str:
    """A teacher's reply."""
    return json.dumps([{"question": q, "answer": a} for q, a in pairs])
