"""Mutants of C++ and CUDA sources: of function bodies, and of nothing else.

The sources are formatted by clang-format, which tells a binary `<`, `*` or `&` (spaces on both sides) from a template's
bracket, a pointer or a reference (no space before it): no parser is needed.
"""

import re
from collections.abc import Iterator

from .common import Edit, Mutant, other_floats, other_integers, siblings, strides_like, to_mutant

TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<comment>//[^\n]*|/\*.*?\*/)
      | (?P<directive>\#(?:\\\n|[^\n])*)
      | (?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\\n])+')
      | (?P<number>(?:0[xX][\da-fA-F']+|(?:\d[\d']*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)[uUlLfF]*)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<operator><<=|>>=|->|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|::|[^\w\s])""",
    re.VERBOSE | re.DOTALL,
)
BINARY = {
    **{"<": ("<=", "comparison"), "<=": ("<", "comparison"), ">": (">=", "comparison"), ">=": (">", "comparison")},
    **{"==": ("!=", "comparison"), "!=": ("==", "comparison"), "&&": ("||", "logic"), "||": ("&&", "logic")},
    **{"&": ("|", "logic"), "|": ("&", "logic"), "+": ("-", "sign"), "-": ("+", "sign")},
    **{"*": ("+", "product"), "/": ("*", "product"), "%": ("/", "index")},
}
ASSIGNMENTS = {"+=": "-=", "-=": "+=", "*=": "+=", "/=": "*="}
EXTREMA = {"min": "max", "minimum": "maximum", "fmin": "fmax", "fminf": "fmaxf"}
EXTREMA |= {high: low for low, high in EXTREMA.items()}
TYPES = {"struct", "class", "union", "enum", "namespace"}
# They change no value, or the program's shape rather than its arithmetic.
LEFT_ALONE = {"static_assert", "constexpr", "using", "typedef", "template", "alignas", "extern", "asm", "goto"}
NOT_A_STATEMENT = LEFT_ALONE | {"return", "if", "for", "while", "do", "else", "switch", "break", "continue", "default"}
NOT_A_STATEMENT |= {"const", "auto", "static", "__shared__", "throw"}
ATTRIBUTES = {"__launch_bounds__", "__attribute__", "alignas", "decltype", "noexcept", "explicit"}
OPEN, CLOSE = {"(": ")", "[": "]", "{": "}"}, {")", "]", "}"}


class Token:
    def __init__(self, kind: str, text: str, start: int, spaced: bool):
        self.kind, self.text, self.start, self.stop = kind, text, start, start + len(text)
        self.spaced = spaced  # white space, or a comment, before it


def tokens(source: str) -> list[Token]:
    """Tokens but comments and directives."""
    found, spaced = [], True
    for match in TOKEN.finditer(source):
        if match.lastgroup in ("space", "comment", "directive"):
            spaced = True
        else:
            found.append(Token(match.lastgroup, match[0], match.start(), spaced))
            spaced = False
    return found


def mutants(file: str, source: str) -> list[Mutant]:
    """Every mutant of one file."""
    all_tokens = tokens(source)
    return [
        to_mutant(file, name, source, edit)
        for name, first, last in functions(all_tokens)
        for edit in _Body(source, all_tokens, first, last).edits()
    ]


def functions(all_tokens: list[Token]) -> Iterator[tuple[str, int, int]]:
    """Name of each function, and the tokens of its body, a constructor's initialisers included: first and last."""
    at, head = 0, 0
    while at < len(all_tokens):
        text = all_tokens[at].text
        if text == "{" and (name := _function_name(all_tokens[head:at])):
            last = matching(all_tokens, at)
            yield name, _initialisers(all_tokens, head, at), last
            at = head = last + 1
            continue
        if text in ("{", "}", ";") or (text == ":" and all_tokens[at - 1].text in ("public", "private", "protected")):
            head = at + 1
        at += 1


def _function_name(head: list[Token]) -> str | None:
    """What the head of a block declares, if that is a function."""
    texts = [token.text for token in head]
    while texts and texts[0] == "template":
        depth, at = 0, 1
        while at < len(texts):
            depth += texts[at].count("<") - texts[at].count(">") if texts[at] in ("<", ">", ">>", "<<") else 0
            at += 1
            if depth <= 0:
                break
        texts = texts[at:]
    named = [i for i in range(1, len(texts)) if texts[i] == "(" and texts[i - 1] not in ATTRIBUTES]
    if not named or "=" in texts[: named[0]] or TYPES & set(texts[: named[0]]):
        return None
    return texts[named[0] - 1]


def _initialisers(all_tokens: list[Token], head: int, at: int) -> int:
    """The colon between a constructor's parameters and its body at `at`, if there is one, else `at`."""
    while head < at and all_tokens[head].text != ":":
        head = matching(all_tokens, head) + 1 if all_tokens[head].text == "(" else head + 1
    return head


def matching(all_tokens: list[Token], at: int) -> int:
    """Of the bracket that closes the one at `at`."""
    depth = 0
    for i in range(at, len(all_tokens)):
        depth += (all_tokens[i].text in OPEN) - (all_tokens[i].text in CLOSE)
        if depth == 0:
            return i
    raise ValueError(f"no bracket closes the one at character {all_tokens[at].start}")


class _Body:
    """Edits of one function's body."""

    def __init__(self, source: str, all_tokens: list[Token], first: int, last: int):
        self.source, self.tokens, self.first, self.last = source, all_tokens, first, last
        self.skipped: set[int] = set()
        self.names: dict[str, int] = {}
        head = first
        while head > 0 and all_tokens[head - 1].text not in ("{", "}", ";"):
            head -= 1  # names of parameters count
        for i in range(head, last):
            if all_tokens[i].kind == "name":
                self.names.setdefault(all_tokens[i].text, i)
            if i > first:
                self.skipped.update(range(i, self._left_alone_until(i)))

    def _left_alone_until(self, i: int) -> int:
        """Where what begins at token i, and is not to be mutated, ends; i if it is."""
        text, before = self.text(i), self.text(i - 1)
        if before == "if" and text == "constexpr":
            return matching(self.tokens, i + 1)
        if text == "case":
            return self._end(i, (":",))
        return self._end(i) if text in LEFT_ALONE and before not in (".", "->", "::") else i

    def edits(self) -> Iterator[Edit]:
        for i in range(self.first + 1, self.last):
            if i not in self.skipped:
                yield from getattr(self, f"_{self.tokens[i].kind}", self._nothing)(i)

    def _nothing(self, i: int) -> Iterator[Edit]:
        return iter(())

    def text(self, i: int) -> str:
        return self.tokens[i].text

    def code(self, first: int, last: int) -> str:
        """Source of tokens first .. last - 1."""
        return self.source[self.tokens[first].start : self.tokens[last - 1].stop] if last > first else ""

    def replace(self, kind: str, first: int, last: int, text: str) -> Edit:
        """Replace tokens first .. last - 1."""
        return Edit(kind, self.tokens[first].start, self.tokens[last - 1].stop, text)

    def binary(self, i: int) -> bool:
        return self.tokens[i].spaced and self.tokens[i + 1].spaced

    def _end(self, i: int, stops=(";",)) -> int:
        """First token after i at its depth that is one of `stops`, or closes the bracket around it."""
        while i < self.last and self.text(i) not in stops and self.text(i) not in CLOSE:
            i = matching(self.tokens, i) + 1 if self.text(i) in OPEN else i + 1
        return i

    def _begin(self, i: int, stops) -> int:
        """First token of the operand that ends before i."""
        depth = 0
        while i - 1 > self.first:
            text = self.text(i - 1)
            depth += (text in CLOSE) - (text in OPEN)
            if depth < 0 or (depth == 0 and text in stops):
                break
            i -= 1
        return i

    # Edits, by kind of token.

    def _operator(self, i: int) -> Iterator[Edit]:
        text = self.text(i)
        if text in BINARY and self.binary(i):
            new, kind = BINARY[text]
            if not (kind == "comparison" and self._chooses_an_operand(i)):
                yield self.replace(kind, i, i + 1, new)
            if text == "&&":
                ends = ("&&", "||", "?", ":", ";", ",", "=", "return")
                yield self.replace("mask", i, self._end(i + 1, ends), "")
                yield self.replace("mask", self._begin(i, ends), i + 1, "")
        elif text in ASSIGNMENTS and not self._steps_a_loop(i):
            yield self.replace("accumulation", i, i + 1, "=")
            yield self.replace("sign", i, i + 1, ASSIGNMENTS[text])
        elif text in ("-", "!", "~") and not self.tokens[i + 1].spaced:
            yield self.replace("sign" if text == "-" else "logic", i, i + 1, "")
        elif text == "?":
            colon = self._end(i + 1, (":",))
            end = self._end(colon + 1, (";", ",", ":"))
            if self.text(colon) == ":":
                swapped = f"{self.code(colon + 1, end)} : {self.code(i + 1, colon)}"
                yield self.replace("branch", i + 1, end, swapped)
        if text in (";", "{", "}"):
            yield from self._statement(i + 1)

    def _chooses_an_operand(self, i: int) -> bool:
        """`a < b ? b : a`, or `a < 0 ? T(0) : a`: with `<=` it is the same."""
        question = self._end(i + 1, ("?", "&&", "||", ";", ","))
        if self.text(question) != "?":
            return False
        colon = self._end(question + 1, (":",))
        end = self._end(colon + 1, (";", ",", ":"))
        begin = self._begin(i, ("=", "return", ",", ";", "{", "}", ":", "?", "&&", "||"))
        compared = {self._operand(begin, i), self._operand(i + 1, question)}
        return compared == {self._operand(question + 1, colon), self._operand(colon + 1, end)}

    def _operand(self, first: int, last: int) -> str:
        """The source of an operand, without the type that it is converted to."""
        called = self.tokens[first].kind == "name" and self.text(first + 1) == "("
        if called and matching(self.tokens, first + 1) == last - 1 and self.text(first)[0].isupper():
            return self.code(first + 2, last - 1)
        return self.code(first, last)

    def _steps_a_loop(self, i: int) -> bool:
        """Is it in the head of a `for`, which would never end?"""
        begin = self._begin(i, ())
        return self.text(begin - 1) == "(" and self.text(begin - 2) == "for"

    def _statement(self, i: int) -> Iterator[Edit]:
        """Removal of the call or assignment that starts at token i."""
        end = self._end(i)
        if self.text(end) != ";" or end - i < 3 or self.text(i) in NOT_A_STATEMENT or i in self.skipped:
            return
        if self.tokens[i].kind == "name" and self.tokens[i + 1].kind == "name":
            return  # a declaration
        depth, assigns = 0, False
        for j in range(i, end):
            depth += (self.text(j) in OPEN) - (self.text(j) in CLOSE)
            assigns |= depth == 0 and (self.text(j) == "=" or self.text(j) in ASSIGNMENTS)
            if depth == 0 and not assigns and self.tokens[j].spaced and self.tokens[j].kind == "name" and j > i:
                return  # a declaration such as `Tap<T>& tap = ...`
        if assigns or self.text(end - 1) == ")":
            yield self.replace("statement", i, end, "")

    def _number(self, i: int) -> Iterator[Edit]:
        before, after, text = self.text(i - 1), self.text(i + 1), self.text(i)
        if before == "<" or (after == ">" and not self.tokens[i + 1].spaced):
            return  # a template's argument
        if before == "[" and self._declares(i - 2):
            return  # the length of an array
        kind = "constant"
        if {before, after} & {"+", "-"}:
            kind = "offset"
        elif {before, after} & {"<", "<=", ">", ">=", "==", "!="}:
            kind = "bound"
        elif before == "[" and after == "]":
            kind = "index"
        digits = re.fullmatch(r"([\d.']+(?:[eE][+-]?\d+)?)([uUlLfF]*)", text)
        if not digits:
            return
        number, suffix = digits[1].replace("'", ""), digits[2]
        if number.isdigit() and "f" not in suffix.lower():
            others = [str(n) for n in other_integers(int(number))]
        else:
            others = [repr(x) for x in other_floats(float(number))]
        for other in others:
            yield self.replace(kind, i, i + 1, other + suffix)

    def _name(self, i: int) -> Iterator[Edit]:
        text, after = self.text(i), self.text(i + 1)
        if text in EXTREMA and after in ("(", "<"):
            yield self.replace("extremum", i, i + 1, EXTREMA[text])
        elif text == "if" and after == "(":
            end = matching(self.tokens, i + 1)
            condition = self.code(i + 2, end)
            yield self.replace("branch", i + 2, end, f"!({condition})")
            yield self.replace("mask", i + 2, end, f"true || ({condition})")
        if self._declares(i):
            return
        for other in siblings(text):
            if self.names.get(other, i) < i or (self.text(i - 1) in (".", "->") and other in self.names):
                yield self.replace("sibling", i, i + 1, other)
        for other in strides_like(text, self.names):
            yield self.replace("stride", i, i + 1, other)

    def _declares(self, i: int) -> bool:
        """Is token i the name that a declaration such as `const T* name` gives?"""
        before = self.tokens[i - 1]
        if before.text in ("*", "&", ">") and not before.spaced:
            return self.tokens[i].spaced
        return before.kind == "name" and before.text not in ("return", "else", "case")
