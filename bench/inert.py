"""Texts of others where they end up: none moves a cursor, turns a line round or is a formula."""

import re

# Control characters, those that change the direction of writing, and halves of characters, which no terminal takes.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
_OF_SCREEN = re.compile(f"[{_CONTROLS}]")
_OF_LINE = re.compile(f"[\t\n{_CONTROLS}]")
_FORMULA = ("=", "+", "-", "@", "'")


def line(text: str) -> str:
    return _OF_LINE.sub("", text)


def screen(text: str) -> str:
    """With its line breaks."""
    return _OF_SCREEN.sub("", text)


def markup(text: str) -> str:
    """Neither HTML nor another line in Markdown."""
    return line(text).replace("<", "&lt;")


def cell(text: str) -> str:
    """What a spreadsheet would compute is text to it behind an apostrophe."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def of_cell(text: str) -> str:
    return text.removeprefix("'") if text[1:].startswith(_FORMULA) else text
