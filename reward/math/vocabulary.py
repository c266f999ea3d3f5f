"""The words, commands and characters of answers, and which of them mean the same."""

from __future__ import annotations

FUNCTIONS = (
    *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"),
    *("ln", "log", "exp", "cis", "gcd", "lcm", "max", "min"),
)
"""Functions by their command's name."""
GREEK = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu"),
    *("xi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega"),
    *("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "ell"),
)

WORDS = {
    **{name: f"\\{name}" for name in FUNCTIONS},
    **{name: f"\\{name}" for name in ("sqrt", "pi", "theta", "alpha", "beta", "gamma", "infty", "phi", "lambda")},
    "infinity": "\\infty",
    "inf": "\\infty",
    "oo": "\\infty",
    "asin": "\\arcsin",
    "acos": "\\arccos",
    "atan": "\\arctan",
    "and": "\\and",
    "or": "\\or",
}
"""Words of plain text that stand for a command."""

COMMANDS = {
    **{f"\\{name}": "\\frac" for name in ("dfrac", "tfrac", "cfrac")},
    **{f"\\{name}": "\\binom" for name in ("dbinom", "tbinom")},
    **{f"\\{name}": "\\leq" for name in ("le", "leqslant", "leqq")},
    **{f"\\{name}": "\\geq" for name in ("ge", "geqslant", "geqq")},
    **{f"\\{name}": "*" for name in ("cdot", "times", "ast", "cdotp")},
    **{f"\\{name}": "|" for name in ("lvert", "rvert", "vert", "mid")},
    **{f"\\{name}": "\\|" for name in ("lVert", "rVert", "Vert")},
    **{f"\\{name}": "\\{" for name in ("lbrace",)},
    **{f"\\{name}": "\\}" for name in ("rbrace",)},
    **{f"\\{name}": "\\setminus" for name in ("backslash", "smallsetminus")},
    **{f"\\{name}": "\\emptyset" for name in ("varnothing",)},
    **{f"\\var{name}": f"\\{name}" for name in ("epsilon", "theta", "phi", "rho")},
    "\\lt": "<",
    "\\gt": ">",
    "\\ne": "\\neq",
    "\\div": "/",
    "\\colon": ":",
    "\\lbrack": "[",
    "\\rbrack": "]",
    "\\lparen": "(",
    "\\rparen": ")",
    "\\degree": "\\circ",
    "\\asin": "\\arcsin",
    "\\acos": "\\arccos",
    "\\atan": "\\arctan",
    "\\land": "\\and",
    "\\lor": "\\or",
    "\\bar": "\\overline",
    "\\infinity": "\\infty",
    "\\percent": "%",
    "\\thickapprox": "\\approx",
}
"""Commands that mean the same as another command or sign."""

INVISIBLE = frozenset(
    f"\\{name}"
    for name in (
        *("displaystyle", "textstyle", "scriptstyle", "limits", "nolimits", "allowbreak", "nobreak", "nonumber"),
        *("quad", "qquad", "enspace", "thinspace", "medspace", "thickspace", "negthinspace", "hfill", "space", "rm"),
        *("bf", "it", "boldmath", "large", "Large", "small"),
    )
)
TEXT_COMMANDS = frozenset(
    f"\\{name}"
    for name in (
        *("text", "mbox", "hbox", "textnormal", "textrm", "textup", "textsf", "texttt", "textbf", "textit", "emph"),
        *("mathrm", "mathbf", "mathit", "mathsf", "mathtt", "mathbb", "mathcal", "boldsymbol", "bold", "operatorname"),
        *("mathop", "bm"),
    )
)
STYLES = frozenset(
    f"\\{name}"
    for name in (
        *("mathrm", "mathbf", "mathit", "mathsf", "mathtt", "mathbb", "mathcal", "boldsymbol", "bold", "operatorname"),
        *("mathop", "bm", "textbf", "textit", "emph"),
    )
)
"""Text commands whose argument may be mathematics."""
ENVIRONMENTS = frozenset(("matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "smallmatrix", "array"))
DOTS = frozenset(f"\\{name}" for name in ("ldots", "cdots", "dots", "dotsc", "dotsb", "dotsm", "vdots", "ddots"))
RESTATING = frozenset(
    f"\\{name}"
    for name in (
        *("int", "iint", "iiint", "oint", "sum", "prod", "coprod", "lim", "limsup", "liminf", "bigcup", "bigcap"),
        *("partial", "nabla"),
    )
)
"""Commands that state a task instead of its answer."""

CHARACTERS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "\N{HYPHEN}": "-",
        "\N{NON-BREAKING HYPHEN}": "-",
        "\N{MULTIPLICATION SIGN}": "*",
        "\N{MIDDLE DOT}": "*",
        "\N{DOT OPERATOR}": "*",
        "\N{DIVISION SIGN}": "/",
        "\N{FRACTION SLASH}": "/",
        "\N{DIVISION SLASH}": "/",
        "\N{GREEK SMALL LETTER PI}": "\\pi ",
        "\N{GREEK SMALL LETTER THETA}": "\\theta ",
        "\N{GREEK SMALL LETTER ALPHA}": "\\alpha ",
        "\N{GREEK SMALL LETTER BETA}": "\\beta ",
        "\N{GREEK SMALL LETTER LAMDA}": "\\lambda ",
        "\N{GREEK SMALL LETTER PHI}": "\\phi ",
        "\N{INFINITY}": "\\infty ",
        "\N{SQUARE ROOT}": "\\sqrt ",
        "\N{LESS-THAN OR EQUAL TO}": "\\leq ",
        "\N{GREATER-THAN OR EQUAL TO}": "\\geq ",
        "\N{NOT EQUAL TO}": "\\neq ",
        "\N{ALMOST EQUAL TO}": "\\approx ",
        "\N{PLUS-MINUS SIGN}": "\\pm ",
        "\N{UNION}": "\\cup ",
        "\N{INTERSECTION}": "\\cap ",
        "\N{ELEMENT OF}": "\\in ",
        "\N{EMPTY SET}": "\\emptyset ",
        "\N{DOUBLE-STRUCK CAPITAL R}": "\\mathbb{R}",
        "\N{DEGREE SIGN}": "^\\circ ",
        "\N{SUPERSCRIPT TWO}": "^2",
        "\N{SUPERSCRIPT THREE}": "^3",
        "\N{VULGAR FRACTION ONE HALF}": "\\frac{1}{2}",
        "\N{VULGAR FRACTION ONE QUARTER}": "\\frac{1}{4}",
        "\N{VULGAR FRACTION THREE QUARTERS}": "\\frac{3}{4}",
        "\N{VULGAR FRACTION ONE THIRD}": "\\frac{1}{3}",
        "\N{VULGAR FRACTION TWO THIRDS}": "\\frac{2}{3}",
        "\N{NO-BREAK SPACE}": " ",
        "\N{NARROW NO-BREAK SPACE}": " ",
        "\N{THIN SPACE}": " ",
        "\N{EURO SIGN}": "\\euro ",
        "\N{POUND SIGN}": "\\pounds ",
        "\N{HORIZONTAL ELLIPSIS}": "...",
        "\N{MATHEMATICAL LEFT ANGLE BRACKET}": "\\langle ",
        "\N{MATHEMATICAL RIGHT ANGLE BRACKET}": "\\rangle ",
    }
)
"""Characters that stand for a sign or command. Digits of other scripts stay what they are: unreadable."""
