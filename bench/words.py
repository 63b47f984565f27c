"""The verdict in sentences, and the conditions under which it holds: what every kind of report says."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bench import inert, manifest
from bench.stats import AT_LEAST, PERCENTILES, LevelRow, more_sessions, rate, seconds, share

TTFT = [f"ttft_{name}_s" for name in PERCENTILES]


def title(run: dict[str, Any]) -> str:
    first = next(iter(run["variants"].values()))
    where = first["launch"]["name"] if first["launch"] else first.get("server", {}).get("base_url", "endpoint")
    works = ", ".join(work["name"] for work in manifest.workloads(run))
    return plain(f"{works} on {where}, {', '.join(run['variants'])}")


def plain(text: str) -> str:
    """Names come from files and servers: none of them gets to move the cursor."""
    return inert.line(text)


def stamp(run: dict[str, Any]) -> str:
    verdict = run["verdict"]
    reasons = [warning["what"] for warning in verdict["warnings"] if warning["fatal"]]
    fine = "SIMULATED: nothing was measured" if run.get("simulated") else "VALID"
    text = fine if verdict["valid"] else f"INVALID: {'; '.join(reasons) or 'no level was played to its end'}"
    departs = verdict.get("departures")
    return plain(f"{text}. Departs from the published recipe: {'; '.join(departs)}" if departs else text)


OF_NUMBERS = ("enough sessions for every percentile", "repeats agree")  # more of the same would tell; said elsewhere


def unchecked(run: dict[str, Any]) -> list[str]:
    """What nobody could vouch for."""
    found = [check for check in run["verdict"]["checks"] if check["passed"] is None and check["name"] not in OF_NUMBERS]
    told = (f"whether {check['name']} ({check['detail']})" for check in found)
    return [plain(f"Could not be checked: {'; '.join(told)}.")] if found and not run.get("simulated") else []


def sentences(run: dict[str, Any]) -> list[str]:
    """The verdict, a sentence a thing."""
    several = len(run["variants"]) > 1
    texts: list[str] = []
    for name, verdict in run["verdict"]["variants"].items():
        prefix = f"{name}: " if several else ""
        texts += [prefix + text for text in _sentences(verdict)]
    launches = [facts["launch"] for facts in run["variants"].values() if facts["launch"]]
    # with the user's own flags or model it may no longer be true
    caveats = {
        launch["file"]["caveat"] for launch in launches
        if not launch["extra"] and launch["model"] == launch["file"]["serve"]["model"]
    }  # fmt: skip
    texts += [caveat for caveat in caveats if caveat]
    return [plain(text) for text in texts]


def _sentences(verdict: dict[str, Any]) -> Iterator[str]:
    if verdict["highest"] is None:
        yield _failed(verdict) or "No level was played to its end."
        return
    yield from filter(None, (_knee(verdict), _failed(verdict)))
    if verdict["cause"]:
        yield f"Cause: {verdict['cause']}."
    yield from _beside(verdict)
    if worth := verdict["cache_worth"]:
        yield (
            f"The cache: at {worth['level']} sessions {rate(worth['realistic'])} requests a second as played; at full "
            f"depth {rate(worth['best'])} with everything cached, {rate(worth['worst'])} with only the shared prompt."
        )
    if card := verdict.get("card"):
        yield from _card(card)
    if sdk := verdict.get("sdk"):
        yield _sdk(sdk)
    if (worst := verdict["worst_case"]) and worst["binding"]:
        yield f"Worst case: {worst['sentence']}."


def _failed(verdict: Mapping[str, Any]) -> str:
    levels = ", ".join(map(str, verdict.get("failed") or ()))
    return f"Failed: too many requests at {levels} sessions to say how slow the others were." if levels else ""


def _card(said: Mapping[str, Any]) -> Iterator[str]:
    money, energy = said["usd_per_1000_tasks"], said["joules_per_1000_tasks"]
    costs = [f"${money:,.2f}" if money else "", f"{energy / 1e6:.2f} MJ" if energy else ""]
    if any(costs):
        tasks = f"a thousand tasks of {said['turns']:.0f} turns each"
        yield f"Cost: at {said['level']} sessions {tasks} take {' and '.join(filter(None, costs))}."
    if said["matrix_share"] is not None:
        moved = "" if said["bandwidth_share"] is None else f" and {share(said['bandwidth_share'])} of its bandwidth"
        tokens = f"{said['prefill_tokens_per_s']:,.0f} prompt tokens computed and"
        tokens += f" {said['decode_tokens_per_s']:,.0f} answered a second"
        reached = f"at least {share(said['matrix_share'])} of its matrix rate{moved}"
        over = max(said["matrix_share"], said["bandwidth_share"] or 0.0) > 1
        doubt = " More than all of it: what it could do at most is stated too low." if over else ""
        yield f"The card: at {said['level']} sessions {reached}: {tokens}.{doubt}"


def _sdk(levels: list[dict[str, Any]]) -> str:
    """Where it takes most."""
    told = [one for one in levels if one["bench_ttft_p50_s"] is not None and one["sdk_ttft_p50_s"] is not None]
    if not told:
        return "Official SDK: no level was answered through both clients."
    worst = max(told, key=lambda one: float(one["sdk_ttft_p50_s"] - one["bench_ttft_p50_s"]))
    level, ours, theirs = worst["level"], worst["bench_ttft_p50_s"], worst["sdk_ttft_p50_s"]
    differ = f"{seconds(theirs)} at p50 where there were {seconds(ours)} to be seen"
    cpu = "" if worst["sdk_client_cpu"] is None else f", on {worst['sdk_client_cpu']:.0%} of a core"
    return f"Official SDK: at {level} sessions its users saw a TTFT of {differ}{cpu}."


def _luck(said: Mapping[str, Any]) -> str:
    theirs, others = said["unlucky_p50_s"], said["lucky_p50_s"]
    slow = "half of them failed" if theirs is None else f"their p50 is {seconds(theirs)}"
    rest = "" if others is None else f", the others' {seconds(others)}"
    return (
        f"Unlucky: at {said['level']} sessions {said['unlucky']} of {said['requests']} requests had lost their "
        f"history, the first at turn {said['first_turn']}; {slow}{rest}."
    )


def bracket(verdict: Mapping[str, Any]) -> str:
    """Where the knee lies, in few words."""
    if found := verdict["knee"]:
        return f"{found[0]} to {found[1]}"
    return f"below {verdict['below']}" if verdict.get("below") else f"none up to {verdict['highest'] or 0}"


def _knee(verdict: dict[str, Any]) -> str:
    found = verdict["knee"]
    if not found:
        already = ", the lowest level measured, which loses history already" if verdict.get("below") else ""
        return f"Knee: {bracket(verdict)} sessions{already}."
    sure = _sure(verdict["knee_confidence"])
    return f"Knee: between {found[0]} and {found[1]} sessions (seen in {verdict['seen_in']}{sure})."


def _sure(confidence: float | None) -> str:
    if confidence is None:
        return ""
    return ", over 99 % sure" if confidence > 0.99 else f", {confidence * 100:.0f} % sure"


def _prediction(said: dict[str, Any]) -> str:
    """The arithmetic before, the knee after, the error and what explains it."""
    if said["error"] is None:
        off = ""
    elif said["error"] == 0:
        off = ", inside the bracket"
    else:
        off = f", {abs(said['error']):.1f} {'above' if said['error'] > 0 else 'below'} it"
    fit = f"{said['predicted']:.1f} sessions fit into the cache the server reported{off}"
    return f"Predicted: {fit}; {said['explanation']}."


def _foretold(said: Mapping[str, Any]) -> Iterator[str]:
    """How far a simulation was off that was made before anything was played."""
    knee = any(off is not None for off in said["past"].values())
    sides = {"below the knee" if knee else "at these levels": said["below"], "past it": said["past"]}
    told = [f"{side} by {off}" for side, of in sides.items() if (off := _off(of))]
    if told:  # where nothing was answered, nothing was off
        yield f"Foretold: simulated before the first level was played; off, in the median, {'; '.join(told)}."


def _off(of: Mapping[str, float | None]) -> str:
    names = {"ttft_p50_s": "TTFT p50", "ttft_p99_s": "p99", "req_per_s": "req/s"}
    return ", ".join(f"{off * 100:.0f} % in {name}" for key, name in names.items() if (off := of[key]) is not None)


def _beside(verdict: dict[str, Any]) -> Iterator[str]:
    if luck := verdict["luck"]:
        yield _luck(luck)
    if verdict["prediction"]:
        yield _prediction(verdict["prediction"])
    if said := verdict.get("foretold"):
        yield from _foretold(said)
    yield _ceiling(verdict)
    if burst := verdict.get("burst"):
        these = f"{burst['first']} of the {burst['over']} requests that break it"
        text = f"Together: at {burst['level']} sessions {these} open the first sessions, all at once."
        yield f"{text} Where agents come one by one: --vary workload.arrivals.start=spread."
    if search := verdict.get("search"):
        yield _search(search, verdict)


def _search(said: dict[str, Any], verdict: dict[str, Any]) -> str:
    """Prediction and outcome side by side."""
    ceiling = "none" if verdict["ceiling"] is None else verdict["ceiling"]
    knees = f"the last level before the knee {said['predicted_knee']}, found {bracket(verdict)}"
    text = f"Search: predicted ({said['how']}) {knees}; the ceiling {said['predicted_ceiling']}, found {ceiling}"
    text += f"; by {said['levels']} levels, {said['requests']:,} requests, {seconds(said['server_s'])} of the server"
    return f"{text}. More than two sessions off: {said['why']}." if said["why"] else f"{text}."


def _ceiling(verdict: dict[str, Any]) -> str:
    ceiling = verdict["ceiling"]
    if ceiling is None:
        return f"Ceiling: no level measured keeps {verdict['slo']}."
    more = ", the highest level measured" if ceiling == verdict["highest"] and not verdict.get("failed") else ""
    sure = _sure(verdict["ceiling_confidence"]) + _surely(ceiling, *(verdict.get("ceiling_between") or (None, None)))
    return f"Ceiling: {ceiling} sessions keep {verdict['slo']}{f' ({(more + sure)[2:]})' if more or sure else ''}."


def _surely(ceiling: int, kept: int | None, broken: int | None) -> str:
    below = f"; {kept} surely do" if kept not in (None, ceiling) else ""
    return below + (f"; {broken} surely do not" if broken is not None else "")


def limits(run: Mapping[str, Any]) -> str:
    """What a card's shares are shares of; or what would tell them."""
    roofs = [facts["roof"]["source"] for facts in run["variants"].values() if facts.get("roof")]
    if roofs:
        return plain(f"What it could have done: {'; '.join(dict.fromkeys(roofs))}.")
    more = "a [roof] in the launch file says it (make roof), for models with full, uncompressed attention"
    return f"What it could have done is not known: {more}."


def footnotes(rows: Sequence[LevelRow]) -> list[str]:
    """What stands in the place of a number, and what would make it one."""
    return [
        *_few_sessions(rows),
        *_timed_out(rows),
        *(f"{_place(row)}: {row.why_none}." for row in rows if row.why_none),
    ]


def _few_sessions(rows: Sequence[LevelRow]) -> Iterator[str]:
    lacking = [most for row in rows if (most := max(more_sessions(row, name) for name in TTFT))]
    if lacking:
        span = f"{min(lacking)} to {max(lacking)}" if min(lacking) < max(lacking) else str(lacking[0])
        yield (
            f"{AT_LEAST} is the lower 95 % limit of a percentile that has too few independent requests for an upper "
            f"one: it needs {span} more sessions a level (--repeats, --requests). levels.csv has what was seen."
        )


def _timed_out(rows: Sequence[LevelRow]) -> Iterator[str]:
    places = [f"{_place(row)}: {row.at_least.replace(' ', ', ')}" for row in rows if row.at_least]
    if places:
        yield (
            f"{AT_LEAST} is all that is known where requests timed out ({'; '.join(places)}): they had waited so long "
            f"and may have waited longer. A longer --timeout shows it, more sessions do not."
        )


def _place(row: LevelRow) -> str:
    return plain(f"{row.variant}, {row.case}, C = {row.concurrency}")


def conditions(run: dict[str, Any]) -> list[str]:
    machine = run["machine"]
    command = shlex.join(run["argv"])
    texts = [f"{run['started']}, bench {machine['bench']}: `{command}`, seed {run['seed']}, salt {run['salt']}"]
    cards = ", ".join(f"{gpu['name']} (driver {gpu['driver']})" for gpu in machine["gpus"]) or "no GPU"
    texts.append(
        f"{machine['cpu']}, {machine['cores']} cores, {cards}, {machine['system']}, Python {machine['python']}"
    )
    works = manifest.workloads(run)
    texts += [f"workload {work['name']} ({work['digest']}): {work['file']['summary']}" for work in works]
    for name, facts in run["variants"].items():
        told, expected = facts.get("server"), facts.get("capacity")
        if told:
            tokens = told["cache"]["tokens"]
            reported = "not told" if tokens is None else f"{tokens:,} tokens"
            sum_of = f" (arithmetic: {expected['tokens']:,})" if expected and expected["tokens"] is not None else ""
            taken = facts["dialect"]["name"] if "dialect" in facts else "not asked"
            server = "no vLLM, simulated" if run.get("simulated") else f"vLLM {told['version']}"
            texts.append(f"{name}: {server}, KV cache {reported}{sum_of}, prompts as {taken}")
            texts.append(f"{name}: `{told['command'] or told['base_url']}`")
    return [plain(text) for text in texts]


def cliff(outlook: Mapping[str, Any]) -> str:
    height = f"{outlook['cliff_s']:.1f} s"
    return f"Past the knee a request may wait about {height}: as long as it takes to fill the cache anew."


def banded(outlook: Mapping[str, Any]) -> str:
    return plain(f"Expected of a real run, nine times in ten; constants: {outlook['source']}.")


def band(found: Sequence[float] | None, told: Callable[[float], str] = seconds) -> str:
    return "-" if found is None else f"{told(found[0])} to {told(found[1])}"
