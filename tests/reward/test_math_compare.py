"""What counts as the same answer. Each pair is certain: it follows from the definition of what is written."""

import itertools
import random

import pytest

from reward.math.compare import compare
from reward.math.tokens import UnreadableError


def equal(gold, answer):
    try:
        return compare(gold, answer) == "equal"
    except UnreadableError:
        return False


SAME = {
    "spelling": [
        ("\\frac{\\sqrt3}{2}", "\\dfrac{\\sqrt{3}}{2}"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, pi/2)"),
        ("2\\sqrt{113}", "2*sqrt(113)"),
        ("\\sqrt{5}", "√5"),
        ("2\\pi", "2π"),
        ("x^2", "x**2"),
        ("x^{2}", "x²"),
        ("\\frac14", "\\frac{1}{4}."),
        ("3, 5, 7", "3,5,\\text{ and }7"),
        ("10^{3}", "1 000"),
        ("1-\\frac{1}{\\mathrm e}", "1-\\frac1e"),
    ],
    "value": [
        ("2\\sqrt3", "\\sqrt{12}"),
        ("\\frac{\\sqrt3}{2}", "\\frac{3}{2\\sqrt3}"),
        ("i", "\\sqrt{-1}"),
        ("1+i\\sqrt3", "2e^{i\\pi/3}"),
        ("6-5i", "-5i+6"),
        ("120", "5!"),
        ("2\\ln 2", "\\ln 4"),
        ("1000", "1e3"),
        ("\\frac13", "0.\\overline{3}"),
        ("\\sqrt{2}", "1.41421356237"),
        ("4.123105625617661", "\\sqrt{17}"),
        ("\\frac{5\\sqrt{42}}{27}", "\\frac{10\\sqrt{10.5}}{27}"),
    ],
    "expression": [
        ("6r^2-4r-24", "2(3r^2-2r-12)"),
        ("\\frac{11+9a}{20}", "\\frac{11}{20}+\\frac{9a}{20}"),
        ("\\cot x", "\\frac{\\cos x}{\\sin x}"),
        ("2 \\sin b \\cos a", "2\\cos(a)\\sin(b)"),
        ("\\arcsin x", "\\sin^{-1} x"),
        ("p - q", "-q+p"),
        ("3\\mathbf{i}+4\\mathbf{j}", "4\\mathbf{j}+3\\mathbf{i}"),
    ],
    "label": [
        ("5", "x=5"),
        ("x=5", "5"),
        ("11", "x = 5+5+1 = 11"),
        ("\\frac13", "x = \\frac13 \\approx 0.33"),
        ("11", "x \\approx 11"),
        ("2x+3", "y = 2x+3"),
        ("f(x) = 2x+1", "2x+1"),
        ("5", "AB = 5"),
        ("(1,2)", "(x,y) = (1,2)"),
        ("1, 2", "x=1 \\text{ or } x=2"),
        ("n=1,2,3", "3,2,1"),
        ("(1,2)", "x=1, y=2"),
        ("0.56 = 56\\%", "0.56"),
    ],
    "unit": [
        ("10", "10 weeks"),
        ("5", "\\text{5 apples}"),
        ("125 \\text{ miles}", "125"),
        ("15\\mbox{ cm}^2", "15 \\text{ square centimeters}"),
        ("864 \\mbox{ inches}^2", "864"),
        ("10", "\\$10"),
        ("25\\pi", "25\\pi cm^2"),
        ("\\$18.90", "18.9"),
        ("28\\%", "28"),
        ("28\\%", "28 percent"),
        ("90^\\circ", "90"),
        ("90", "90 degrees"),
        ("\\frac{\\pi}{2}", "90^\\circ"),
        ("\\text{4:30 p.m.}", "4:30"),
        ("14 \\text{ right triangles}", "14\\text{ triangles}"),
    ],
    "several": [
        ("1,-2", "-2, 1"),
        ("\\{1,2\\}", "2,1"),
        ("\\{1,2\\}", "\\{2,1,1\\}"),
        ("1 \\pm \\sqrt{19}", "1-\\sqrt{19}, 1+\\sqrt{19}"),
        ("\\{1\\pm\\sqrt{5},-2\\}", "-2, 1+\\sqrt5, 1-\\sqrt5"),
        ("(1,2), (3,4)", "(3,4), (1,2)"),
        ("(1,\\frac92)", "(1,4.5)"),
        ("(1,3)", "{1,3}"),
        ("AB=9, CD=4", "CD=4, AB=9"),
        ("\\begin{pmatrix} -7 \\\\ 16 \\end{pmatrix}", "\\langle -7, 16 \\rangle"),
        ("\\begin{pmatrix} 1/5 \\\\ -18/5 \\end{pmatrix}", "\\frac15\\begin{bmatrix} 1 \\\\ -18 \\end{bmatrix}"),
        ("3:5", "3 : 5"),
    ],
    "set": [
        ("(2,\\infty)", "x>2"),
        ("[-2,7]", "-2 \\le x \\le 7"),
        ("-2 \\le x \\le 7", "x \\in [-2,7]"),
        ("(-\\infty,2)\\cup(3,\\infty)", "x<2 \\text{ or } x>3"),
        ("(-\\infty,2)\\cup(2,\\infty)", "\\mathbb{R}\\setminus\\{2\\}"),
        ("(-\\infty,2)\\cup(2,\\infty)", "x \\neq 2"),
        ("(-\\infty,\\infty)", "\\mathbb{R}"),
        ("[0,3)", "[0,2) \\cup [1,3)"),
        ("[1,2]", "[0,2] \\cap [1,5)"),
        ("\\emptyset", "\\{\\}"),
        ("\\{x \\mid x > 2\\}", "(2,\\infty)"),
        ("[a+b, b]", "[b+a, b]"),
        ("x < 1", "-x > -1"),
        ("s^2 \\le 8r^2", "8r^2 \\geq s^2"),
        ("-80\\leq g(x)\\leq 82", "82 \\ge g(x) \\ge -80"),
    ],
    "equation": [
        ("2x+4y-3=0", "y=-\\frac{1}{2}x+\\frac{3}{4}"),
        ("34x+45y-20z+100=0", "-34x-45y+20z-100=0"),
        ("x^2/4 + y^2/3 = 1", "x^2/16 + y^2/12 = 1/4"),
        ("(x-1)^2 + y^2 = 4", "x^2-2x+y^2=3"),
        ("xy=1", "y=\\frac1x"),
        ("x \\equiv 3 \\pmod 5", "3 \\pmod{5}"),
    ],
    "text": [
        ("\\text{east}", "East"),
        ("\\text{Evelyn}", "\\mathrm{Evelyn}"),
        ("\\text{(C)}", "C"),
        ("C", "(C)"),
        ("\\text{A,B}", "B, A"),
        ("\\text{ellipse}", "\\text{an ellipse}"),
        ("\\mbox{four}", "4"),
        ("2516_8", "2516_{8}"),
    ],
}
DIFFERENT = {
    "value": [
        ("1-\\frac{1}{\\mathrm e}", "1+\\frac{1}{\\mathrm e}"),
        ("1/2^{99}", "1/2^{98}"),
        ("1/2004!", "1/2006!"),
        ("\\frac13", "0.3333"),
        ("\\pi", "3.14"),
        ("3.14", "\\pi"),
        ("\\frac{22}{7}", "\\pi"),
        ("\\sqrt{2}", "\\pm\\sqrt{2}"),
        ("\\pm 2021", "2021"),
        ("4", "4\\sqrt2"),
        ("11", "11_2"),
        ("2516_8", "2516_9"),
        ("2516_8", "2516"),
        ("-5", "5"),
    ],
    "expression": [
        ("x^2+3x-6", "x^3+3x-6"),
        ("x+2n+1", "x+1"),
        ("(a+5)(b+2)", "(+5)(b+2)"),
        ("p-q", "q-p"),
        ("\\frac12", "\\frac12 x"),
        ("A", "a"),
        ("LQSX", "LSQX"),
    ],
    "label": [
        ("x=1", "y=1"),
        ("7 = 11a+c", "11a+c"),
        ("a+3z=0", "0"),
        ("2x+z=1", "1"),
        ("5", "2+2 = 5"),
        ("(1,2)", "y=1, x=2"),
        ("AB=9, CD=4", "4, 9"),
        ("5", "x > 5"),
    ],
    "unit": [
        ("50", "50\\%"),
        ("0.5", "50\\%"),
        ("0.28", "28"),
        ("5.4 \\text{ cents}", "\\$5.40"),
        ("15\\mbox{ cm}^2", "15\\text{ cm}"),
        ("2\\text{ cm}", "2\\text{ m}"),
        ("9\\text{ a.m.}", "9\\text{ p.m.}"),
        ("\\frac{\\pi}{6}", "60^\\circ"),
        *[("5", f"5 {word}") for word in ("million", "dozen", "or 6", "squared", "hundred", "half", "to 7", "or more")],
        *[("5", f"\\text{{{text}}}") for text in ("5 or 6", "5 million", "about 5", "not 5", "5 minus 1")],
    ],
    "several": [
        ("(1,2)", "(2,1)"),
        ("3, 5, 7", "3, 5"),
        ("3, 5", "3, 5, 5"),
        ("19, 46, 82", "21, 36, 82"),
        ("32349", "32, 349"),
        ("3:5", "5:3"),
        ("12:00", "1:00"),
        ("n=1,2,3", "n=2,3,4"),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}1&2\\\\3&5\\end{pmatrix}"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1&2\\end{pmatrix}"),
        ("\\text{A,B}", "A"),
    ],
    "set": [
        ("(0,9)", "[0,9)"),
        ("(2,\\infty)", "[2,\\infty)"),
        ("(0,9)\\cup(9,36)", "(0,36)"),
        ("1", "-[0,1)"),
        ("x > 5", "x < 5"),
        ("x > 5", "x \\ge 5"),
        ("x > 5", "y > 5"),
        ("x \\in [1,2]", "b \\in [1,2]"),
        ("D = (0,1)", "D = (0,1.5)"),
        ("s^2 \\le 8r^2", "s^2 \\geq 8r^2"),
    ],
    "equation": [
        ("3*x-1*y+13=0", "3x+4y+14=0"),
        ("y = 2x+3", "x = 2y+3"),
        ("x^2+y^2=25", "x^2+y^2=5"),
    ],
    "text": [
        ("\\text{east}", "\\text{west}"),
        ("\\text{even}", "\\text{not even}"),
        ("\\text{(C)}", "\\text{(D)}"),
        ("\\text{C}", "c"),
        ("\\mbox{four}", "5"),
    ],
}


@pytest.mark.parametrize(("gold", "answer"), [pair for pairs in SAME.values() for pair in pairs])
def test_the_same_answer_written_differently_is_equal(gold, answer):
    assert equal(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), [pair for pairs in DIFFERENT.values() for pair in pairs])
def test_another_answer_is_never_equal(gold, answer):
    assert not equal(gold, answer)


def test_gold_answers_equal_themselves_and_1500_random_pairs_of_different_ones_do_not():
    golds = [gold for pairs in (*SAME.values(), *DIFFERENT.values()) for gold, _ in pairs]
    kinds: list[str] = []
    for gold in dict.fromkeys(golds):
        if not any(equal(kind, gold) or equal(gold, kind) for kind in kinds):
            kinds.append(gold)
    assert all(equal(kind, kind) for kind in kinds)
    pairs = random.Random(0).sample(list(itertools.permutations(kinds, 2)), 1500)
    assert [pair for pair in pairs if equal(*pair)] == []


def test_a_one_sided_unit_is_not_symmetric():
    assert equal("28\\%", "28")
    assert not equal("28", "28\\%")
