"""What others wrote is never believed: a right answer or the one error, in bounded memory, inert wherever it ends."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import dialect, engine, progress, recipe, scrape, table, tables, wire
from bench.conclusion import conclude
from bench.errors import BenchError
from bench.records import Folder
from bench.stats import LevelRow
from bench.workload import WorkloadFile
from tests.fuzz.targets import TARGETS, spared
from tests.test_report import run_folder
from tests.test_tables import GOOD

Row = Callable[..., LevelRow]
DEEP = "[" * 100_000


# --- whatever is changed in whatever is read ---


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_as_it_should_be_is_taken(name: str, tmp_path: Path) -> None:
    """Else the fuzzer would look at errors alone."""
    for number, seed in enumerate(TARGETS[name].seeds()[:1]):
        (tmp_path / str(number)).mkdir()
        if name in ("toml", "lines"):
            spared(TARGETS[name].feed, seed, tmp_path / str(number))
        else:
            TARGETS[name].feed(seed, tmp_path / str(number))


@pytest.mark.parametrize("name", ["run", "published", "recipe", "config", "foreign", "lines"])
def test_a_changed_document_is_an_answer_or_the_one_error(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    seeds = TARGETS[name].seeds()

    @settings(max_examples=80, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(st.sampled_from(list(seeds)), st.binary(min_size=8, max_size=40)))
    def holds(data: bytes) -> None:
        spared(TARGETS[name].feed, data, tmp_path_factory.mktemp("fed"))

    holds()


@pytest.mark.parametrize("name", ["toml", "rawforeign", "metrics", "log", "sse", "http"])
def test_a_changed_text_is_an_answer_or_the_one_error(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    seeds = list(TARGETS[name].seeds())
    pieces = st.sampled_from(
        [b'"', b"{", b"}", b"nan", b"1e999", b"-1", b"9" * 5000, b"\n", b"\r\n", b"\0", b"\xff", b"="]
    )

    @settings(max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(seeds), st.integers(0, 400), st.integers(0, 30), st.one_of(pieces, st.binary(max_size=30)))
    def holds(seed: bytes, at: int, gone: int, instead: bytes) -> None:
        changed = seed[:at] + instead + seed[at + gone :]
        spared(TARGETS[name].feed, changed, tmp_path_factory.mktemp("fed"))

    holds()


# --- a gigabyte of it ---


READERS = {
    "run.json": "Folder(path).manifest()",
    "requests.jsonl": "Folder(path).records()",
    "server.jsonl": "list(Folder(path).rows('server.jsonl'))",
    "sessions.json": "bounded.document(path / 'sessions.json')",
    "x.toml": "recipe.load(str(path / 'x.toml'))",
    "config.json": "model.geometry(str(path))",
    "benchmarks.json": "foreign.read(path)",
}
BOUNDED = """
import resource, sys
from pathlib import Path
from bench import bounded, diagnosis, foreign, model, recipe
from bench.errors import BenchError
from bench.records import Folder
path = Path(sys.argv[1])
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (700 << 20),) * 2)
try:
    print({})
except BenchError as error:
    print("refused:", error.message)
"""


def read_within_bounds(folder: Path, what: str) -> str:
    ran = subprocess.run([sys.executable, "-c", BOUNDED.format(what), str(folder)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-500:]
    return ran.stdout


@pytest.mark.parametrize("name", READERS)
def test_a_gigabyte_in_one_line_is_refused_without_being_read(name: str, tmp_path: Path) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 30)
    assert f"refused: {tmp_path / name} is" in read_within_bounds(tmp_path, READERS[name])


def test_of_a_log_of_a_gigabyte_the_end_still_tells_why(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        file.truncate(1 << 30)
        file.seek(0, 2)
        file.write(b"\nValueError: the card fell out\n")
    assert "ValueError: the card fell out" in read_within_bounds(tmp_path, "diagnosis.diagnose(path / 'log')")


# --- what was found, each as it was ---


def test_a_chunk_of_less_than_nothing_is_no_endless_loop() -> None:
    response = wire.Response()
    with pytest.raises(ValueError, match="a chunk with a size of"):
        response.feed((0.0, 0.0, []), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-7\r\nxxxxx\r\n0\r\n\r\n")


def test_a_body_of_less_than_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a length of '-5'"):
        wire.Response().feed((0.0, 0.0, []), b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nxx")


@pytest.mark.parametrize(
    "event",
    [b'{"usage":{"prompt_tokens":"9"}}', b'{"usage":[1]}', b'{"usage":{"prompt_tokens":true}}', b'{"choices":7}',
     b'{"usage":{"prompt_tokens_details":5}}', b'{"metrics":{"queue_time_ms":1e999}}', b'{"choices":[{"delta":"x"}]}',
     b'{"choices":[{"finish_reason":{}}]}', DEEP.encode()],
)  # fmt: skip
def test_an_event_that_no_record_could_hold_is_refused_before_it_is_one(event: bytes) -> None:
    told = dialect.understand(b"data: " + event + b"\n\n", lambda _: wire.Stamp(0, 0))
    assert "no completion" in (told.error or "") or "nested" in (told.error or "")
    assert (told.usage, told.timing, told.finish_reason) == ({}, {}, None)


def test_what_a_metrics_page_has_no_number_for_was_not_measured() -> None:
    page = "vllm:num_requests_running nan\nvllm:num_requests_waiting\n# 7\nvllm:num_preemptions_total +Inf\n"
    assert set(scrape.parse(page).values()) == {None}
    assert (
        scrape.cache_facts(f'vllm:cache_config_info{{block_size="²",num_gpu_blocks="{"9" * 5000}"}} 1').blocks is None
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("turns = 3", f"turns = {'9' * 5000}"), "not a TOML file"),
        (("turns = 3", "turns = 900000"), "at most 10,000 turns"),
        (("turns = 3", "turns = { min = 1, max = 2, mean = 0, std = 1 }"), "mean 0 is less than one"),
        (("shared_tokens = 100", "shared_tokens = 10000000000000000"), "should be a number up to 1e+15"),
        (("turns = 3", f"turns = {DEEP}"), "not a TOML file"),
        (('"s"', '"a\\u001b[31mb"'), "control character"),
        (("turns = 3", "turns = 2026-11-21"), "turns should be a whole number"),
        (("[session]", "[arrivals]\nsessions_per_s = nan\n[session]"), "should be a number up to"),
    ],
)
def test_a_number_or_a_text_that_nobody_means_is_refused_by_its_key(
    tmp_path: Path, change: tuple[str, str], says: str
) -> None:
    (tmp_path / "x.toml").write_text(GOOD.replace(*change))
    with pytest.raises(BenchError) as caught:
        tables.read(tmp_path / "x.toml", WorkloadFile)
    assert says in caught.value.message


def test_a_flag_that_is_no_number_is_refused() -> None:
    with pytest.raises(BenchError, match="--max-model-len nan is not a number"):
        recipe.launch("cpu", "fp8", None, 1, True, ("--max-model-len", "nan")).context  # noqa: B018


def test_a_line_that_ends_in_no_space_of_json_is_torn_however_it_is_read(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "run")
    (folder.path / "server.jsonl").write_bytes(b"{}\x0b")
    assert folder.torn("server.jsonl")
    assert not list(folder.rows("server.jsonl"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("first_s", "1e999"), ("first_s", "NaN"), ("status", '"fine"'), ("concurrency", "0"), ("turn", "1.5"),
     ("prompt_tokens", "true"), ("session", "-100001"), ("error", "7"), ("turn", "9" * 30), ("end_s", "null")],
)  # fmt: skip
def test_a_record_that_no_request_can_have_is_damage_in_its_line(tmp_path: Path, field: str, value: str) -> None:
    folder = run_folder(tmp_path)
    rows = (folder.path / "requests.jsonl").read_text().splitlines()
    row = json.loads(rows[3])
    rows[3] = json.dumps(row).replace(f'"{field}": {json.dumps(row[field])}', f'"{field}": {value}')
    (folder.path / "requests.jsonl").write_text("\n".join(rows) + "\n")
    with pytest.raises(BenchError, match=r"requests.jsonl.*line 4"):
        folder.records()


def test_a_torn_line_is_left_out_and_said(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    file = folder.path / "requests.jsonl"
    whole = file.read_text()
    assert not folder.torn("requests.jsonl")
    file.write_text(whole + whole[:50])
    assert folder.torn("requests.jsonl")
    (warning,) = [one for one in conclude(folder).warnings if "torn" in one.what]
    assert "requests.jsonl" in warning.what
    assert not warning.fatal


def test_a_remembered_answer_that_is_damaged_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    vllm = tmp_path / "vllm"
    vllm.write_text("#!/bin/sh\necho '0.32 --kv-cache-dtype {auto,fp8}'\n")
    vllm.chmod(0o755)
    first = engine.ask((str(vllm),), lambda _: None)
    (note,) = (tmp_path / "cache").rglob("*.json")
    for damage in ("", "{}", DEEP, '{"version": 1, "flags": [2], "kv_dtypes": []}'):
        note.write_text(damage)
        assert engine.ask((str(vllm),), lambda _: None) == first


def test_a_help_text_that_is_no_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    vllm = tmp_path / "vllm"
    vllm.write_text("#!/bin/sh\nhead -c 20000000 /dev/zero | tr '\\0' '\\377'\n")
    vllm.chmod(0o755)
    with pytest.raises(BenchError, match="is not vLLM's") as caught:
        engine.ask((str(vllm),), lambda _: None)
    assert len(caught.value.message) < 1000


# --- where it ends: a screen, a spreadsheet, a folder ---

TRICKS = "a\x1b[2J\x1b]0;title\x07b\u202ec\x9bd\ud800e\rf"


def test_nothing_that_is_said_moves_the_cursor() -> None:
    out = io.StringIO()
    terminal = progress.Terminal(out)
    terminal.print(f"{TRICKS}\nsecond line")
    terminal.say(TRICKS)
    assert out.getvalue() == "a[2J]0;titlebcdef\nsecond line\na[2J]0;titlebcdef\n"


def test_an_error_shows_no_escape_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x\x1b[31m.toml").write_text("[")
    ran = subprocess.run(
        [sys.executable, "-m", "bench", "sweep", "--gpu", str(tmp_path / "x\x1b[31m.toml")], capture_output=True
    )
    assert ran.returncode == 2
    assert b"not a TOML file" in ran.stderr
    assert b"\x1b" not in ran.stderr


@pytest.mark.parametrize("name", ["=1+cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "'=x", "''", "'", "fp8", 'a,"b"\nc'])
def test_a_name_is_no_formula_in_a_spreadsheet_and_comes_back(name: str, row: Row) -> None:
    text = table.to_csv([row(variant=name)])
    (cells,) = csv.DictReader(io.StringIO(text))
    assert cells["variant"][:1] not in ("=", "+", "-", "@")
    assert table.from_csv(text) == [row(variant=name)]


def test_a_name_is_no_markup_in_a_table(row: Row) -> None:
    text = table.markdown([row(variant="a\n# b<img src=x onerror=alert(1)>\u202e"), row(variant="b")])
    assert "<" not in text
    assert "\n# b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("text", ["variant\nx", "variant,case,concurrency\na,b,9e9", "a,b\n1,2,3"])
def test_a_damaged_table_names_its_file(text: str) -> None:
    with pytest.raises(BenchError, match=r"there/levels.csv is damaged"):
        table.from_csv(text, "there/levels.csv")


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "..", "", "a/b", "\U00020000" * 90, "-rf", "\x1b[31m", "con\n"]
)
def test_any_name_is_one_folder_below(name: str, tmp_path: Path) -> None:
    place = tmp_path / tables.slug(name)
    place.mkdir()
    assert place.parent.resolve() == tmp_path.resolve()
    assert not place.name.startswith("-")
