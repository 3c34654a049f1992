"""Deliberate errors for reward models: see `align/perturb.py`."""

from align.perturb import COLOURS, names_in, perturb

__all__ = ["COLOURS", "names_in", "perturb"]
