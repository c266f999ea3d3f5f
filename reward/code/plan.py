"""Tests as text become code that can be run one test at a time. Runs in the tests' jail, on third-party text.

Three styles: `asserts`, a list of statements, each a test; `check`, HumanEval's function `check(candidate)`, of which
each statement that holds an assert is a test; `pytest`, a module of `test_*` functions, each a test.

A free name of the tests becomes the module of that name if it is one of `MODULES`, else a stand-in for the candidate's
function or class of that name. What a reference solution defines is a stand-in in any case, even a built-in name.
"""

from __future__ import annotations

import ast
import builtins
from types import CodeType

MODULES = frozenset(
    (
        *("bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq"),
        *("itertools", "json", "math", "operator", "os", "random", "re", "statistics", "string", "sys", "time"),
        "typing",
    )
)
"""Modules that tests may use without importing them, because the solution they were written with had."""
_SAFE_CALLS = frozenset(
    (
        *("abs", "all", "any", "bin", "bool", "bytes", "chr", "complex", "dict", "divmod", "enumerate", "filter"),
        *("float", "frozenset", "hex", "int", "isinstance", "len", "list", "map", "max", "min", "oct", "ord", "pow"),
        *("range", "repr", "reversed", "round", "set", "sorted", "str", "sum", "tuple", "zip"),
    )
)
_PURE = (
    *(ast.Module, ast.Assert, ast.Expr, ast.expr_context, ast.Constant, ast.Name, ast.operator, ast.unaryop),
    *(ast.boolop, ast.cmpop, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.Starred, ast.keyword, ast.Compare),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.IfExp, ast.Subscript, ast.Slice, ast.ListComp, ast.SetComp),
    *(ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.JoinedStr, ast.FormattedValue),
)
HOOKS = ("__test_begins__", "__test_passed__", "__test_failed__")
"""What a wrapped statement of `check` calls."""
CASES = "__cases__"
"""Attribute of a pytest function: sets of arguments, one a call."""
_WRAPPED = """
try:
    {0}()
    pass
except BaseException as __error__:
    {2}(__error__)
else:
    {1}()
""".format(*HOOKS)


class Reference:
    """What the tests may take from the reference solution: its imports, and which names it defines."""

    def __init__(self, text: str) -> None:
        tree = ast.parse(text)
        self.imports = [
            compile(ast.Module([node], []), "imports", "exec", optimize=0)
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        self.classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        self.defined = self.classes | functions


class Names:
    """The names of some statements: what they load, and which of these they do not bind themselves."""

    def __init__(self, trees: list[ast.Module]) -> None:
        self.loaded: dict[str, None] = {}
        self.bound: set[str] = set()
        for tree in trees:
            for node in ast.walk(tree):
                self._add(node)

    def free(self) -> list[str]:
        """Loaded and bound nowhere, in the order of their first use."""
        return [name for name in self.loaded if name not in self.bound]

    def _add(self, node: ast.AST) -> None:
        if isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load):
                self.loaded[node.id] = None
            else:
                self.bound.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self.bound.add(node.name)
        elif isinstance(node, ast.arg):
            self.bound.add(node.arg)
        elif isinstance(node, ast.alias):
            self.bound.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            self.bound.add(node.name)


class Plan:
    """Compiled tests, with the names that they need."""

    def __init__(self, *, style: str, setup: str, tests: list[str], reference: str | None) -> None:
        self.style = style
        known = Reference(reference or "")
        trees = [ast.parse(test) for test in tests]
        setup_tree = ast.parse(setup)
        names = Names([*trees, setup_tree])
        self.imports = known.imports
        free = names.free()
        overridden = [name for name in names.loaded if name in known.defined]
        self.modules = [name for name in free if name in MODULES and name not in known.defined]
        self.stand_ins = dict.fromkeys(overridden)
        self.stand_ins |= dict.fromkeys(
            name for name in free if name not in MODULES and not hasattr(builtins, name) and name != "__name__"
        )
        self.defined, self._classes = known.defined, known.classes
        self.setup = compile(setup_tree, "setup", "exec", optimize=0)
        self.num_tests = len(trees)
        if style == "check":
            self.num_tests = sum(_split_check(tree) for tree in trees)
        self.tests: list[CodeType] = [_compiled(tree) for tree in trees]
        self.leaves_no_trace = style == "asserts" and not setup.strip() and all(is_pure(tree) for tree in trees)

    def is_class(self, name: str) -> bool:
        """Whether a stand-in makes objects: as the reference says, else by the capital letter."""
        return name in self._classes if name in self.defined else name[:1].isupper()


def _compiled(tree: ast.Module) -> CodeType:
    """Code of a test; its asserts are there even if this interpreter leaves asserts out."""
    return compile(ast.fix_missing_locations(tree), "tests", "exec", optimize=0)


def is_pure(tree: ast.Module) -> bool:
    """Whether statements can change nothing but their own values: asserts on calls of bare names and of `math`."""
    return all(isinstance(node, _PURE) or _is_safe_call(node) or _is_math(node) for node in ast.walk(tree))


def _is_safe_call(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    return _is_math(called) or (
        isinstance(called, ast.Name) and (called.id in _SAFE_CALLS or not hasattr(builtins, called.id))
    )


def _is_math(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("math", "cmath")


def _split_check(tree: ast.Module) -> int:
    """Wrap each statement of `check` that holds an assert, in place; the number of them."""
    num_tests = 0
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "check":
            wrapped = [_wrap(statement) if _is_test(statement) else statement for statement in node.body]
            num_tests += sum(old is not new for old, new in zip(node.body, wrapped, strict=True))
            node.body = wrapped
    return num_tests


def _is_test(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return False
    return any(isinstance(node, ast.Assert) for node in ast.walk(statement))


def _wrap(statement: ast.stmt) -> ast.stmt:
    (wrapper,) = ast.parse(_WRAPPED).body
    assert isinstance(wrapper, ast.Try)
    wrapper.body[1] = statement
    return wrapper
