"""A real browser for the pages, spoken to in the WebDriver protocol: it clicks and presses what a reader does."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest

FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
         "disable-component-update", "disable-sync")  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for a reference
KEYS = {"Enter": "\ue007", "Space": " ", "Right": "\ue014", "Escape": "\ue00c"}


class Browser:
    def __init__(self, http: httpx.Client, session: str) -> None:
        self.http, self.session = http, session

    def post(self, path: str, **body: Any) -> Any:
        answer = self.http.post(f"/session/{self.session}/{path}", json=body).json()["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def open(self, file: Path, width: int = 1280) -> None:
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.post("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=metrics)
        self.post("url", url=file.as_uri())

    def run(self, script: str) -> Any:
        return self.post("execute/sync", script=script, args=[])

    def find(self, what: str) -> str:
        return str(self.post("element", using="css selector", value=what)[ELEMENT])

    def click(self, what: str) -> None:
        self.post(f"element/{self.find(what)}/click")

    def type(self, what: str, text: str) -> None:
        self.post(f"element/{self.find(what)}/value", text=text)

    def press(self, what: str, *keys: str) -> None:
        """Each key goes to what has the focus by then; the first to `what`."""
        self.run(f"document.querySelector({what!r}).focus()")
        strokes = [{"type": kind, "value": KEYS[key]} for key in keys for kind in ("keyDown", "keyUp")]
        self.post("actions", actions=[{"type": "key", "id": "keys", "actions": strokes}])

    def hover(self, what: str) -> None:
        """Moves twice: getting there may scroll the page, which takes the mark from under the pointer again."""
        self.run(f"document.querySelector({what!r}).scrollIntoView({{block: 'center'}})")
        moves = [{"type": "pointerMove", "origin": {ELEMENT: self.find(what)}, "x": x, "y": 0} for x in (0, 1)]
        steps = [moves[0], {"type": "pause", "duration": 200}, moves[1]]
        self.post("actions", actions=[{"type": "pointer", "id": "mouse", "actions": steps}])

    def complaints(self) -> list[str]:
        return [line["message"] for line in self.post("se/log", type="browser")]


@contextmanager
def browser() -> Iterator[Browser]:
    missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not found: apt install chromium chromium-driver")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(["chromedriver", f"--port={port}"], **quiet)  # type: ignore[call-overload]
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
                session = _session(http, profile)
                yield Browser(http, session)
                http.delete(f"/session/{session}")
        finally:
            driver.terminate()
            driver.wait(timeout=10)


def _session(http: httpx.Client, profile: str) -> str:
    _wait(http)
    options = {"args": [*(f"--{flag}" for flag in FLAGS), f"--user-data-dir={profile}"]}
    wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    return str(http.post("/session", json={"capabilities": {"alwaysMatch": wanted}}).json()["value"]["sessionId"])


def _wait(http: httpx.Client) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            http.get("/status")
            return
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
