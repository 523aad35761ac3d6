"""Read one YAML file into nodes with positions. The only importer of yaml.

Scalars are text (see `nodes`). Anchors, aliases, merges, tags and duplicate keys are refused; depth and size are
bounded, so that no file can blow up. A file is gone through twice: first for everything but its chains, then for the
chains, one at a time. What the chains refer to may stand behind them or in other files, and 50,000 chains need not be
in memory at once.
"""

from __future__ import annotations

import codecs
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from dispatcher.rules.nodes import Broken, Mapping, Node, Scalar, Sequence
from dispatcher.rules.problems import Problems
from dispatcher.rules.yamlhints import explain

LARGEST_FILE = 64 * 1024 * 1024
DEEPEST = 24
_CHUNK = 1 << 20
_BREAK = re.compile(rb"\r\n|\n|\r|\xc2\x85|\xe2\x80[\xa8\xa9]")
_COMMENT = re.compile(rb"[ \t]#")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_BOM = codecs.BOM_UTF8
# JSON writes a character beyond U+FFFF as the two halves of a surrogate pair, which YAML refuses.
_JSON = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\{")
_PAIR = re.compile(rb"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")

# libyaml is part of PyYAML's wheels; without it the pure parser does the same, some thirty times slower.
_Parser: Any = yaml.CBaseLoader if yaml.__with_libyaml__ else None
_ScalarEvent, _AliasEvent = yaml.ScalarEvent, yaml.AliasEvent
_MappingStart, _MappingEnd = yaml.MappingStartEvent, yaml.MappingEndEvent
_SequenceStart, _SequenceEnd = yaml.SequenceStartEvent, yaml.SequenceEndEvent

_Next = Callable[[], Any]


class _TooDeep(yaml.MarkedYAMLError):
    """Containers in containers without end. The rest is not read: the parser's time grows with the square of it."""


class RuleFile:
    """One file of a rulebook: its sections as nodes, its chains one by one, its lines for messages.

    `readable` is false when a part of the file could not be read: what it defines is then not fully known.
    """

    def __init__(self, path: Path, name: str, data: bytes, problems: Problems) -> None:
        self.path = path
        self.name = name
        self.readable = True
        self._data = data
        self._problems = problems
        self._starts: array[int] | None = None
        self._commented: frozenset[int] | None = None
        self._has_chains = False
        self._in_sections = True
        self.sections = self._read_sections()

    def chains(self) -> Iterator[Node]:
        """Read the chains, in order, each when it is asked for.

        In a file with a syntax error they end before the one in front of the error, which may be cut short.
        """
        if not self._has_chains:
            return
        take = _events(self._data)
        ready: Node | None = None
        try:
            for _ in ("the stream", "the document", "the mapping"):
                take()
            while type(key := take()) is not _ScalarEvent or key.value != "chains":
                self._skip(key, take)
                self._skip(take(), take)
            take()
            while type(event := take()) is not _SequenceEnd:
                if ready is not None:
                    yield ready
                ready = self._compose(event, take, 2)
            take()  # fails if the list was ended by an error rather than by its author
            if ready is not None:
                yield ready
        except yaml.YAMLError:
            return  # reported when the sections were read

    def lines(self, first: int, last: int) -> list[str]:
        """Return the text of these lines, counted from 1, without their ends."""
        starts = self._line_starts()
        rows = []
        for number in range(max(first, 1), min(last, len(starts)) + 1):
            end = starts[number] if number < len(starts) else len(self._data)
            row = self._data[starts[number - 1] : end].decode("utf-8", "replace")
            rows.append(row.rstrip("\r\n\x85\u2028\u2029").removeprefix("\ufeff"))
        return rows

    def comment_behind(self, scalar: Scalar) -> str | None:
        """Return the comment that ends an unquoted text on its line, from its "#", or None."""
        if scalar.style:
            return None
        if self._commented is None:
            starts = self._line_starts()
            self._commented = frozenset(bisect_right(starts, m.start()) for m in _COMMENT.finditer(self._data))
        if scalar.end_line not in self._commented:
            return None
        rest = self.lines(scalar.end_line, scalar.end_line)[0][scalar.end_column - 1 :]
        return rest.strip() if rest.lstrip(" \t").startswith("#") and rest[:1] in (" ", "\t") else None

    def _line_starts(self) -> array[int]:
        if self._starts is None:
            self._starts = array("Q", [0])
            self._starts.extend(found.end() for found in _BREAK.finditer(self._data))
        return self._starts

    def _read_sections(self) -> Mapping:
        members: dict[str, tuple[Scalar, Node]] = {}
        top = Mapping(members, 1, 1)
        if not self._is_text():
            return top
        take = _events(self._data)
        whole = False
        try:
            take()
            if type(take()) is yaml.StreamEndEvent:
                return top
            start = take()
            if type(start) is not _MappingStart:
                node = self._compose(start, take, 0)
                while type(take()) is not yaml.StreamEndEvent:
                    pass
                self._refuse_document(node)
                return top
            self._refuse_properties(start)
            mark: Any = start.start_mark
            top.line, top.column = mark.line + 1, mark.column + 1
            while type(event := take()) is not _MappingEnd:
                whole = True
                self._read_member(event, take, top, 0)
                whole = False
            take()
            behind = take()
            if type(behind) is not yaml.StreamEndEvent:
                self._refuse(behind.start_mark, "yaml_syntax", "a second document begins here; a rulebook is one")
        except _TooDeep as error:
            self._refuse(error.problem_mark, "yaml_syntax", f"this is nested more than {DEEPEST} levels deep")
        except yaml.MarkedYAMLError as error:
            self._explain(error)
            if members and not whole:
                # What stands right in front of the error may be cut short by it.
                members.popitem()
        except yaml.reader.ReaderError as error:
            self._refuse_character(error)
        finally:
            self._in_sections = False
        return top

    def _refuse_document(self, node: Node) -> None:
        if not (type(node) is Scalar and node.is_null):
            message = "a rulebook is a mapping with keys such as `version` and `chains`"
            self._problems.add(self.name, (node.line, node.column), "wrong_type", message)
            self.readable = False

    def _is_text(self) -> bool:
        if len(self._data) > LARGEST_FILE:
            self._note((1, 1), "yaml_syntax", f"larger than {LARGEST_FILE >> 20} MiB; split the file, see `include`")
            return False
        decoder = codecs.getincrementaldecoder("utf-8")()
        for start in range(0, len(self._data), _CHUNK):
            pending = len(decoder.getstate()[0])
            chunk = self._data[start : start + _CHUNK]
            try:
                decoder.decode(chunk, final=start + _CHUNK >= len(self._data))
            except UnicodeDecodeError as error:
                self._note_at(start - pending + error.start, "this is not UTF-8; save the file as UTF-8")
                return False
        control = _CONTROL.search(self._data)
        if control:
            code = control.group()[0]
            self._note_at(control.start(), f"a control character (U+{code:04X}), which no YAML file may hold")
            return False
        return True

    def _read_member(self, event: Any, take: _Next, mapping: Mapping, depth: int) -> None:
        """Read one key with its value into a mapping."""
        if type(event) is not _ScalarEvent:
            self._refuse_key(event, take, mapping, depth)
            return
        if event.anchor is not None or event.tag is not None:
            self._refuse_properties(event)
        key = _scalar(event)
        value_event = take()
        known = mapping.members.get(key.text)
        if type(value_event) is _ScalarEvent and known is None and key.text != "<<":
            if value_event.anchor is not None or value_event.tag is not None:
                self._refuse_properties(value_event)
            mapping.members[key.text] = (key, _scalar(value_event))
        elif key.text == "<<" and not key.style:
            self._refuse(event.start_mark, "anchor", "merges (`<<`) are not read in a rulebook; write the keys out")
            mapping.partial = True
            self._skip(value_event, take)
        elif known is not None:
            message = f"`{key.text}` stands here a second time; the first is in line {known[0].line}"
            self._problems.add(self.name, (key.line, key.column), "duplicate_key", message)
            self._skip(value_event, take)
        elif depth == 0 and key.text == "chains" and type(value_event) is _SequenceStart:
            self._refuse_properties(value_event)
            self._has_chains = True
            self._skip(value_event, take)
            mapping.members[key.text] = (key, Sequence([], key.line, key.column))
        else:
            mapping.members[key.text] = (key, self._compose(value_event, take, depth + 1))

    def _compose(self, event: Any, take: _Next, depth: int) -> Node:
        """Read the value that begins with this event."""
        kind = type(event)
        if kind is _ScalarEvent:
            if event.anchor is not None or event.tag is not None:
                self._refuse_properties(event)
            return _scalar(event)
        mark = event.start_mark
        if kind is _AliasEvent:
            message = f'aliases (`*{event.anchor}`) are not read; a text that begins with "*" needs quotes'
            self._refuse(mark, "anchor", message)
            return Broken(mark.line + 1, mark.column + 1)
        if event.anchor is not None or event.tag is not None:
            self._refuse_properties(event)
        if depth > DEEPEST:
            raise _TooDeep(problem_mark=mark)
        if kind is _SequenceStart:
            items: list[Node] = []
            while type(event := take()) is not _SequenceEnd:
                items.append(self._compose(event, take, depth + 1))
            return Sequence(items, mark.line + 1, mark.column + 1)
        members: dict[str, tuple[Scalar, Node]] = {}
        mapping = Mapping(members, mark.line + 1, mark.column + 1)
        while type(event := take()) is not _MappingEnd:
            self._read_member(event, take, mapping, depth)
        return Broken(mapping.line, mapping.column) if mapping.partial and not members else mapping

    def _refuse_key(self, event: Any, take: _Next, mapping: Mapping, depth: int) -> None:
        """Refuse a key that is no text. `{{ x }}` without quotes is read by YAML as a mapping that is a key."""
        mark = event.start_mark
        row = self.lines(mapping.line, mapping.line)[0][mapping.column - 1 :]
        if type(event) is _AliasEvent:
            self._refuse(mark, "anchor", f"aliases (`*{event.anchor}`) are not read in a rulebook")
        elif type(event) is _MappingStart and row.startswith("{{"):
            end = row.find("}}")
            written = row[: end + 2] if end > 0 else "{{ … }}"
            message = f"{written} without quotes is a mapping to YAML; put the whole value in quotes: '{written}'"
            self._note((mapping.line, mapping.column), "yaml_syntax", message)
        else:
            self._refuse(mark, "yaml_syntax", "a key is a text, not a list or a mapping; perhaps a value lacks quotes")
        mapping.partial = True
        self._skip(event, take)
        self._skip(take(), take)

    def _skip(self, event: Any, take: _Next) -> None:
        """Go past the value that begins with this event."""
        depth = 0
        while True:
            kind = type(event)
            if kind is _MappingStart or kind is _SequenceStart:
                depth += 1
                if depth > DEEPEST:
                    raise _TooDeep(problem_mark=event.start_mark)
            elif kind is _MappingEnd or kind is _SequenceEnd:
                depth -= 1
            if depth == 0:
                return
            event = take()

    def _refuse_properties(self, event: Any) -> None:
        mark = event.start_mark
        if event.anchor is not None:
            message = f'anchors (`&{event.anchor}`) are not read; a text that begins with "&" needs quotes'
            self._refuse(mark, "anchor", message)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            message = f'tags (`{tag}`) are not read; a text that begins with "!" needs quotes'
            self._refuse(mark, "anchor", message)

    def _explain(self, error: yaml.MarkedYAMLError) -> None:
        mark = error.problem_mark or error.context_mark
        context = error.context_mark
        line, column, message = explain(
            error.problem or "",
            error.context or "",
            (mark.line + 1, mark.column + 1) if mark else (1, 1),
            (context.line + 1, context.column + 1) if context else None,
            self.lines,
        )
        self._note((line, column), "yaml_syntax", message)
        self.readable = False

    def _refuse_character(self, error: yaml.reader.ReaderError) -> None:
        # libyaml counts bytes here, the pure parser characters; both are near enough to find it.
        self._note_at(int(error.position or 0), f"a character that no YAML file may hold: {error.reason}")

    def _refuse(self, mark: Any, code: str, message: str) -> None:
        self._note((mark.line + 1, mark.column + 1), code, message)

    def _note(self, place: tuple[int, int], code: str, message: str) -> None:
        # The parser is often lost right behind a `{{` that has a problem of its own.
        if code != "yaml_syntax" or not self._problems.has(self.name, place[0], code):
            self._problems.add(self.name, place, code, message)
        if self._in_sections:
            self.readable = False

    def _note_at(self, offset: int, message: str) -> None:
        """Note a problem at a byte of the file."""
        starts = self._line_starts()
        line = bisect_right(starts, offset)
        before = self._data[starts[line - 1] : offset].decode("utf-8", "replace").removeprefix("\ufeff")
        self._note((line, len(before) + 1), "yaml_syntax", message)


def _scalar(event: Any) -> Scalar:
    begin, end = event.start_mark, event.end_mark
    return Scalar(event.value, begin.line + 1, begin.column + 1, end.line + 1, end.column + 1, event.style or "")


def read_rulefile(path: Path, name: str, problems: Problems) -> RuleFile | None:
    """Read a file; `name` is what problems call it. None when there is no file to read, for `why_missing` to tell."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return RuleFile(path, name, data, problems)


def why_missing(path: Path) -> str:
    """Say why a file cannot be opened."""
    if path.is_dir():
        return "this is a folder; name the files in it, such as `folder/*.yaml`"
    if not path.exists():
        return "there is no such file"
    return "the file cannot be opened; look at its permissions"


def _events(data: bytes) -> _Next:
    if _JSON.match(data):
        data = _PAIR.sub(_joined, data)
    if _Parser is not None:
        take: _Next = _Parser(data).get_event
        return take
    pure: _Next = yaml.BaseLoader(data.removeprefix(_BOM).decode("utf-8")).get_event
    return pure


def _joined(pair: re.Match[bytes]) -> bytes:
    """Write a surrogate pair as the one escape that YAML has for it; columns behind it are two too small."""
    code = 0x10000 + ((int(pair[2], 16) - 0xD800) << 10) + int(pair[3], 16) - 0xDC00
    return pair[1] + b"\\U%08x" % code
