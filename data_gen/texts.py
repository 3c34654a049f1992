"""Filters of what a text is written in and how: language, repetition. Each looks at one row alone.

In: rows of questions. Out: the rows that pass.
"""

import re
from collections import Counter
from functools import cache
from typing import Annotated, Literal

from pydantic import Field

from align.errors import UserError, did_you_mean
from align.records import QA, text_of
from data_gen.predicates import Filter, words

Share = Annotated[float, Field(ge=0, le=1)]
SHORTEST = 4
"""Words below which a text does not tell its language, unless its script does."""
SENTENCE = 8
"""Words from which an answer is held to the language."""
_FUNCTION_WORDS = {
    "en": """the is are was were of in on to and what how which many much does do did a an it this that there with for
        from at by as or not be has have where who when why than""",
    "de": """der die das ist sind war und was wie welche welcher welches viele ein eine einen dem den des es gibt nicht
        auf im in mit für von zu wo wer wann warum als bei zeigt hat steht""",
    "fr": """le la les est sont était et que quel quelle quels quelles combien un une des du de il elle y a pas sur dans
        avec pour par où qui quand pourquoi ce cette au aux plus l d qu""",
    "it": """il lo la i gli le è sono era e che quale quali quanti quante un una uno di del della dei nel nella non su
        con per da dove chi quando perché questo questa c' più dell nell sul l cosa""",
    "pt": """o a os as é são era e que qual quais quantos quantas um uma do da dos das no na nos nas não em com para por
        onde quem quando este esta há mais ao ou de""",
    "es": """el la los las es son era y que qué cuál cuáles cuántos cuántas cuánto un una de del en no con para por
        dónde quién cuándo este esta hay más al o se está""",
}
LANGUAGES = (*_FUNCTION_WORDS, "hi", "th")
"""The eight languages of Llama 3.2."""
_QUOTED = re.compile(r'"[^"]*"|«[^»]*»|“[^”]*”')
_SCRIPTS = {
    "hi": re.compile(r"[\u0900-\u097f]"),
    "th": re.compile(r"[\u0e00-\u0e7f]"),
    "": re.compile(r"[\u0370-\u08ff\u0980-\u0dff\u0e80-\u1fff\u3040-\ud7af]"),  # other scripts than Latin
}


class Language(Filter):
    """Questions in other languages than those wanted, as far as their words or their script tell."""

    filter: Literal["language"] = "language"
    languages: list[str] = Field(default=["en"], min_length=1)

    def check(self) -> None:
        for language in self.languages:
            if language not in LANGUAGES:
                raise UserError(f"languages: {language!r} is not known{did_you_mean(language, LANGUAGES)}")

    def why_not(self, row: QA) -> str:
        for name, text in (("question", text_of(row.prompt)), ("answer", text_of(row.completion))):
            if name == "answer" and len(words(text)) < SENTENCE:
                continue  # it may be a name or a quotation
            found = language_of(text)
            if found is not None and found not in self.languages:
                return f"the {name} is in {found or 'another script'}, not in {' or '.join(self.languages)}"
        return ""

    def figures(self, row: QA) -> str:
        found = language_of(text_of(row.prompt))
        return (
            "the question does not tell its language" if found is None else f"question in {found or 'another script'}"
        )


def language_of(text: str) -> str | None:
    """One of the eight, "" for a script of none of them, None where the text does not tell: too short, or no words of
    any. By script, else by the most different function words; what is quoted or in capitals, as names and addresses of
    documents are, does not count."""
    text = _QUOTED.sub(" ", text)
    if not text.isascii():
        letters = sum(c.isalpha() for c in text)
        for language, script in _SCRIPTS.items():
            if letters and 2 * len(script.findall(text)) > letters:
                return language
    found = [word.casefold() for word in re.findall(r"[^\W\d_]+", text) if not word.isupper()]
    if len(found) < SHORTEST:
        return None
    spoken = _languages_by_word()
    votes = Counter(language for word in set(found) for language in spoken.get(word, ()))
    ranked = [*votes.most_common(2), ("", 0), ("", 0)]
    return ranked[0][0] if ranked[0][1] > ranked[1][1] and ranked[0][1] >= 2 else None


@cache
def _languages_by_word() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for language, text in _FUNCTION_WORDS.items():
        for word in set(text.split()):
            found.setdefault(word, []).append(language)
    return found


class Repetition(Filter):
    """Texts that run in circles: most of their three-word sequences, or their lines, stand there before (the measures
    of Rae et al. 2021, arXiv 2112.11446, appendix A.1, for short texts), or one character over and over."""

    filter: Literal["repetition"] = "repetition"
    max_repeated: Share = 0.3  # share of the three-word sequences that stand in the text before

    def why_not(self, row: QA) -> str:
        for name, text in (("question", text_of(row.prompt)), ("answer", text_of(row.completion))):
            if why := repeated(text, self.max_repeated):
                return f"the {name} {why}"
        return ""


def repeated(text: str, most: float) -> str:
    """How a text repeats itself, empty where it does not."""
    if run := re.search(r"([^\W\d_]|[!?])\1{9,}", text):
        return f"holds {run[1]!r} {len(run[0])} times in a row"
    said = [w for word in words(text) if (w := word.casefold().strip(".,;:!?")) and not w.isdigit()]
    triples = list(zip(said, said[1:], said[2:], strict=False))
    if len(triples) >= 8:
        share = 1 - len(set(triples)) / len(triples)
        if share > most:
            return f"repeats {share:.0%} of its three-word sequences"
    loop = re.search(r"(?:^|\s)(\S+)(?:\s+\1){4,}(?:\s|$)", " ".join(said))
    return f"says {loop[1]!r} over and over" if loop else ""
