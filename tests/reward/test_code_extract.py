"""Which part of a completion is the program."""

import pytest

from reward.code.extract import body_of, defines, has_fence, program_of


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("x = 1\n", "x = 1\n"),
        ("", ""),
        (" \n\t", ""),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```py\nx = 1\n```\nor better\n```Python3\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\n```\n\n```", "x = 1\n"),
        ("```python\nx = 1\n```\nprints\n```text\n1\n```", "x = 1\n"),
        ("```bash\npip install x\n```", ""),
        ("```python\nx = 1", "x = 1"),
        ("~~~python\nx = '```'\n~~~", "x = '```'\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("   ```python\n   x = 1\n   ```", "   x = 1\n"),
        ("x = 1 ```not a fence```", "x = 1 ```not a fence```"),
        ("```python title=a.py\nx = 1\n```", "x = 1\n"),
        ("```\r\nx = 1\r\n```", "x = 1\r\n"),
    ],
)
def test_program_is_the_last_python_block_or_all_of_the_text(completion, program):
    assert program_of(completion) == program


HOSTILE = {
    "spaces, then a backtick": "```" + " " * 200_000 + "`",
    "letters, then a backtick": "```" + "a" * 200_000 + "`",
    "fences": "\n```" * 50_000,
    "backticks": "`" * 200_000,
    "spaces": " " * 200_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_search_for_fences_takes_no_longer_than_the_text_is_long(text):
    # Quadratic time would be minutes here.
    assert isinstance(program_of(text), str)


def test_fence_is_seen():
    assert has_fence("a\n```\nb")
    assert not has_fence("a ```b``` c")


def test_function_is_found_at_the_start_of_a_line_only():
    assert defines("x = 1\ndef  f (a):\n    pass", "f")
    assert defines("async def f():\n    pass", "f")
    assert not defines("    def f():\n        pass", "f")
    assert not defines("def ff():\n    pass\n# def f(", "f")
    assert not defines("def f.g(): pass", "fxg")


def test_body_ends_before_the_first_line_that_is_not_indented():
    assert body_of("    a = 1\n\n    return a\n\ndef g():\n    pass\n") == "    a = 1\n\n    return a\n"
    assert body_of("    return 1") == "    return 1"
    assert body_of("return 1") == ""
