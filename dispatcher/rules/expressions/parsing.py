"""Jinja's lexer and parser, with character offsets, limits on size and depth, and messages for people.

The nodes that come out carry in `lineno` the offset of their token in the source, not a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.lexer import TOKEN_INTEGER, TOKEN_OPERATOR, TOKEN_RAW_END, TOKEN_STRING, TokenStream, get_lexer
from jinja2.parser import Parser

from dispatcher.rules.expressions.faults import TemplateProblem

MAX_SOURCE = 64 * 1024
MAX_TOKENS = 5_000
MAX_DEPTH = 50

_MAX_DIGITS = 40
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_SOUND_ESCAPES = re.compile(
    r"""(?:[^\\]|\\(?:[\\'"abfnrtv\n]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|N\{[^}]*\}|[0-3]?[0-7]{1,2}))*+""",
    re.DOTALL,
)
_UNEXPECTED_CHARACTER = re.compile(r"unexpected char .* at \d+")
_EXPECTED_TOKEN = re.compile(r"expected token '(.*?)', got '(.*)'", re.DOTALL)
_UNCLOSED_BLOCK = re.compile(r"innermost block that needs to be closed is '(\w+)'")
_UNKNOWN_TAG = re.compile(r"Encountered unknown tag '(\w+)'")
_IN_WORDS = {
    "end of print statement": "}}",
    "begin of print statement": "{{",
    "end of statement block": "%}",
    "end of template": "the end",
    "template data / text": "text",
}
_CHARACTER_HINTS = {
    "&": 'write "and"',
    "!": 'write "not", or "!=" to compare',
    "?": 'write "a if condition else b"',
    "$": "names stand without a $",
    "#": "comments {# #} stand in texts only",
    "`": "quote with ' or \"",
    "\\": "a backslash stands in quoted text only",
    "“": 'use straight quotes: "',
    "”": 'use straight quotes: "',
    "‘": "use straight quotes: '",  # noqa: RUF001
    "’": "use straight quotes: '",  # noqa: RUF001
    '"': "the quote is never closed",
    "'": "the quote is never closed",
}


def parse_template(source: str) -> nodes.Template:
    """Parse a text with `{{ }}`, `{% %}` and `{# #}`."""
    reader = _Reader(source)
    try:
        return reader.parser(None).parse()
    except TemplateSyntaxError as error:
        raise reader.problem(error) from error
    except RecursionError:
        raise _too_deep(0) from None


def parse_expression(source: str) -> nodes.Expr:
    """Parse an expression that stands without braces."""
    reader = _Reader(source)
    try:
        parser = reader.parser("variable")
        if parser.stream.eos:
            raise TemplateProblem("template_syntax", "an expression is expected, and nothing is there")
        node = parser.parse_expression()
        if not parser.stream.eos:
            raise reader.leftover(parser.stream.current.lineno, parser.stream.current.type)
    except TemplateSyntaxError as error:
        raise reader.problem(error) from error
    except RecursionError:
        raise _too_deep(0) from None
    return node


def check_source(source: str) -> None:
    """Refuse what no event may carry, and what is too long to be meant."""
    if len(source) > MAX_SOURCE:
        raise TemplateProblem("unsafe_template", f"the source is longer than {MAX_SOURCE // 1024} KiB")
    found = _UNSTORABLE.search(source)
    if found:
        raise TemplateProblem(
            "template_syntax", f"the character U+{ord(found.group()):04X} cannot be stored or sent", found.start()
        )


def _too_deep(offset: int) -> TemplateProblem:
    return TemplateProblem("unsafe_template", f"this is nested more than {MAX_DEPTH} deep", offset)


class _Reader:
    """One source on its way through Jinja's lexer and parser."""

    def __init__(self, source: str) -> None:
        check_source(source)
        self.source = source
        self.position = 0
        self.opened = 0

    def parser(self, state: str | None) -> Parser:
        """Make Jinja's parser read our tokens."""
        parser = Parser(_ENVIRONMENT, "")
        parser.stream = TokenStream(_LEXER.wrap(self._tokens(state), None, None), None, None)
        return parser

    def _tokens(self, state: str | None) -> Iterator[tuple[int, str, str]]:
        """Yield Jinja's tokens with their offset where Jinja has the line, and guard the parser's recursion."""
        depth = 0
        tokens = _LEXER.tokeniter(self.source, None, None, state)
        for _ in range(MAX_TOKENS + 1):
            try:
                _line, token, text = next(tokens)
            except StopIteration:
                return
            except TemplateSyntaxError as error:
                error.lineno = self._skip_space(self.position)
                raise
            if token.endswith("_begin") or token == TOKEN_RAW_END:
                # "{%-" has taken the space before it away: it is in the source, but in no token.
                self.position = self._skip_space(self.position)
                self.opened = self.position
            start = self.position
            if token == TOKEN_OPERATOR and text in _BRACKETS:
                depth += _BRACKETS[text]
                if depth > MAX_DEPTH:
                    raise _too_deep(start)
            elif token == TOKEN_INTEGER and len(text) > _MAX_DIGITS:
                raise TemplateProblem("unsafe_template", f"a number of {len(text)} digits is too large", start)
            elif token == TOKEN_STRING and "\\" in text and not _SOUND_ESCAPES.fullmatch(text):
                raise TemplateProblem(
                    "template_syntax", "this text has an unknown escape; a backslash itself is written \\\\", start
                )
            yield start, token, text
            self.position = self._after(start, text)
        raise TemplateProblem("unsafe_template", f"this has more than {MAX_TOKENS} parts", self.position)

    def _skip_space(self, position: int) -> int:
        while position < len(self.source) and self.source[position].isspace():
            position += 1
        return position

    def _after(self, position: int, text: str) -> int:
        """Advance over `text`, in which Jinja has made every line break a single line feed."""
        end = position + len(text)
        if "\r" in self.source:
            for line_break in re.finditer("\n", text):
                at = position + line_break.start()
                if self.source.startswith("\r\n", at):
                    position += 1
                    end += 1
        return end

    def leftover(self, offset: int, kind: str) -> TemplateProblem:
        """Say what stands where the expression should have ended."""
        rest = self.source[offset:]
        found = rest.split(maxsplit=1)[0][:20] if rest.strip() else "the end"
        if kind == "assign":
            return TemplateProblem("template_syntax", 'to compare, write "=="', offset, "==")
        if kind in ("variable_end", "data"):
            return TemplateProblem("template_syntax", 'an expression stands without "{{" and "}}"', offset)
        return TemplateProblem("template_syntax", f'"{found}" is not expected here', offset)

    def problem(self, error: TemplateSyntaxError) -> TemplateProblem:
        """Turn a syntax error of Jinja's into words that say what to write instead."""
        message, offset = error.message or "", error.lineno
        character = _UNEXPECTED_CHARACTER.match(message)
        if character:
            found = self.source[offset]
            hint = _CHARACTER_HINTS.get(found)
            return TemplateProblem(
                "template_syntax", f'unexpected character "{found}"' + (f": {hint}" if hint else ""), offset
            )
        expected = _EXPECTED_TOKEN.match(message)
        if expected:
            wanted, found = (_IN_WORDS.get(word, word) for word in expected.groups())
            wanted = {"name": "a name", "string": "a quoted text"}.get(wanted, f'"{wanted}"')
            if found == "=" and wanted == '"}}"':
                return TemplateProblem("template_syntax", 'to compare, write "=="', offset, "==")
            return TemplateProblem("template_syntax", f'{wanted} is expected, but "{found}" found', offset)
        if message.startswith(("unexpected end of template", "Missing end of")):
            return TemplateProblem(
                "template_syntax",
                f'the "{self.source[self.opened : self.opened + 2]}" here is never closed',
                self.opened,
            )
        if message in ("unexpected 'end of template'", "unexpected 'end of print statement'"):
            return TemplateProblem("template_syntax", "the expression ends too early: a value is missing", offset)
        if message == "unexpected '}'":
            return TemplateProblem("template_syntax", 'a single "}" stands here; the end is written "}}"', offset)
        if message.startswith("Expected an expression"):
            return TemplateProblem("template_syntax", "an expression is expected, and nothing is there", offset)
        block = _UNCLOSED_BLOCK.search(message)
        if block and message.startswith("Unexpected end of template"):
            return TemplateProblem("template_syntax", f"{{% {block.group(1)} %}} is never closed", self.opened)
        unknown = _UNKNOWN_TAG.match(message)
        if unknown:
            return TemplateProblem("template_syntax", f"{{% {unknown.group(1)} %}} is not expected here", offset)
        message = _FOR_PEOPLE.sub(lambda match: _IN_WORDS[match.group()], message).replace(
            "Jinja was", "The parser was"
        )
        return TemplateProblem("template_syntax", message.rstrip("."), offset)


# Only the parser is used: nothing is ever compiled or rendered by Jinja.
_ENVIRONMENT = Environment(keep_trailing_newline=True, autoescape=False)  # noqa: S701 - texts, never HTML
_LEXER = get_lexer(_ENVIRONMENT)
_BRACKETS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}
_FOR_PEOPLE = re.compile("|".join(map(re.escape, _IN_WORDS)))
