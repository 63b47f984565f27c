"""How a target is asked, and how what it says is read, once it is whole: until then others have to be heard."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from bench import bounded, shape
from bench.wire import Events, Stamp

# What stands in an event that is worth parsing; the others only carry text, which is copied as it stands.
TELLING = tuple(
    name + gap + value
    for name, value in ((b'"finish_reason":', b'"'), (b'"usage":', b"{"), (b'"metrics":', b"{"))
    for gap in (b"", b" ")
)
ERROR = re.compile(rb'"error":\s*(?!null)')
DONE = b"[DONE]"
NEVER = Stamp(0.0, 0.0)
SAID = 500  # characters of what a server says are kept
COUNTABLE = 1 << 53
STRING = rb'\s*"([^"\\]*(?:\\.[^"\\]*)*)"'
TEXT = {"/v1/completions": re.compile(rb'"text":' + STRING)}
CHAT_TEXT = re.compile(rb'"(?:content|reasoning_content)":' + STRING)
NEWER_CHAT_TEXT = re.compile(rb'"(?:content|reasoning)":' + STRING)  # some send the old name's copy with it
COUNT, TIME = (int, None), (float, None)
EVENT = {
    "choices?": (None, [{"finish_reason?": (str, None), "delta?": (dict, None)}]),
    "usage?": (
        None,
        {
            "prompt_tokens?": COUNT,
            "completion_tokens?": COUNT,
            "prompt_tokens_details?": (None, {"cached_tokens?": COUNT}),
        },
    ),
    "metrics?": (None, {"queue_time_ms?": TIME, "time_to_first_token_ms?": TIME}),
}
WORD = re.compile(rb"w(\d+)")
IDS = re.compile(rb'"token_ids":\s*\[([\d,\s]+)\]')


@dataclass(frozen=True)
class Dialect:
    """How a target takes prompts and gives answers. Found out by asking, and part of the record of a run."""

    name: str
    path: str
    opening: bytes  # of the JSON around the prompt
    closing: bytes
    words: tuple[bytes, ...]  # each one token, in the target's notation
    separator: bytes
    answers: Literal["word", "id", "text"]
    forced: bool  # output length can be forced
    reports_cached: bool = False
    reports_usage: bool = False

    def head(self, model: str) -> bytes:
        return b'{"model":' + json.dumps(model).encode() + b"," + self.opening

    def tail(self, output_tokens: int) -> bytes:
        asked: dict[str, Any] = {"max_tokens": output_tokens, "temperature": 0, "stream": True}
        asked["stream_options"] = {"include_usage": True}
        if self.forced:
            asked |= {"min_tokens": output_tokens, "ignore_eos": True}
        if self.answers == "id":
            asked["return_token_ids"] = True
        if self.answers == "word":
            asked["skip_special_tokens"] = False
        return self.closing + b"," + json.dumps(asked, separators=(",", ":")).encode()[1:]

    def answer(self, body: bytes) -> bytes:
        """What was generated, as the next prompt has to repeat it: copied out of the events, escapes and all."""
        if self.answers == "id":
            return b",".join(IDS.findall(body))
        chat = NEWER_CHAT_TEXT if b'"reasoning":' in body else CHAT_TEXT
        text = b"".join(TEXT.get(self.path, chat).findall(body)).strip()
        return text if self.answers == "text" else b",".join(WORD.findall(text))

    def tokens(self, answer: bytes) -> int | None:
        """Of an answer in this notation; how many a text has, only the server knows."""
        if self.answers == "text":
            return None
        return answer.count(b",") + 1 if answer else 0


@dataclass(slots=True)
class Answer:
    """What a stream said."""

    first: Stamp | None = None
    last: Stamp | None = None
    done: bool = False
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, Any] = field(default_factory=dict)  # vLLM's --enable-per-request-metrics
    error: str | None = None


def understand(body: bytes, when: Callable[[int], Stamp]) -> Answer:
    """Of all events only the few that tell something are parsed. What cannot be read is an error; what was read before
    stays."""
    answer = Answer()
    try:
        _take_in_all(answer, body, when)
    except (ValueError, RecursionError) as problem:
        answer.error = answer.error or said(f"the stream cannot be read: {problem}")
    return answer


def begun(body: bytes) -> bool:
    """A token is in it."""
    return understand(body, lambda _: NEVER).first is not None


def _take_in_all(answer: Answer, body: bytes, when: Callable[[int], Stamp]) -> None:
    events = Events(body)
    reached = 0
    for span in events.forward():
        _take_in(answer, events.data(span), span[1], when)
        reached = span[1]
        if answer.first is not None:
            break
    told = {events.around(found) for key in TELLING if (found := body.rfind(key)) >= reached}
    if body.rfind(b'"error":') >= 0:  # half the time of `in`
        told |= {events.around(found.start()) for found in ERROR.finditer(body, reached)}
    for telling in sorted(span for span in told if span):
        _take_in(answer, events.data(telling), telling[1], when)
    answer.done = _ended(body, events)


def _ended(body: bytes, events: Events) -> bool:
    """By [DONE], once and behind all else. What tells nothing is not parsed, but it has to look as it should."""
    if b"\0" in body:
        raise ValueError("a NUL is in it")
    if not body.isascii():
        body.decode()
    return events.tidy() or _ended_behind(body, events)


def _ended_behind(body: bytes, events: Events) -> bool:
    done, reached = False, 0
    for span in events.forward():
        reached = span[1]
        data = events.data(span)
        if data is None:
            continue
        if done:
            raise ValueError("something came after [DONE]")
        done = data == DONE
        if not done and not (data.lstrip().startswith(b"{") and data.rstrip().endswith(b"}")):
            raise ValueError(f"an event that is no completion: {data[:80]!r}")
    if done and body[reached:].strip():
        raise ValueError("something came after [DONE]")
    return done


def _take_in(answer: Answer, data: bytes | None, end: int, when: Callable[[int], Stamp]) -> None:
    if data is None or data == DONE:
        return
    event = bounded.parse(data.decode())
    if wrong := shape.misfit(event, EVENT):
        raise ValueError(f"an event that is no completion: {wrong}: {data[:80]!r}")
    if event.get("error"):
        answer.error = answer.error or error_text(event)
    answer.usage = event.get("usage") or answer.usage
    answer.timing = event.get("metrics") or answer.timing
    for choice in event.get("choices") or ():
        if answer.first is None and _is_token(choice):
            answer.first = when(end)
        if finish := choice.get("finish_reason"):
            answer.finish_reason, answer.last = said(finish), max(when(end), answer.first or NEVER)


def _is_token(choice: dict[str, Any]) -> bool:
    """Chat servers open with an event that only names the role: not a token yet. vLLM never sends an empty one."""
    delta = choice.get("delta") or {}
    return "text" in choice or any(
        delta.get(name) for name in ("content", "reasoning", "reasoning_content", "tool_calls")
    )


def count(told: dict[str, Any], name: str) -> int | None:
    """None where there is none, or something else."""
    value = told.get(name)
    return value if type(value) is int and 0 <= value < COUNTABLE else None


def cached(usage: dict[str, Any]) -> dict[str, Any]:
    details = usage.get("prompt_tokens_details")
    return details if isinstance(details, dict) else {}


def error_text(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    return said(error.get("message", error) if isinstance(error, dict) else error)


def said(what: object) -> str:
    """By a server, in our records and on a user's screen."""
    return "".join(letter if letter.isprintable() else " " for letter in str(what)[:SAID])
