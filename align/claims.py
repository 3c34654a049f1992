"""An answer taken apart into claims, as a model writes them down, and its verdict on one.

In: a model's reply. Out: the claims, or why it is no list of claims; yes, no, or neither.
"""

import re

from align.engine import Reply

NONE = "none"
MOST_CLAIMS = 64
_ITEM = re.compile(r"(?:[-*•]|\d{1,3}[.)])\s+(.*\S)")
_WORD = re.compile(r"[a-z]+", re.IGNORECASE)


def read_claims(reply: Reply) -> list[str] | str:
    """The claims of a list, each once, none where the answer makes none; why this is no list, where it is none.

    Strict: every line is an item (`- `, `* `, `1. `), `none` or blank, as the template asks; a list that was cut off
    or has anything else in it is no list of claims.
    """
    if reply.error:
        return f"the answer could not be split: {reply.error}"
    text = reply.texts[0].strip() if reply.texts else ""
    if text.rstrip(".").lower() == NONE:
        return []
    claims: dict[str, None] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        item = _ITEM.fullmatch(line)
        if item is None:
            return f"the answer could not be split: this is no claim: {line[:80]!r}"
        claims[item[1]] = None
    if not claims:
        return "the answer could not be split: nothing was said"
    if reply.finish and reply.finish[0] == "length":
        return "the answer could not be split: the list of claims was cut off; raise max_tokens"
    if len(claims) > MOST_CLAIMS:
        return f"the answer could not be split: {len(claims)} claims, {MOST_CLAIMS} are checked at most"
    return list(claims)


def verdict(text: str) -> bool | None:
    """Whether a text's first word is yes, or no; None where it is neither."""
    words = _WORD.findall(text.lower())
    return {"yes": True, "no": False}.get(words[0]) if words else None
