"""What names may be and what they mean: of pipelines, of stages, of a stage's outputs.

In: a name as the user wrote it. Out: what is wrong with it, or the port that it means.
"""

import re

from align.errors import UserError, did_you_mean
from align.stage import PortType, Stage

SINGLE = "single"
RESERVED = ("logs", "store", SINGLE, "report.html")
"""What else lies in the folder of runs."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def wrong_name(name: str) -> str:
    """What keeps a pipeline or a stage from being called so; empty where nothing does."""
    if name in RESERVED:
        return f"{name!r} is taken in the folder of runs; choose another"
    return "" if _NAME.fullmatch(name) else f"letters, digits, '-', '_' and '.' are expected, not {name!r}"


def port_of(kind: type[Stage], name: str, port: str, wanted: PortType) -> str:
    """The port that `name` or `name/port` means. Raises UserError where there is none or it holds other rows."""
    ports = kind.OUTPUTS
    if not port:
        if len(ports) != 1:
            raise UserError(f"{name!r} has several outputs: say one of {', '.join(f'{name}/{p}' for p in ports)}")
        (port,) = ports
    if port not in ports:
        raise UserError(f"{name!r} has no output {port!r}{did_you_mean(port, ports)}")
    has = ports[port]
    fits = issubclass(has, wanted) if isinstance(has, type) and isinstance(wanted, type) else has == wanted
    if not fits:
        raise UserError(f"{name}/{port} holds {_word(has)}, but {_word(wanted)} is needed here")
    return port


def _word(port: PortType) -> str:
    return f"rows of {port.__name__}" if isinstance(port, type) else f"a {port}"
