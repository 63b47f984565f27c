"""Everything that reads what others wrote, by name: how it is fed from bytes, and seeds that are valid."""

import contextlib
import json
import shutil
import tempfile
import tomllib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import (
    capacity,
    compare,
    diagnosis,
    dialect,
    difference,
    export,
    foreign,
    inert,
    model,
    publish,
    recipe,
    report,
    scrape,
    side,
    tables,
    wire,
    workload,
)  # fmt: skip
from bench.conclusion import conclude
from bench.errors import BenchError
from bench.records import Folder
from tests.fuzz.mutations import Choices, dumped, mutated, scratched
from tests.test_diagnosis import ENGINE
from tests.test_foreign import aiperf, guidellm, guidellm_request, vllm
from tests.test_report import run_folder
from tests.test_scrape import PAGE

HERE = Path(__file__).parent.parent.parent
Feed = Callable[[bytes, Path], None]  # into an empty folder


@dataclass(frozen=True, slots=True)
class Target:
    feed: Feed
    seeds: Callable[[], Sequence[bytes]]


def spared(feed: Feed, data: bytes, folder: Path) -> None:
    """An answer or the one error: anything else goes up. Numbers that overflow are no answer either."""
    said = ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            feed(data, folder)
        except BenchError as error:
            said = error.message
        except OSError as error:
            if error.filename is None:  # else the command says which file
                raise
    inert.screen(said).encode()
    assert len(said) < 10_000, "nobody reads that"


# --- files that a person wrote ---


def _shipped() -> list[bytes]:
    return [path.read_bytes() for folder in ("launch", "workloads") for path in sorted((HERE / folder).glob("*.toml"))]


def _toml(data: bytes, folder: Path) -> None:
    path = folder / "x.toml"
    path.write_bytes(data)
    for into in (recipe.RecipeFile, workload.WorkloadFile):
        with contextlib.suppress(BenchError):
            tables.read(path, into)
    with contextlib.suppress(BenchError):
        _launched(recipe.launch(str(path), "fp8", None, 1, True, ()))
    _played(workload.load(str(path)))


def _launched(launch: recipe.Launch) -> None:
    launch.arguments("m", 1)
    assert all("\0" not in f"{name}{value}" and "=" not in name for name, value in launch.environment().items())
    found = capacity.expected(launch).tokens
    if found is not None and capacity.speed(launch) is not None and launch.context:
        capacity.sessions_that_fit(found, workload.load("coding-agent"), 0)


def _played(work: workload.Workload) -> None:
    work.typical(sessions=2)
    next(work.sessions(0, 2))
    next(work.single_shots(0, 0.5))


def _recipe(data: bytes, folder: Path) -> None:
    """As a document, so that what is changed stays TOML."""
    choices = Choices(data)
    documents = [tomllib.loads(text.decode()) for text in _shipped()]
    document = documents[choices.pick(len(documents))]
    if "serve" in document:
        file = tables.convert(mutated(document, choices), recipe.RecipeFile, "x")
        _launched(recipe.Launch("x", file, "d", "fp8", file.serve.model, extra=("--max-model-len", "8k")))
    else:
        _played(workload.Workload("x", tables.convert(mutated(document, choices), workload.WorkloadFile, "x"), "d"))


def _config(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    shipped = sorted((HERE / "launch/models").glob("*.json"))
    document = mutated(json.loads(shipped[choices.pick(len(shipped))].read_text()), choices)
    (folder / "config.json").write_bytes(scratched(dumped(document), choices))
    found = model.geometry(str(folder))
    assert found is None or found.weights_bytes >= 0


# --- a run's folder ---


def _lines(data: bytes, folder: Path) -> None:
    for file in ("requests.jsonl", "server.jsonl"):
        (folder / file).write_bytes(data)
    run = Folder(folder)
    torn = run.torn("requests.jsonl")
    found = len(list(run.rows("requests.jsonl")))
    lines = data.removesuffix(b"\n").split(b"\n")
    assert found + torn == len(lines) - (not lines[-1])
    for read in (run.records, lambda: list(run.rows("server.jsonl"))):
        with contextlib.suppress(BenchError):
            read()


def _line_seeds() -> list[bytes]:
    return [b'{"a":1}\n{"b":[2.5,null]}\n', _of_run()["requests.jsonl"][:600], b'{"a":1}\n{"b', b"\xff\n", b"[" * 3000]


FILES: dict[str, bytes] = {}


def _of_run() -> dict[str, bytes]:
    """Of a small run with a knee; read once."""
    if not FILES:
        folder = run_folder(Path(tempfile.mkdtemp()))
        common = {"variant": "fp8", "case": "realistic", "repeat": 0}
        for c in (1, 2):
            for second in range(3):
                counters = dict.fromkeys(scrape.SERIES, float(second))
                folder.append("server.jsonl", {**common, "concurrency": c, "t_s": 10.0 + second, **counters})
            pulse = {"wall_s": 1.0, "cpu_s": 0.5, "lag_p99_s": 0.01, "lag_max_s": 0.02, "gc_s": 0.0}
            folder.append("client.jsonl", {**common, "concurrency": c, **pulse})
        files = {path.name: path.read_bytes() for path in folder.path.iterdir()}
        run = json.loads(files["run.json"])
        launch = {"name": "l4", "digest": "d", "kv": "fp8", "model": "m", "tp": 1, "prefix_caching": True, "extra": []}
        card = {"price_usd_h": {"value": 0.9, "source": "s"}}
        launch |= {"file": {"serve": {"model": "m"}, "kv": {"fp8": {}}, "caveat": "c", "card": card}}
        now = {"cache": {"block_size": 16, "tokens": 4000}, "version": "1", "models": ["m"]}
        run["variants"]["fp8"] |= {"launch": launch, "settings": [now, now]}
        run["variants"]["fp8"]["server"]["model"] = "m"
        run["variants"]["fp8"]["capacity"] = {"tokens": 4000, "bytes_per_token": 36864, "why": "w"}
        FILES.update(files | {"run.json": dumped(run)})
        shutil.rmtree(folder.path.parent)
    return FILES


def _changed(files: dict[str, bytes], choices: Choices, folder: Path) -> None:
    """In each file a document, or one a line."""
    for name, text in files.items():
        if name.endswith(".jsonl"):
            lines = mutated([json.loads(line) for line in text.splitlines()], choices)
            text = b"\n".join(map(dumped, lines if isinstance(lines, list) else [lines])) + b"\n"
        elif name.endswith(".json"):
            text = dumped(mutated(json.loads(text), choices))
        (folder / name).write_bytes(scratched(text, choices))


def _run(data: bytes, folder: Path) -> None:
    """To all that is made of it."""
    _changed(_of_run(), Choices(data), folder)
    done = conclude(Folder.open(folder))
    told = [*report.files(done).values(), report.closing(done, Folder(folder)), report.cautions(done)]
    for form in export.FORMS:
        with contextlib.suppress(BenchError):
            told += export.export(done.run, done.rows, done.records, form).values()
    b"".join(text.encode() for text in told)
    (found,) = side.read(folder)
    differs = compare.compare([found], [found])
    (difference.text(differs) + difference.markdown(differs)).encode()
    with contextlib.suppress(BenchError):
        place = publish.publish(done, folder / "results")
        assert place.resolve().is_relative_to((folder / "results").resolve())


def _published(data: bytes, folder: Path) -> None:
    """A published run, and the index that it is in."""
    home = HERE / "results"
    place = next(iter(sorted(home.glob("*/*/*/*/run.json")))).parent.relative_to(home)
    files = {name: (home / place / name).read_bytes() for name in ("run.json", "sessions.json", "levels.csv")}
    (folder / place).mkdir(parents=True)
    plays = json.loads(files["sessions.json"])["plays"]
    few = [play | {"sessions": play["sessions"][:3]} for play in plays if play["concurrency"] < 8]
    files["sessions.json"] = dumped({"schema": 1, "plays": few})
    _changed(files, Choices(data), folder / place)
    publish.index(folder)
    (found,) = side.read(folder / place)
    difference.text(compare.compare([found], [found])).encode()


# --- what other tools wrote ---


def _foreign(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    results = _foreign_results()
    result = mutated(results[choices.pick(len(results))], choices)
    documents = result if isinstance(result, list) else [result]
    (folder / "x.json").write_bytes(scratched(b"\n".join(map(dumped, documents)), choices))
    found = foreign.read(folder / "x.json")
    if found is not None:
        a = side.read(folder / "x.json")
        difference.text(compare.compare(a, a)).encode()


def _foreign_results() -> list[Any]:
    requests = [guidellm_request(10.0 + at) for at in range(3)]
    return [
        [vllm()],
        [vllm(), vllm(latencies=[1.0, 1.0, 1.0])],
        [aiperf("s", turn, 300.0 * turn) for turn in range(3)],
        [guidellm(({"type_": "concurrent", "streams": 2}, requests))],
    ]


def _raw_foreign(data: bytes, folder: Path) -> None:
    (folder / "x.json").write_bytes(data)
    foreign.read(folder / "x.json")


# --- what a server says ---


def _metrics(data: bytes, folder: Path) -> None:
    page = data.decode(errors="replace")
    sample, facts = scrape.parse(page), scrape.cache_facts(page)
    json.dumps(sample, allow_nan=False)
    assert facts.tokens is None or facts.tokens >= 0


def _log(data: bytes, folder: Path) -> None:
    (folder / "log").write_bytes(data)
    diagnosis.stage(folder / "log")
    why, _ = diagnosis.diagnose(folder / "log")
    assert len(why) <= 400


def _sse(data: bytes, folder: Path) -> None:
    """The body of an answer, as a record would be made of it."""
    with contextlib.suppress(ValueError):  # is a failed request
        answer = dialect.understand(data, lambda at: wire.Stamp(float(at), float(at)))
        details = answer.usage.get("prompt_tokens_details") or {}
        numbers = (
            answer.usage.get("prompt_tokens"),
            answer.usage.get("completion_tokens"),
            details.get("cached_tokens"),
        )
        assert {int, type(None)} >= set(map(type, numbers))
        assert isinstance(answer.finish_reason, str | None)


def _http(data: bytes, folder: Path) -> None:
    """Whole, and split where the first bytes say: the same either way, if it is an answer either way."""
    choices = Choices(data)
    sizes = [1 + choices.pick(64) for _ in range(4)]
    found = [
        _response(choices.rest(), sizes) for choices, sizes in ((Choices(data[4:]), [len(data)]), (choices, sizes))
    ]
    assert None in found or found[0] == found[1]


def _response(data: bytes, sizes: list[int]) -> tuple[int, bytes, bool] | None:
    response, at = wire.Response(), 0
    try:
        while at < len(data) and not response.whole:
            response.feed((0.0, 0.0, []), data[at : at + sizes[0]])
            at, sizes = at + sizes[0], [*sizes[1:], sizes[0]]
        response.closed()
    except ValueError:
        return None
    return (response.status, response.body, True) if response.whole else None


EVENTS = (
    b'data: {"choices":[{"text":"w1","finish_reason":null}]}\n\n'
    b'data: {"choices":[{"text":"w2","finish_reason":"length"}],"usage":null}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":8}}'
    b',"metrics":{"queue_time_ms":1.5,"time_to_first_token_ms":20.0}}\n\ndata: [DONE]\n\n'
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def _answers() -> list[bytes]:
    error = b'data: {"error":{"message":"oh","code":500}}\n\ndata: [DONE]\n\n'
    return [EVENTS, EVENTS.replace(b"\n", b"\r\n"), b": ping\n\n" + EVENTS, error, EVENTS[:90]]


def _responses() -> list[bytes]:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (EVENTS[:50], EVENTS[50:])) + b"0\r\n\r\n"
    plain = b"Content-Length: %d\r\n\r\n%b" % (len(EVENTS), EVENTS)
    return [
        b"\1\2\3\4" + HEAD + rest for rest in (b"Transfer-Encoding: chunked\r\n\r\n" + chunks, plain, b"\r\n" + EVENTS)
    ]


def _choices() -> list[bytes]:
    """For documents that are changed: unchanged, and a few changes."""
    return [b"", *(bytes([a % 4, *range(a, a + 12)]) for a in range(0, 240, 16))]


TARGETS = {
    "toml": Target(_toml, _shipped),
    "recipe": Target(_recipe, _choices),
    "config": Target(_config, _choices),
    "lines": Target(_lines, _line_seeds),
    "run": Target(_run, _choices),
    "published": Target(_published, _choices),
    "foreign": Target(_foreign, _choices),
    "rawforeign": Target(_raw_foreign, lambda: [b"\n".join(map(dumped, one)) for one in _foreign_results()]),
    "metrics": Target(_metrics, lambda: [PAGE.encode()]),
    "log": Target(_log, lambda: [f"{ENGINE}ValueError: x\n(APIServer pid=6) oh\nKV cache size\n".encode()]),
    "sse": Target(_sse, _answers),
    "http": Target(_http, _responses),
}
