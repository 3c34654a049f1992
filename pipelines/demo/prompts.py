"""Renders the demo's own short prompt templates, so that the teacher trains on exactly what it will be sent.

In: the variables of a template in the folder of templates. Out: the text of the user's turn.
"""

from dataclasses import dataclass

from align.config import shipped
from align.templates import render

FOLDER = "configs/prompts/demo"


@dataclass(frozen=True)
class Prompts:
    """The templates `ask.jinja`, `answer.jinja` and `judge.jinja` of a folder."""

    folder: str = FOLDER

    def check(self) -> None:
        """Raises UserError where one is missing, or asks for a variable that it is not given."""
        self.ask("read", 1)
        self.answer("")
        self.judge("", "")

    def ask(self, kind: str, count: int, text_form: str | None = None) -> str:
        """Asks for `count` questions of `kind` with answers, from the image or from its text form."""
        return self._render("ask.jinja", kind=kind, count=count, text_form=text_form)

    def answer(self, question: str) -> str:
        """Asks a question, to be answered by describing, then concluding."""
        return self._render("answer.jinja", question=question)

    def judge(self, question: str, answer: str) -> str:
        """Asks for a rating from 1 to 5 of an answer."""
        return self._render("judge.jinja", question=question, answer=answer)

    def _render(self, name: str, **variables: object) -> str:
        return render(shipped(self.folder) / name, **variables)
