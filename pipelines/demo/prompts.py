"""Renders the demo's own short prompt templates, so that the teacher trains on exactly what it will be sent.

In: the variables of a template under `configs/prompts/demo/`. Out: the text of the user's turn.
"""

from align.config import shipped
from align.templates import render

FOLDER = "configs/prompts/demo"


def ask_prompt(kind: str, count: int, text_form: str | None = None) -> str:
    """Asks for `count` questions of `kind` with answers, from the image or from its text form."""
    return render(shipped(f"{FOLDER}/ask.jinja"), kind=kind, count=count, text_form=text_form)


def answer_prompt(question: str) -> str:
    """Asks a question, to be answered by describing, then concluding."""
    return render(shipped(f"{FOLDER}/answer.jinja"), question=question)


def judge_prompt(question: str, answer: str) -> str:
    """Asks for a rating from 1 to 5 of an answer."""
    return render(shipped(f"{FOLDER}/judge.jinja"), question=question, answer=answer)
