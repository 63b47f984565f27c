"""A run becomes a published result: table, report, pictures and manifest under results/, and an index of them all."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import bounded, catalogue, manifest, plays, report, tables
from bench.conclusion import Conclusion
from bench.errors import BenchError, Exit
from bench.records import Folder
from bench.table import from_csv

# What helps nobody to repeat a run, and is nobody's business: in this order.
PRIVATE = (
    (re.compile(r"((?<![\w-])--(?=[\w-]*(?:token|key|password|secret))[\w-]+[= ])\S+"), r"\1REDACTED"),
    (re.compile(r"(https?://)(?:[^/\s@]*@)?(?!127\.0\.0\.1\b|localhost\b)[^/\s:'\"]+"), r"\1HOST"),
    (re.compile(r"(?:file://)?/(?:home|Users)/[^/\s\"'`,()]+"), "~"),
    (re.compile(r"""(?:file://)?(?<![\w./~-])(?:~|\.\.)?/(?:[^/\s"'`,()]+/)+"""), ""),
)
SECRET = re.compile(r"--(?=[\w-]*(?:token|key|password|secret))[\w-]+")


def publish(done: Conclusion, results: Path) -> Path:
    """Where it lies now."""
    if not done.rows:
        raise BenchError("a run of which no level was played to its end is not published", exit=Exit.INVALID)
    if done.run.get("simulated"):
        raise BenchError("a simulated run is no result: nothing was measured", "publish a real one", Exit.INVALID)
    if not done.valid:
        reasons = "; ".join(warning.what for warning in done.warnings if warning.fatal)
        raise BenchError(
            f"a run that is not valid is not published: {reasons}", "mend that and run it again", Exit.INVALID
        )
    public = replace(done, run=_redacted(done.run))
    place = results / _place(public.run)
    Folder.vacant(place)
    place.mkdir(parents=True)
    folder = Folder(place)
    for name, text in report.files(public).items():
        folder.write(name, text)
    folder.write("sessions.json", plays.to_json(plays.of(done.records)))
    index(results)
    return place


def _place(run: dict[str, Any]) -> Path:
    """results/CARD/MODEL/KV/WHEN"""
    launches = [facts["launch"] for facts in run["variants"].values()]
    gpus = run["machine"]["gpus"]
    card = launches[0]["name"] if launches[0] else gpus[0]["name"] if gpus else "endpoint"
    model = next(iter(run["variants"].values())).get("server", {}).get("model") or "unnamed"
    names = [work["name"] for work in manifest.workloads(run)]
    when = re.sub(r"[-:]|\+.*", "", run["started"])
    return Path(*map(tables.slug, (card, model, "-".join(run["variants"]), f"{when}-{'-'.join(names)}")))


def _redacted(value: Any) -> Any:
    """Without hosts, secrets and the folders of whoever ran it."""
    if isinstance(value, dict):
        return {key: "" if key == "host" else _redacted(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        after = [None, *value]
        secret = [isinstance(word, str) and SECRET.fullmatch(word) is not None for word in after]
        return ["REDACTED" if hide else _redacted(inner) for hide, inner in zip(secret, value, strict=False)]
    if not isinstance(value, str):
        return value
    for private, instead in PRIVATE:
        value = private.sub(instead, value)
    return value


def index(results: Path) -> None:
    """Made anew from the published runs alone."""
    entries: list[catalogue.Entry] = []
    for file in sorted(results.glob("*/*/*/*/run.json")):
        rows = from_csv(bounded.text(file.parent / "levels.csv"), str(file.parent / "levels.csv"))
        entries += catalogue.entries(Folder(file.parent).published(), rows, file.parent.relative_to(results))
    folder = Folder(results)
    folder.write("README.md", catalogue.index_markdown(entries))
    folder.write("index.html", catalogue.index_html(entries))
