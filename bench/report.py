"""What a run says when it is over: on the screen and as files; and what one would do before it begins."""

import json
import shlex
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from bench import beside, capacity, inert, page, plots, table
from bench.conclusion import Conclusion
from bench.load import Level
from bench.recipe import Launch
from bench.records import Folder
from bench.search import Prediction
from bench.words import conditions, footnotes, limits, sentences, stamp, title, unchecked


def files(done: Conclusion) -> dict[str, str]:
    """All that can be made again from the records."""
    figures = plots.draw(done.run, done.rows, done.records, done.samples)
    return {
        "levels.csv": table.to_csv(done.rows),
        "table.md": markdown(done),
        "report.html": page.page(done.run, done.rows, figures),
        **figures,
        "run.json": json.dumps(done.run, indent=2) + "\n",
    }


def write(folder: Folder, done: Conclusion) -> None:
    for name, text in files(done).items():
        folder.write(name, text)


def markdown(done: Conclusion) -> str:
    """The study's table, its verdict and its conditions, ready to be pasted."""
    run = done.run
    said = [*sentences(run), stamp(run), *unchecked(run)]
    parts = [f"# {_inert(title(run))}", "", *(f"- {_inert(text)}" for text in said), ""]
    parts += [
        *_beside(done),
        table.markdown(done.rows),
        *([f"{_inert(limits(run))}\n"] if table.of_card(done.rows) else []),
        *(f"{_inert(note)}\n" for note in footnotes(done.rows)),
        "## Conditions",
        "",
    ]
    return "\n".join([*parts, *(f"- {_inert(text)}" for text in conditions(run)), ""])


def _beside(done: Conclusion) -> list[str]:
    found = beside.lines(done.run, done.rows)
    told = [table.cells([inert.markup(cell) for cell in line]) for line in found]
    return (
        [table.cells(beside.HEADS), table.cells(["---", *["---:"] * (len(beside.HEADS) - 1)]), *told, ""]
        if found
        else []
    )


def _inert(text: str) -> str:
    """No markup of others in our Markdown; between backticks it is none."""
    return "`".join(part if at % 2 else inert.markup(part) for at, part in enumerate(text.split("`")))


def closing(done: Conclusion, folder: Folder) -> str:
    """What stands on the screen when a run is over."""
    width = min(100, shutil.get_terminal_size().columns)
    said = [*footnotes(done.rows), *sentences(done.run), f"{stamp(done.run)}.", *unchecked(done.run)]
    wrap = [textwrap.fill(text, width, subsequent_indent="  ", break_on_hyphens=False) for text in said]
    tables = [table.text(done.rows), beside.text(beside.lines(done.run, done.rows))]
    return "\n".join([title(done.run), "", *filter(None, tables), *wrap, f"Report: {folder.path / 'report.html'}"])


def cautions(done: Conclusion) -> str:
    mark = {True: "INVALID", False: "warning"}
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


def rehearsed(
    levels: Mapping[str, Sequence[Level]],
    launches: Mapping[str, Launch],
    forecasts: Mapping[str, capacity.Forecast],
    predicted: Mapping[str, Prediction],
) -> str:
    """The same for programs."""
    told = {
        name: {
            "levels": [asdict(level) for level in played],
            "command": _command(launches[name]) if name in launches else None,
            "forecast": asdict(forecasts[name]) if name in forecasts else None,
            "predicted": asdict(predicted[name]) if name in predicted else None,
        }
        for name, played in levels.items()
    }
    return json.dumps({"variants": told}, indent=2)


def _command(launch: Launch) -> str:
    env = [f"{key}={shlex.quote(value)}" for key, value in launch.environment().items()]
    model = "RUN/model" if launch.model.startswith("synthetic:") else launch.model
    return " ".join((*env, *launch.file.serve.before, "vllm", shlex.join(launch.arguments(model))))
