r"""Expressions read from tokens by recursive descent.

    sum      = ["+" | \pm] product (("+" | "-" | \pm) product)*
    product  = signed (("*" | "/") signed | factor)*            a factor beside another is multiplied
    signed   = "-" signed | factor
    factor   = atom ["!"] ["^" exponent]

What two people may read differently is not read at all: `1/2x`, `\sin(x)^2`, `x2`, `2 3`, `2\frac{7}{3}`, `\sqrt13`.
A numeral beside a proper fraction is a mixed number.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from reward.math.tokens import AmbiguousError, Token, UnreadableError
from reward.math.tree import Node, number
from reward.math.vocabulary import FUNCTIONS, GREEK

MAX_DEPTH = 60
MAX_WORD_LETTERS = 4
_FUNCTIONS = frozenset(f"\\{name}" for name in FUNCTIONS)
_OF_SEVERAL = frozenset(("gcd", "lcm", "max", "min"))
_GREEK = frozenset(f"\\{name}" for name in GREEK)
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "|": "|", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_ARGUMENT_STARTS = frozenset(("\\frac", "\\sqrt", "\\binom", "\\pi", "\\infty", "\\lfloor", "\\lceil", "\\overline"))
_STARTS = _ARGUMENT_STARTS | {"(", "[", "{", "\\angle"}
_NOTHING = Token("nothing", "")


def read_expression(tokens: Sequence[Token]) -> Node:
    """The tree of a whole token list; UnreadableError if it is not one expression."""
    parser = _Parser(tokens)
    node = parser.sum()
    parser.expect_end()
    return node


def numeral(text: str) -> Fraction:
    """Value of a numeral: digits, `1.5`, `1e3`, or `0.1(6)` with the repeating digits in brackets."""
    fixed, bracket, repeating = text.partition("(")
    value = Fraction(fixed if fixed.strip(".") else "0")
    if bracket:
        digits = repeating.rstrip(")")
        places = len(fixed.partition(".")[2])
        value += Fraction(int(digits), (10 ** len(digits) - 1) * 10**places)
    return value


class _Parser:
    """A method per rule of the grammar."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = list(tokens)
        self._position = 0
        self._depth = 0
        self._in_bars = False

    @property
    def token(self) -> Token:
        return self._tokens[self._position] if self._position < len(self._tokens) else _NOTHING

    def expect_end(self) -> None:
        if self.token is not _NOTHING:
            raise UnreadableError(f"{self.token.text!r} after the end of an expression")

    def sum(self) -> Node:
        self._deeper()
        sign = self._next().text if self.token.text in ("+", "\\pm", "\\mp") else "+"
        node = self.product()
        if sign != "+":
            node = Node("pm", (number(0), node))
        while self.token.text in ("+", "-", "\\pm"):
            op = {"+": "add", "-": "sub", "\\pm": "pm"}[self._next().text]
            node = Node(op, (node, self.product()))
        self._depth -= 1
        return node

    def product(self) -> Node:
        node = self._signed()
        divisor = _NOTHING
        while True:
            if self.token.text in ("*", "/"):
                op = "mul" if self._next().text == "*" else "div"
                divisor = self.token if op == "div" else _NOTHING
                node = Node(op, (node, self._signed()))
            elif self._starts_factor():
                # `1/2 x` with a space and `1/(2)x` are clear, `1/2x` is not.
                clear = divisor.text in ("", "(", "[", "{") or (divisor.kind == "num" and self.token.gap)
                if not clear:
                    raise UnreadableError("a quotient followed by a factor can be read in two ways")
                divisor = _NOTHING
                node = Node("mul", (node, self._factor()))
            else:
                return node

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UnreadableError(f"nested deeper than {MAX_DEPTH}")

    def _next(self) -> Token:
        token = self.token
        if token is _NOTHING:
            raise UnreadableError("the expression ends too early")
        self._position += 1
        return token

    def _signed(self) -> Node:
        if self.token.text not in ("-", "+"):
            return self._factor()
        self._deeper()
        sign = self._next().text
        node = self._signed()
        self._depth -= 1
        return Node("neg", (node,)) if sign == "-" else node

    def _starts_factor(self) -> bool:
        token = self.token
        if token.text == "|":
            return not self._in_bars
        is_one_letter = token.kind == "text" and len(token.text) == 1 and token.text.isalpha()
        return token.kind in ("letter", "word", "begin") or is_one_letter or token.text in _STARTS | _FUNCTIONS | _GREEK

    def _factor(self) -> Node:
        node = self._atom()
        if self.token.text == "!":
            self._next()
            node = Node("factorial", (node,))
        if self.token.text == "^":
            self._next()
            if self._is_degree():
                return Node("degree", (node,))
            node = Node("pow", (node, self._exponent()))
            if self.token.text in ("^", "!"):
                raise UnreadableError(f"{self.token.text!r} after a power")
        return node

    def _is_degree(self) -> bool:
        texts = [token.text for token in self._tokens[self._position : self._position + 3]]
        length = 1 if texts[:1] == ["\\circ"] else 3 if texts == ["{", "\\circ", "}"] else 0
        self._position += length
        return length > 0

    def _exponent(self) -> Node:
        if self.token.text == "-":
            self._next()
            return Node("neg", (self._exponent(),))
        if self.token.text in _FUNCTIONS:
            raise UnreadableError("a function as an exponent without braces")
        if self.token.kind == "num":
            return number(numeral(self._next().text))
        return self._atom()

    def _atom(self) -> Node:
        self._deeper()
        token = self._next()
        if token.kind == "num":
            node = self._numeral(token)
        elif token.kind == "word":
            node = self._word(token)
        elif token.kind == "begin":
            node = self._matrix(token)
        elif token.text in _FUNCTIONS:
            node = self._function(token.text[1:])
        elif token.kind == "letter" or token.text in _GREEK or (len(token.text) == 1 and token.text.isalpha()):
            node = self._letter(token)
        else:
            node = self._command(token)
        self._depth -= 1
        return node

    def _command(self, token: Token) -> Node:
        match token.text:
            case "(" | "[" | "{" | "\\{":
                return self._until(_CLOSING[token.text])
            case "|":
                return Node("abs", (self._until("|"),))
            case "\\lfloor" | "\\lceil":
                return Node(token.text[2:], (self._until(_CLOSING[token.text]),))
            case "\\frac":
                return Node("div", (self._argument(), self._argument()))
            case "\\binom":
                return Node("binomial", (self._argument(), self._argument()))
            case "\\sqrt":
                return self._root()
            case "\\pi":
                return Node("constant", name="pi")
            case "\\infty":
                return Node("constant", name="infinity")
            case "\\overline" | "\\angle":
                return Node("symbol", name=f"{token.text} {self._label()}")
        raise UnreadableError(f"{token.text!r} where a number, symbol or bracket is due")

    def _until(self, closing: str) -> Node:
        outer, self._in_bars = self._in_bars, closing == "|"
        node = self.sum()
        if self._next().text != closing:
            raise UnreadableError(f"no {closing!r} after an expression")
        self._in_bars = outer
        return node

    def _numeral(self, token: Token) -> Node:
        if self.token.text == "_":
            raise AmbiguousError("a base inside an expression")
        whole = number(numeral(token.text))
        if not token.text.isdigit():
            return whole
        start = self._position
        part = self._fraction_beside()
        if part is None:
            self._position = start
            return whole
        if not 0 <= part < 1:
            raise AmbiguousError("an improper fraction beside a numeral")
        return number(whole.value + part)

    def _fraction_beside(self) -> Fraction | None:
        r"""The fraction of integers after a numeral: `\frac{1}{2}`, or ` 1/2` after white space."""
        if self.token.text == "\\frac":
            node = self._command(self._next())
            if all(arg.op == "number" and arg.value.denominator == 1 for arg in node.args) and node.args[1].value:
                return node.args[0].value / node.args[1].value
            return None
        if self.token.kind != "num":
            return None
        texts = [token.text for token in self._tokens[self._position : self._position + 3]]
        if len(texts) < 3 or texts[1] != "/" or not (texts[0].isdigit() and texts[2].isdigit() and int(texts[2])):
            raise AmbiguousError("two numerals beside each other")
        self._position += 3
        return Fraction(int(texts[0]), int(texts[2]))

    def _argument(self) -> Node:
        """What a fraction takes: a group in braces or one digit, letter or command."""
        token = self._next()
        if token.text == "{":
            return self._until("}")
        if token.kind == "num" and token.text.isdigit():
            if len(token.text) > 1:
                self._position -= 1
                self._tokens[self._position] = Token("num", token.text[1:])
            return number(int(token.text[0]))
        if token.kind == "letter" or token.text in _GREEK | {"\\pi", "\\sqrt", "\\frac"}:
            return self._letter(token) if token.kind == "letter" or token.text in _GREEK else self._command(token)
        raise UnreadableError(f"{token.text!r} where an argument is due")

    def _root(self) -> Node:
        degree = number(2)
        if self.token.text == "[":
            self._next()
            degree = self._until("]")
        if self.token.text == "(":
            return Node("root", (self._command(self._next()), degree))
        if self.token.kind == "num" and len(self.token.text) > 1:
            raise AmbiguousError("a root of several digits without braces")
        return Node("root", (self._argument(), degree))

    def _function(self, name: str) -> Node:
        base: tuple[Node, ...] = ()
        exponent: Node | None = None
        for _ in range(2):
            if self.token.text == "_" and name == "log" and not base:
                self._next()
                base = (self._exponent(),)
            elif self.token.text == "^" and exponent is None:
                self._next()
                exponent = self._exponent()
        if exponent == Node("neg", (number(1),)) or exponent == number(-1):
            if name not in _INVERSE:
                raise UnreadableError(f"the power -1 of {name}")
            name, exponent = _INVERSE[name], None
        node = Node("function", (*self._arguments(name), *base), name=name)
        return node if exponent is None else Node("pow", (node, exponent))

    def _arguments(self, name: str) -> tuple[Node, ...]:
        if self.token.text in ("(", "[", "{"):
            closing = _CLOSING[self._next().text]
            arguments = [self.sum()]
            while name in _OF_SEVERAL and self.token.text == ",":
                self._next()
                arguments.append(self.sum())
            if self._next().text != closing:
                raise UnreadableError(f"no {closing!r} after the argument of {name}")
            if self.token.text in ("^", "!"):
                raise AmbiguousError(f"{self.token.text!r} after the argument of {name} can be read in two ways")
            return tuple(arguments)
        argument = self._factor()
        while self.token.kind in ("letter", "word") or self.token.text in _ARGUMENT_STARTS | _GREEK:
            argument = Node("mul", (argument, self._factor()))
        if self.token.text == "/":
            raise AmbiguousError(f"a quotient after the argument of {name} can be read in two ways")
        return (argument,)

    def _letter(self, token: Token) -> Node:
        name = token.text
        if self.token.text == "_":
            self._next()
            name = f"{name}_{self._label()}"
        while self.token.text == "'":
            name += self._next().text
        return Node("constant", name=name) if name in ("e", "i") else Node("symbol", name=name)

    def _word(self, token: Token) -> Node:
        """A product of letters; words proper, and rows of capitals such as the corners ABCD, are no products."""
        if len(token.text) > MAX_WORD_LETTERS or (len(token.text) > 2 and token.text.isupper()):
            raise UnreadableError(f"the word {token.text!r}")
        letters = token.text
        factors = [Node("constant" if letter in "ei" else "symbol", name=letter) for letter in letters[:-1]]
        node = factors[0]
        for factor in (*factors[1:], self._letter(Token("letter", letters[-1]))):
            node = Node("mul", (node, factor))
        return node

    def _label(self) -> str:
        """Text of a subscript or of what stands under a bar, literally."""
        token = self._next()
        if token.text != "{":
            return token.text
        label = ""
        while self.token.text != "}":
            if self.token.text == "{":
                raise UnreadableError("braces in a subscript")
            label += self._next().text
        self._next()
        return label

    def _matrix(self, begin: Token) -> Node:
        rows: list[list[list[Token]]] = [[[]]]
        depth = 1
        while True:
            token = self._next()
            depth += (token.kind == "begin") - (token.kind == "end")
            if depth == 0:
                break
            if depth == 1 and token.text == "&":
                rows[-1].append([])
            elif depth == 1 and token.text == "\\\\":
                rows.append([[]])
            else:
                rows[-1][-1].append(token)
        if rows[-1] == [[]]:
            rows.pop()
        if not rows or len({len(row) for row in rows}) != 1:
            raise UnreadableError("rows of different lengths")
        node = Node("matrix", tuple(Node("row", tuple(read_expression(cell) for cell in row)) for row in rows))
        return Node("det", (node,)) if begin.text == "vmatrix" else node
