"""Images on their way to a model: as data URLs for a server, as content hashes for a cache."""

import base64
import hashlib
import io
from pathlib import Path

from align.images import BadImage, open_image, probe


def read(path: str) -> bytes:
    """The bytes of an image file. Raises BadImage where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadImage("missing", f"{path}: {error.strerror or error}") from None


def data_url(path: str) -> str:
    """The image as `data:image/...;base64,...`: the file's own bytes where they are an upright, opaque RGB JPEG or
    PNG, which every server reads alike, else a PNG of what `open_image` sees. Raises BadImage."""
    data = read(path)
    found = probe(data)
    plain = found.mode == "RGB" and not found.rotated and not found.transparent
    if not plain or found.format not in ("JPEG", "PNG"):
        stream = io.BytesIO()
        open_image(data).save(stream, "PNG", compress_level=1)
        data, kind = stream.getvalue(), "png"
    else:
        kind = found.format.lower()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def digest(path: str) -> str:
    """sha256 of an image file. Raises BadImage where it cannot be read."""
    return hashlib.sha256(read(path)).hexdigest()
