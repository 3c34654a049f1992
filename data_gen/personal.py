"""Filter `personal_data`: what identifies or reaches a person, found by form and by check digit.

In: rows of questions. Out: the rows whose texts hold none of it. Found: e-mail addresses, telephone numbers, IBANs
(ISO 13616, modulo 97), payment cards (ISO/IEC 7812, Luhn), US social security numbers, IPv4 addresses, machine-readable
lines of passports. Not found: names, postal addresses, dates of birth, faces; those take a model (`moderation`).
"""

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Literal, get_args

from pydantic import Field

from align.records import QA, text_of
from data_gen.predicates import Filter

Sort = Literal["email", "phone", "iban", "card", "ssn", "ip", "passport"]
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[A-Za-z]{2,24}(?![\w-])")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]){11,30}(?![A-Za-z0-9])", re.IGNORECASE)
_CARD = re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d-])(?![.,]\d)")
_SSN = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_IP = re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.])")
_PASSPORT = re.compile(r"\bP[A-Z<][A-Z]{3}[A-Z<]{39}")
_PHONE = re.compile(
    r"(?<![\w.,/+-])(?:\+\d{1,3}[\d() ./-]{6,16}\d|\(\d{2,5}\)[ -]?\d{2,4}[\d -]{3,8}\d"
    r"|0\d{1,4}[ /-]\d{2,8}(?:[ -]\d{2,8}){0,3})"
    r"(?![\w/-]|[.,]\d)"
)
_CALLED = re.compile(
    r"\b(?:tel(?:ephone|efon|éfono)?|phone|mobile|cell|fax|whatsapp|hp|h/p)\b\W{0,3}(?:(?:no|number|is|nr)\W{1,3}){0,2}"
    r"(\+?\d[\d() ./-]{5,18}\d)(?!\w)",
    re.IGNORECASE,
)
_DATE = re.compile(r"\d{1,4}([./-])\d{1,2}\1\d{1,4}")


class PersonalData(Filter):
    """Rows whose question or answer holds an e-mail address, a telephone number, an account or a card."""

    filter: Literal["personal_data"] = "personal_data"
    sorts: list[Sort] = Field(default=list(get_args(Sort)), min_length=1)
    where: Annotated[list[Literal["question", "answer"]], Field(min_length=1)] = ["question", "answer"]

    def why_not(self, row: QA) -> str:
        """The sort and its place; not the value itself, which would only spread it."""
        texts = {"question": text_of(row.prompt), "answer": text_of(row.completion)}
        for name in self.where:
            for sort in self.sorts:
                if next(FINDERS[sort](texts[name]), None) is not None:
                    return f"the {name} holds personal data: {sort}"
        return ""


def _emails(text: str) -> Iterator[str]:
    yield from (m[0] for m in _EMAIL.finditer(text))


def _ibans(text: str) -> Iterator[str]:
    for match in _IBAN.finditer(text):
        code = match[0].replace(" ", "").upper()
        for size in range(len(code), 14, -1):  # words may follow
            turned = code[4:size] + code[:4]
            if int("".join(str(int(c, 36)) for c in turned)) % 97 == 1:
                yield code[:size]
                break


def luhn(number: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def _cards(text: str) -> Iterator[str]:
    for match in _CARD.finditer(text):
        number = re.sub(r"\D", "", match[0])
        if number[0] in "3456" and len(set(number)) > 1 and luhn(number):
            yield number


def _phones(text: str) -> Iterator[str]:
    for pattern, group in ((_PHONE, 0), (_CALLED, 1)):
        for match in pattern.finditer(text):
            number = match[group]
            if 7 <= len(re.sub(r"\D", "", number)) <= 15 and not _DATE.search(number):
                yield number


FINDERS: dict[str, Callable[[str], Iterator[str]]] = {
    "email": _emails,
    "phone": _phones,
    "iban": _ibans,
    "card": _cards,
    "ssn": lambda text: (m[0] for m in _SSN.finditer(text)),
    "ip": lambda text: (m[0] for m in _IP.finditer(text)),
    "passport": lambda text: (m[0] for m in _PASSPORT.finditer(text)),
}
"""What finds each sort in a text."""
