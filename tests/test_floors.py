"""A module imports only from the floors below its own: the table of DESIGN, held here."""

import ast
from pathlib import Path

BENCH = Path(__file__).parent.parent / "bench"
FLOORS = {
    "cli": 9,
    **dict.fromkeys(("publish", "wanted", "ending"), 8),
    "report": 7,
    "plan": 8,
    "sweep": 7,
    "expectation": 6,
    **dict.fromkeys(("search", "minutes"), 5),
    **dict.fromkeys(("plots", "page", "side"), 6),
    **dict.fromkeys(("progress", "conclusion", "beside", "catalogue", "export", "lives"), 5),
    "difference": 6,
    **dict.fromkeys(("knee", "cause", "audit", "table", "words", "scene", "cost", "foretold", "plays"), 4),
    "compare": 5,
    **dict.fromkeys(("troupe", "schedule", "foresight"), 4),
    "calibrate": 5,
    **dict.fromkeys(("load", "stats", "official", "capacity"), 3),
    **dict.fromkeys(("client", "server", "division", "waits", "foreign", "journal", "simulate", "vary", "roofline"), 2),
    **dict.fromkeys(
        ("workload", "recipe", "model", "records", "machine", "engine", "diagnosis", "scrape", "manifest"), 1
    ),
    **dict.fromkeys(("hypertext", "connection", "dialect", "pulse", "key", "family", "kv", "virtual"), 1),
    **dict.fromkeys(("errors", "tables", "sample", "svg", "wire", "limits", "asking", "clocks", "secret"), 0),
    **dict.fromkeys(("bounded", "shape", "inert", "keeper", "interrupt", "geometry"), 0),
    **dict.fromkeys(("blocks", "speed", "energy"), 0),
}
# There is one error, which tells no secret, one HTTP, one limit to what is read, and one list of what is no plain text.
ALLOWED_SIBLINGS = {
    *((name, "errors") for name in ("tables", "bounded", "shape", "limits")),
    ("errors", "secret"),
    ("asking", "wire"),
    ("tables", "bounded"),
    ("svg", "inert"),
    ("records", "manifest"),
}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "bench":
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bench."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("bench.")}
    return {name for name in found if not name.startswith("__")}


def modules() -> dict[str, Path]:
    return {path.stem: path for path in BENCH.glob("*.py") if not path.stem.startswith("__")}


def test_every_module_has_a_floor() -> None:
    assert set(modules()) == set(FLOORS)


def test_imports_go_down() -> None:
    edges = {(name, used) for name, path in modules().items() for used in imported(path)}
    upwards = {(a, b) for a, b in edges if FLOORS[b] >= FLOORS[a]} - ALLOWED_SIBLINGS
    assert not upwards
    assert edges >= ALLOWED_SIBLINGS, "an exception that nobody needs any more"


def test_top_folders_hold_data_not_packages() -> None:
    assert not [
        path for folder in ("workloads", "launch", "results") for path in (BENCH.parent / folder).glob("__init__.py")
    ]
