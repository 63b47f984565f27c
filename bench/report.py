"""What a run says when it is over: its verdict in sentences, its table, its conditions; on the screen and as files."""

import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from bench import audit, capacity, knee, stats, table
from bench.load import Level
from bench.recipe import Launch
from bench.records import Folder, TurnRecord
from bench.stats import LevelRow


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
    folder.write("levels.csv", table.to_csv(rows))
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


def markdown(run: dict[str, Any], rows: Sequence[LevelRow]) -> str:
    """The study's table and its conditions, ready to be pasted."""
    verdict = [f"- {text}" for text in sentences(run)]
    told = [f"- {text}" for text in conditions(run)]
    return "\n".join([f"# {title(run)}", "", *verdict, "", table.markdown(rows), "## Conditions", "", *told, ""])


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
    parts = [title(done.run), "", table.text(done.rows), *wrap, "", f"{stamp}. Files: {folder.path}"]
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
