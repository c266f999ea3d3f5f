r"""Tokens of an answer in LaTeX or plain text; what only changes its look is dropped here.

`\left`, thin spaces, `$`, `\displaystyle` and the like vanish; `\dfrac` is `\frac`, `\le` is `\leq`, `\cdot` is `*`,
`π` is `\pi`, a word such as `sqrt` or `pi` is its command; `1,234`, `1{,}234`, `10,\!080` and `1 000` are one number
each (inside brackets a plain comma separates). One pass, linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from reward.math.vocabulary import CHARACTERS, COMMANDS, DOTS, ENVIRONMENTS, INVISIBLE, STYLES, TEXT_COMMANDS, WORDS

MAX_ANSWER_CHARS = 300


class UnreadableError(ValueError):
    """The text is not an answer of the grammar read here."""


class AmbiguousError(UnreadableError):
    """Two people may read the text differently; no other reader is asked either."""


class Token(NamedTuple):
    """One piece of an answer."""

    kind: str
    """`num`, `letter`, `word`, `text`, `cmd`, `begin`, `end`, `dots`, `cur` (currency) or `sym`."""
    text: str
    gap: bool = False
    """Whether white space stands before it."""


_GROUPED = r"[0-9]{1,3}(?:(?:,\\!|,\\,|\{,\}|\\,|\\!)\s*[0-9]{3})+(?![0-9])(?:\.[0-9]+)?"
_COMMAS = r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?"
_SPACES = r"[1-9][0-9]{0,2}(?:[ ][0-9]{3})+(?![0-9])(?:\.[0-9]+)?(?!\s*/|\s*[0-9])"
_PIECE = re.compile(
    rf"""(?P<phantom>\\[hv]?phantom\s*(?:\{{[^{{}}]*\}}|.))
      |(?P<delimiter>\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?)
      |(?P<space>(?:\s|~|\\[,;:!>\ ])+|\\[()\[\]]|(?<!\\)\$)
      |(?P<rows>\\\\(?:\[[0-9a-z.]*\])?)
      |(?P<begin>\\begin\s*\{{[a-zA-Z]+\*?\}}(?:\s*\{{[clr|\s]*\}})?)
      |(?P<end>\\end\s*\{{[a-zA-Z]+\*?\}})
      |(?P<cmd>\\operatorname\*?|\\[a-zA-Z]+)
      |(?P<escaped>\\[{{}}%$|&_\#])
      |(?P<repeating>[0-9]*\.[0-9]*\\(?:overline|bar)\s*\{{[0-9]+\}})
      |(?P<grouped>{_GROUPED})
      |(?P<commas>{_COMMAS})
      |(?P<spaces>{_SPACES})
      |(?P<scientific>[0-9]+(?:\.[0-9]+)?[eE][-+]?[0-9]{{1,3}}(?![\w.]))
      |(?P<num>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)
      |(?P<dots>\.\.\.+)
      |(?P<word>[A-Za-z]+)
      |(?P<sym><=|>=|!=|==|\*\*|[-+*/^_=<>()\[\]{{}}|!,;:%&'])""",
    re.VERBOSE | re.DOTALL,
)
_NOT_DIGITS = re.compile(r"[^0-9.]")
_SAME_SYMBOLS = {"<=": "\\leq", ">=": "\\geq", "!=": "\\neq", "==": "=", "**": "^"}
_ESCAPED = {
    "\\$": ("cur", "$"),
    "\\%": ("sym", "%"),
    "\\|": ("sym", "\\|"),
    "\\{": ("sym", "\\{"),
    "\\}": ("sym", "\\}"),
}


def canonical(text: str) -> tuple[str, ...]:
    """Token texts; equal tuples mean answers that differ in their look only. UnreadableError where `tokens` is."""
    return tuple(token.text for token in tokens(text))


@lru_cache(maxsize=4096)
def tokens(text: str) -> tuple[Token, ...]:
    """All tokens; UnreadableError at a character that has no place in an answer, or beyond `MAX_ANSWER_CHARS`."""
    if len(text) > MAX_ANSWER_CHARS:
        raise UnreadableError(f"{len(text)} characters; at most {MAX_ANSWER_CHARS} are read")
    return tuple(_scan(text))


def _scan(text: str) -> Iterator[Token]:
    text = text.translate(CHARACTERS).strip()
    while text.endswith((".", ",", ";")) and not text.endswith(("..", "\\,", "\\;")):
        text = text[:-1].rstrip()
    position, gap, depth = 0, False, 0
    while position < len(text):
        match = _PIECE.match(text, position)
        if match is None:
            raise UnreadableError(f"{text[position]!r} has no place in an answer")
        kind, piece = str(match.lastgroup), match[0]
        position = match.end()
        if kind in ("space", "phantom", "delimiter"):
            gap = gap or kind == "space"
            continue
        if kind == "commas" and depth:
            piece = piece.partition(",")[0]
            kind, position = "num", match.start() + len(piece)
        if kind == "cmd" and piece.rstrip("*") in TEXT_COMMANDS:
            content, position = _argument(text, position, piece)
            yield from _text_tokens(piece.rstrip("*"), content, gap)
        else:
            for token in _plain_tokens(kind, piece, gap):
                depth += (token.text in ("(", "[", "\\{")) - (token.text in (")", "]", "\\}"))
                yield token
        gap = False


def _plain_tokens(kind: str, piece: str, gap: bool) -> Iterator[Token]:
    if kind == "cmd":
        yield from _command(piece, gap)
    elif kind == "word":
        yield from _word(piece, gap)
    elif kind == "escaped":
        yield Token(*_ESCAPED.get(piece, ("sym", piece)), gap)
    elif kind in ("begin", "end"):
        name = piece[piece.index("{") + 1 : piece.index("}")].rstrip("*")
        if name not in ENVIRONMENTS:
            raise UnreadableError(f"environment {name}")
        yield Token(kind, name, gap)
    elif kind in ("rows", "dots"):
        yield Token("sym", "\\\\", gap) if kind == "rows" else Token("dots", "...", gap)
    elif kind == "sym":
        yield Token("sym", _SAME_SYMBOLS.get(piece, piece), gap)
    else:
        yield Token("num", _numeral(kind, piece), gap)


def _numeral(kind: str, piece: str) -> str:
    """Digits with a point; `1e3`; `0.1(6)` for a repeating decimal."""
    if kind == "repeating":
        fixed, _, digits = piece.partition("\\")
        return f"{fixed}({_NOT_DIGITS.sub('', digits)})"
    return piece.lower() if kind in ("scientific", "num") else _NOT_DIGITS.sub("", piece)


def _command(name: str, gap: bool) -> Iterator[Token]:
    if name in INVISIBLE:
        return
    name = COMMANDS.get(name, name)
    if name in DOTS:
        yield Token("dots", "...", gap)
    elif name in ("\\euro", "\\pounds"):
        yield Token("cur", name, gap)
    elif not name.startswith("\\") or name in ("\\{", "\\}", "\\|"):
        yield Token("sym", name, gap)
    else:
        yield Token("cmd", name, gap)


def _word(word: str, gap: bool) -> Iterator[Token]:
    if len(word) == 1:
        yield Token("letter", word, gap)
    elif word in WORDS:
        yield Token("cmd", WORDS[word], gap)
    elif len(word) == 4 and word[:3] in WORDS and word[3] in "xytn":
        yield Token("cmd", WORDS[word[:3]], gap)
        yield Token("letter", word[3])
    else:
        yield Token("word", word, gap)


def _argument(text: str, position: int, command: str) -> tuple[str, int]:
    """The braced argument, or the single character, that follows a command, and where it ends."""
    while position < len(text) and text[position].isspace():
        position += 1
    if position == len(text):
        raise UnreadableError(f"nothing after {command}")
    if text[position] != "{":
        return text[position], position + 1
    depth = 0
    for end in range(position, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[position + 1 : end], end + 1
    raise UnreadableError(f"the brace after {command} is never closed")


def _text_tokens(command: str, content: str, gap: bool) -> Iterator[Token]:
    r"""A text command: a style around mathematics is dropped (`\mathbf{v}` keeps it), words become one token."""
    inner = " ".join(content.replace("$", " ").replace("~", " ").split())
    if command in STYLES:
        if command == "\\mathbb":
            yield Token("cmd", f"\\mathbb{{{inner}}}", gap)
        elif re.fullmatch("[A-Za-z]", inner):
            yield Token("letter", inner if command != "\\mathbf" else f"\\mathbf{{{inner}}}", gap)
        elif inner in WORDS:
            yield Token("cmd", WORDS[inner], gap)
        elif re.fullmatch(r"[A-Za-z][A-Za-z. ]*", inner):
            yield Token("text", inner, gap)
        else:
            yield Token("sym", "{", gap)
            yield from _scan(inner)
            yield Token("sym", "}")
    elif inner.strip(" ,").lower() in WORDS and inner not in ("min", "max"):
        yield Token("cmd", WORDS[inner.strip(" ,").lower()], gap)
    elif inner:
        yield Token("text", inner, gap)
