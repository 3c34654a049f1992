"""Prompt templates: Jinja files rendered in a sandbox, every variable required.

In: a template file and its variables. Out: the text of a chat turn. Prompts are plain text, so nothing is escaped; the
sandbox keeps a template that somebody else wrote from reaching into the program.
"""

from functools import lru_cache
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from align.errors import UserError


@lru_cache(maxsize=64)
def _template(path: Path) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
    try:
        return environment.from_string(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: not a valid template: {error.message}") from None


def render(path: str | Path, **variables: object) -> str:
    """The template's text with its variables. Raises UserError for a bad template or an unknown variable in it."""
    try:
        return _template(Path(path)).render(**variables).strip()
    except (jinja2.UndefinedError, jinja2.exceptions.SecurityError) as error:
        known = ", ".join(sorted(variables))
        raise UserError(f"{path}: {error.message}; the variables are: {known}") from None
