"""A module of this project as a process of its own."""

import sys
from pathlib import Path

import align

_RUN = "import runpy, sys; sys.path.append(sys.argv.pop(1)); runpy.run_module(sys.argv.pop(1), None, '__main__', True)"


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs `module`, found where this process found it; nothing that lies in the working folder is
    imported in its place."""
    root = Path(align.__file__).parents[1]
    return [sys.executable, "-P", "-c", _RUN, str(root), module, *arguments]
