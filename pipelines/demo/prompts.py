"""Renders the demo's own short prompt templates, so that the teacher trains on exactly what it will be sent.

In: the variables of a template under `configs/prompts/demo/`. Out: the text of the user's turn.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

PROMPTS = Path(__file__).parents[2] / "configs" / "prompts" / "demo"


@cache
def _template(name: str) -> Template:
    # Prompts are plain text, not HTML.
    environment = Environment(loader=FileSystemLoader(PROMPTS), undefined=StrictUndefined, autoescape=False)
    return environment.get_template(name)


def ask_prompt(kind: str, count: int, text_form: str | None = None) -> str:
    """Asks for `count` questions of `kind` with answers, from the image or from its text form."""
    return _template("ask.jinja").render(kind=kind, count=count, text_form=text_form)


def answer_prompt(question: str) -> str:
    """Asks a question to be answered by describing, then concluding."""
    return _template("answer.jinja").render(question=question)


def judge_prompt(question: str, answer: str) -> str:
    """Asks for a rating from 1 to 5 of an answer."""
    return _template("judge.jinja").render(question=question, answer=answer)
