"""What a person sees: the line that moves while a run runs, its table, its verdict, and the same as files."""

import csv
import io
import re
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from typing import Any, TextIO

from bench import audit, capacity, knee, stats
from bench.load import Level
from bench.recipe import Launch
from bench.records import Folder, TurnRecord
from bench.server import Endpoint
from bench.stats import METRICS, LevelRow

# On a screen of 80 characters; table.md has all of them.
COLUMNS = {
    "ttft_p50_s": 8,
    "ttft_p95_s": 7,
    "ttft_p99_s": 7,
    "req_per_s": 5,
    "eligible_hit_rate": 6,
    "lost_tokens": 5,
    "unlucky": 7,
    "errors": 6,
    "duration_s": 6,
}
ALL_COLUMNS = (*COLUMNS, "requests", "preemptions", "kv_usage_max", "prefix_hit_rate", "tpot_p50_s", "late_p99_s")


@dataclass(frozen=True, slots=True)
class Conclusion:
    run: dict[str, Any]
    rows: list[LevelRow]
    warnings: list[audit.Warning]

    @property
    def valid(self) -> bool:
        return bool(self.run["verdict"]["valid"])


def conclude(folder: Folder) -> Conclusion:
    """Everything a run says, from its records alone; the same today and in a year."""
    run, records = folder.manifest(), folder.records()
    samples = list(folder.rows("server.jsonl"))
    rows: list[LevelRow] = []
    warnings: list[audit.Warning] = []
    verdicts: dict[str, Any] = {}
    for variant, facts in run["variants"].items():
        own = [record for record in records if record.variant == variant]
        here = list(_rows(run, variant, own, [sample for sample in samples if sample["variant"] == variant]))
        rows += here
        if "server" in facts and own:
            told = {**facts["server"], "hits": _hits(samples, variant)}
            exact = facts["dialect"]["name"].startswith("token ids")
            warnings += audit.audit(own, here, told, exact)
        verdicts[variant] = knee.verdict(here, knee.parse_slo(run["slo"]), _predicted(run, facts))
    if run["ended"] != "finished":
        why = "its numbers are those of the levels that were reached"
        warnings.append(audit.Warning(f"the run did not finish: {run['ended']}", why, "run it again", fatal=True))
    first = next(iter(verdicts.values()))
    run["verdict"] = {
        **first,
        "valid": bool(rows) and not any(warning.fatal for warning in warnings),
        "warnings": [asdict(warning) for warning in warnings],
        "variants": verdicts,
    }
    folder.write("levels.csv", to_csv(rows))
    folder.write("table.md", markdown(run, rows))
    folder.write_manifest(run)
    return Conclusion(run, rows, warnings)


def _rows(
    run: dict[str, Any], variant: str, records: Sequence[TurnRecord], samples: Sequence[dict[str, Any]]
) -> Iterator[LevelRow]:
    """The levels that were played to their end."""
    turns: dict[tuple[str, int], list[TurnRecord]] = {}
    for record in records:
        if record.turn > 0 and record.status != "cut":
            turns.setdefault((record.case, record.concurrency), []).append(record)
    for level in run["levels"]:
        name = (level["case"], level["concurrency"])
        found = turns.get(name, [])
        if level["variant"] == variant and len(found) == level["requests"] * run["repeats"]:
            yield stats.reduce(found, [s for s in samples if (s["case"], s["concurrency"]) == name])


def _hits(samples: Sequence[dict[str, Any]], variant: str) -> float | None:
    """Hit tokens by the server's counter, over all levels."""
    own = [sample for sample in samples if sample["variant"] == variant]
    runs = [list(group) for _, group in groupby(own, lambda s: (s["case"], s["concurrency"], s["repeat"]))]
    growth = [stats.growth(level, "prefix_hits") for level in runs]
    measured = [value for value in growth if value is not None]
    return sum(measured) if measured else None


def _predicted(run: dict[str, Any], facts: dict[str, Any]) -> float | None:
    tokens = facts.get("server", {}).get("cache", {}).get("tokens")
    typical = run["typical"]
    if tokens is None:
        return None
    return capacity.fit(tokens, typical["shared_tokens"], typical["own_tokens"] + typical["output_tokens"])


# --- text ---


def to_csv(rows: Sequence[LevelRow]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, [field.name for field in fields(LevelRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return out.getvalue()


def header() -> str:
    return "  ".join(["  C", *(METRICS[name].title.rjust(width) for name, width in COLUMNS.items())])


def line(row: LevelRow) -> str:
    return "  ".join([f"{row.concurrency:3}", *(stats.show(row, name).rjust(width) for name, width in COLUMNS.items())])


def table(rows: Sequence[LevelRow]) -> str:
    several = len({row.variant for row in rows}) > 1
    parts = []
    for (variant, case), group in groupby(rows, lambda row: (row.variant, row.case)):
        name = f"{variant}, {case}" if several else case
        parts += [f"{name}: {CASE_TEXT.get(case, CASE_TEXT['miss'])}", header(), *map(line, group), ""]
    return "\n".join(parts)


CASE_TEXT = {
    "realistic": "sessions, each turn extending the one before",
    "best": "single requests at full depth, all but the newest tokens cached",
    "worst": "single requests at full depth, only the shared prompt cached",
    "miss": "single requests at full depth, that share of them with only the shared prompt cached",
}


def markdown(run: dict[str, Any], rows: Sequence[LevelRow]) -> str:
    """The study's table and its conditions, ready to be pasted."""
    titles = ["C", *(METRICS[name].title for name in ALL_COLUMNS)]
    parts = [f"# {title(run)}", "", *[f"- {text}" for text in sentences(run)], ""]
    for (variant, case), group in groupby(rows, lambda row: (row.variant, row.case)):
        parts += [f"## {variant}, {case}", "", _cells(titles), _cells(["---:"] * len(titles))]
        parts += [_cells([str(row.concurrency), *(stats.show(row, name) for name in ALL_COLUMNS)]) for row in group]
        parts.append("")
    parts += ["## Conditions", "", *[f"- {text}" for text in conditions(run)], ""]
    return "\n".join(parts)


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def title(run: dict[str, Any]) -> str:
    first = next(iter(run["variants"].values()))
    where = first["launch"]["name"] if first["launch"] else first.get("server", {}).get("base_url", "endpoint")
    return plain(f"{run['workload']['name']} on {where}, {', '.join(run['variants'])}")


def plain(text: str) -> str:
    """Names come from files and servers: none of them gets to move the cursor."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "", text)


def sentences(run: dict[str, Any]) -> list[str]:
    """The verdict, a sentence a thing."""
    several = len(run["variants"]) > 1
    texts: list[str] = []
    for name, verdict in run["verdict"]["variants"].items():
        prefix = f"{name}: " if several else ""
        texts += [prefix + text for text in _sentences(verdict)]
    caveats = {v["launch"]["file"]["caveat"] for v in run["variants"].values() if v["launch"]}
    texts += [caveat for caveat in caveats if caveat]
    return texts


def _sentences(verdict: dict[str, Any]) -> list[str]:
    found, predicted, ceiling = verdict["knee"], verdict["predicted_knee"], verdict["ceiling"]
    highest = verdict["highest"]
    if highest is None:
        return ["No level was played to its end."]
    texts = []
    if found:
        texts.append(f"Knee: between {found[0]} and {found[1]} sessions (seen in {verdict['seen_in']}).")
    else:
        texts.append(f"Knee: none up to {highest} sessions.")
    if predicted is not None:
        off = ""
        if found:
            near = min(max(predicted, found[0]), found[1])
            off = ", inside the bracket" if near == predicted else f", {abs(predicted - near):.1f} away from it"
        texts.append(f"Predicted: {predicted:.1f} sessions fit into the cache the server reported{off}.")
    if verdict["cause"]:
        texts.append(f"Cause: {verdict['cause']}.")
    if ceiling is None:
        texts.append(f"Ceiling: no level measured keeps {verdict['slo']}.")
    else:
        more = " (the highest level measured)" if ceiling == highest else ""
        texts.append(f"Ceiling: {ceiling} sessions keep {verdict['slo']}{more}.")
    return texts


def conditions(run: dict[str, Any]) -> list[str]:
    machine = run["machine"]
    texts = [
        f"{run['started']}, bench {machine['bench']}: `{' '.join(run['argv'])}`, seed {run['seed']}, salt {run['salt']}"
    ]
    cards = ", ".join(f"{gpu['name']} (driver {gpu['driver']})" for gpu in machine["gpus"]) or "no GPU"
    texts.append(
        f"{machine['cpu']}, {machine['cores']} cores, {cards}, {machine['system']}, Python {machine['python']}"
    )
    texts.append(
        f"workload {run['workload']['name']} ({run['workload']['digest']}): {run['workload']['file']['summary']}"
    )
    for name, facts in run["variants"].items():
        told, expected = facts.get("server"), facts.get("capacity")
        if told:
            tokens = told["cache"]["tokens"]
            reported = "not told" if tokens is None else f"{tokens:,} tokens"
            sum_of = f" (arithmetic: {expected['tokens']:,})" if expected and expected["tokens"] is not None else ""
            texts.append(
                f"{name}: vLLM {told['version']}, KV cache {reported}{sum_of}, prompts as {facts['dialect']['name']}"
            )
            texts.append(f"{name}: `{told['command'] or told['base_url']}`")
    return [plain(text) for text in texts]


def closing(done: Conclusion, folder: Folder) -> str:
    """What stands on the screen when a run is over."""
    width = min(100, shutil.get_terminal_size().columns)
    wrap = [textwrap.fill(text, width, subsequent_indent="  ", break_on_hyphens=False) for text in sentences(done.run)]
    stamp = "VALID" if done.valid else "NOT VALID"
    parts = [title(done.run), "", table(done.rows), *wrap, "", f"{stamp}. Files: {folder.path}"]
    return "\n".join(parts)


def cautions(done: Conclusion) -> str:
    mark = {True: "NOT VALID", False: "warning"}
    return "\n".join(f"{mark[w.fatal]}: {w.what}: {w.why}. Try: {w.try_next}" for w in done.warnings)


def rehearsal(
    levels: Mapping[str, Sequence[Level]], launches: Mapping[str, Launch], forecasts: Mapping[str, capacity.Forecast]
) -> str:
    """What a run would do."""
    parts = []
    for name, played in levels.items():
        sizes = "  ".join(f"{level.concurrency}({level.requests})" for level in played if level.case == "realistic")
        parts.append(f"{name}: sessions (requests): {sizes}")
        if ends := [f"{at.case} at {at.concurrency}({at.requests})" for at in played if at.case != "realistic"]:
            parts.append("  " + "  ".join(ends))
        if name in launches:
            size, fit = forecasts[name].capacity, forecasts[name].sessions
            counted = f"{size.tokens:,} tokens, " if size.tokens is not None else ""
            parts.append(f"  KV cache: {counted}{size.why}" + (f"; {fit:.1f} sessions fit" if fit is not None else ""))
            parts.append(f"  {_command(launches[name])}")
    guesses = [forecasts[name].duration_s if name in forecasts else None for name in levels]
    total = sum(guess for guess in guesses if guess is not None)
    duration = "not known" if None in guesses else f"about {max(1, round(total / 60))} min, a first-order guess"
    return "\n".join([*parts, f"Expected duration: {duration}."])


def _command(launch: Launch) -> str:
    env = [f"{key}={shlex.quote(value)}" for key, value in launch.environment().items()]
    model = "RUN/model" if launch.model.startswith("synthetic:") else launch.model
    line = shlex.join(launch.arguments(model, 0)).replace("--port 0", "--port FREE")
    return " ".join((*env, *launch.file.serve.before, "vllm", line))


# --- while it runs ---


class Terminal:
    """Progress: one moving line on a terminal, plain lines anywhere else."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stderr
        self.moving = self.out.isatty()
        self._shown = ""
        self._drawn_at = 0.0
        self._level: Level | None = None
        self._records: list[TurnRecord] = []
        self._began = 0.0
        self._left_s: float | None = None
        self._heading = ("", "")

    def say(self, text: str) -> None:
        """A state that the next one replaces; elsewhere than on a terminal only when it is another one."""
        if self.moving:
            width = shutil.get_terminal_size().columns - 1
            self.out.write(f"\r\x1b[2K{text[:width]}")
        elif text and text.partition(" (")[0] != self._shown:
            self._shown = text.partition(" (")[0]
            self.out.write(f"{text}\n")
        self.out.flush()

    def print(self, text: str) -> None:
        """A line that stays."""
        self.out.write(f"\r\x1b[2K{text}\n" if self.moving else f"{text}\n")
        self.out.flush()

    def server_ready(self, target: Endpoint, expected: capacity.Capacity | None, started_s: float) -> None:
        version = f"vLLM {target.version}" if target.version else "a server that does not tell its version"
        tokens = target.cache.tokens
        size = "KV cache not told" if tokens is None else f"KV cache {tokens:,} tokens"
        sum_of = ""
        if expected is not None:
            counted = "" if expected.tokens is None else f"{expected.tokens:,}: "
            sum_of = f" (arithmetic: {counted}{expected.why})"
        took = f", up after {started_s:.0f} s" if target.process is not None else ""
        self.print(f"{version} with {target.model}{took}. {size}{sum_of}.")

    def level_begins(self, level: Level, left_s: float | None) -> None:
        self._level, self._records, self._left_s = level, [], left_s
        self._began = time.perf_counter()
        if self._heading != (level.variant, level.case):
            self._heading = (level.variant, level.case)
            self.print(f"{level.variant}, {level.case}: {CASE_TEXT.get(level.case, CASE_TEXT['miss'])}")
            self.print(header())

    def turn_ended(self, record: TurnRecord) -> None:
        if record.turn > 0:
            self._records.append(record)
        if self.moving and time.perf_counter() - self._drawn_at > 0.25 and self._records:
            self._drawn_at = time.perf_counter()
            self.say(self._progress())

    def _progress(self) -> str:
        assert self._level is not None
        values = [float("inf") if record.ttft_s is None else record.ttft_s for record in self._records]
        middle, tail = stats.percentile(values, 0.5), stats.percentile(values, 0.99)
        eligible = sum(record.eligible_tokens for record in self._records if record.lost_tokens is not None)
        lost = sum(record.lost_tokens or 0 for record in self._records)
        hit = f"  hit {1 - lost / eligible:.0%}" if eligible else ""
        left = "" if self._left_s is None else f"  {_minutes(self._left_s - (time.perf_counter() - self._began))} left"
        numbers = f"p50 {stats.seconds(middle or 0)}  p99 {stats.seconds(tail or 0)}{hit}{left}"
        return f"C = {self._level.concurrency}  {len(self._records)} of {self._level.requests} requests  {numbers}"

    def level_ended(self, row: LevelRow) -> None:
        self.print(line(row))


def _minutes(seconds: float) -> str:
    return f"about {max(1, round(seconds / 60))} min" if seconds > 45 else "under a minute"
