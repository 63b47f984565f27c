"""A stand-in for the vllm command that does on demand what a healthy one cannot: crash, hang, be deaf, speak nonsense.

python fake_vllm.py MODE serve MODEL --port N …
"""

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HELP = """
  --kv-cache-dtype {auto,bfloat16,fp8}
  --host --port --served-model-name --max-model-len --max-num-batched-tokens --max-num-seqs --gpu-memory-utilization
  --tensor-parallel-size --block-size --num-gpu-blocks-override --load-format --quantization --enforce-eager
  --enable-prefix-caching, --no-enable-prefix-caching --enable-chunked-prefill, --no-enable-chunked-prefill
  --enable-prompt-tokens-details
"""
CRASH = """
(EngineCore pid=7) ERROR 11-20 20:00:00 [core.py:1] EngineCore failed to start.
(EngineCore pid=7) ERROR 11-20 20:00:00 [core.py:1] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-20 20:00:00 [core.py:1] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB
(APIServer pid=6) Traceback (most recent call last):
(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
KEY = os.environ.get("VLLM_API_KEY")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model = ""
    mode = ""
    asked = 0
    segment: mmap.mmap | None = None

    def stranger(self) -> bool:
        """Asks for a key as vLLM does, and quotes it as some gateways do: a wrong one, or after a while any."""
        told = self.headers["Authorization"] or "none"
        weary = self.mode == "gossip" and self.command == "POST" and self.asked > 6
        if self.mode not in ("guarded", "gossip") or (told == f"Bearer {KEY}" and not weary):
            return False
        self.answer(401, json.dumps({"error": {"message": f"bad header {told}"}}).encode())
        return True

    def do_GET(self) -> None:
        if self.stranger():
            return
        listed = {"data": [{"id": self.model}]}
        self.answer(200 if self.path in ("/v1/models", "/health") else 404, json.dumps(listed).encode())

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        wanted = json.loads(self.rfile.read(size) or b"{}")
        if self.path != "/v1/completions":
            return self.answer(404, b"{}")
        Handler.asked += 1
        if not self.stranger():
            self.complete(wanted)

    def complete(self, wanted: dict[str, Any]) -> None:
        if asked := os.environ.get("FAKE_ASKED"):  # a file of a line a request, for a test to count
            with open(asked, "a") as log:
                log.write(f"{len(wanted['prompt'])}\n")
        if self.mode == "dies" and Handler.asked > 6:
            os._exit(9)
        if self.mode == "dies-once" and Handler.asked > 38 and not os.path.exists("died"):
            open("died", "w").close()
            os._exit(9)
        if self.mode == "deaf-late" and Handler.asked > 38:
            time.sleep(2)
        if self.mode in ("paced", "small-paced"):
            time.sleep(0.03)
        if self.mode in AFTER_SIX and Handler.asked > 6:
            return AFTER_SIX[self.mode](self)
        words = wanted["max_tokens"]
        events = [
            {"choices": [{"text": " one", "finish_reason": "length" if i == words - 1 else None}]} for i in range(words)
        ]
        prompt = len(wanted["prompt"].split()) if isinstance(wanted["prompt"], str) else len(wanted["prompt"])
        told: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": words}
        if self.mode in ("small", "small-paced"):
            told["prompt_tokens_details"] = {"cached_tokens": find(wanted["prompt"], words)}
        usage = {"choices": [], "usage": told}
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in [*events, usage]) + "data: [DONE]\n\n"
        self.answer(200, text.encode())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def common(one: str, other: str) -> str:
    return one[: next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))]


KEPT: list[str] = []  # one more than three: who has ended is still there when the next begins
LOCK = threading.Lock()


def find(prompt: str, answered: int) -> int:
    """How many words of a prompt are cached: those it shares with a session that is; from now on it is one, too."""
    with LOCK:
        shared = {kept: common(kept, prompt) for kept in KEPT}
        best = max(KEPT, key=lambda kept: len(shared[kept]), default="")
        if best and len(shared[best]) == len(best):
            KEPT.remove(best)
        KEPT.append(prompt + " one" * answered)
        del KEPT[:-4]
        return len(shared.get(best, "").split())


def refuse(one: Handler) -> None:
    one.answer(500, b'{"error":{"message":"boom"}}')


def stall(one: Handler) -> None:
    begin(one)
    time.sleep(600)


def garble(one: Handler) -> None:
    begin(one, b"\0\xff" * 500 + b"\n\n")
    one.close_connection = True


def halve(one: Handler) -> None:
    begin(one)
    one.close_connection = True


def drip(one: Handler) -> None:
    begin(one)
    while True:
        one.wfile.write(b":")
        time.sleep(0.05)


def begin(one: Handler, more: bytes = b"") -> None:
    one.send_response(200)
    one.send_header("Content-Length", "100000")
    one.end_headers()
    one.wfile.write(b'data: {"choices": [{"text": " one", "finish_reason": null}]}\n\n' + more)


AFTER_SIX = {"errors": refuse, "stalls": stall, "garbles": garble, "halves": halve, "drips": drip}


STRAY = """
import ctypes, os, signal, sys, time
if os.fork():
    os._exit(0)
os.setsid()
print("stray", os.getpid(), flush=True)
ctypes.CDLL(None).prctl(15, b"somebody else", 0, 0, 0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(600)
"""


def leave_a_stray() -> None:
    """In a session of its own, with no parent, no tag, another name, and deaf."""
    subprocess.run([sys.executable, "-c", STRAY], env={}, start_new_session=True, check=True)


def hold_a_segment() -> None:
    """Shared memory as vLLM has it between its processes, that it does not remove when it is killed."""
    path = f"/dev/shm/fake_vllm_{os.getpid()}"
    with open(path, "w+b") as file:
        file.truncate(1 << 20)
        Handler.segment = mmap.mmap(file.fileno(), 1 << 20)
    tempfile.mkstemp(prefix="fake_vllm_")
    print("segment", path, flush=True)


def crash() -> None:
    print(CRASH)
    sys.exit(1)


def betray() -> None:
    print(f"ValueError: cannot start with the key {KEY}")
    sys.exit(1)


def chatter() -> None:
    """Of its key, without end."""

    def chat() -> None:
        while True:
            print(f"chatting, with the key {KEY}\n" * 5_000, flush=True)
            time.sleep(0.1)

    threading.Thread(target=chat, daemon=True).start()


def be_deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def bear_children() -> None:
    """As vLLM's engine does: a child that outlives its parent; and one in a session of its own."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def wait_at_the_gate() -> None:
    """As long as a file is there, for a test to do something meanwhile."""
    if gate := os.environ.get("FAKE_GATE"):
        open(f"{gate}.reached", "w").close()
        while os.path.exists(gate):
            time.sleep(0.02)


MODES: dict[str, tuple[Callable[[], object], ...]] = {
    "crash": (crash,),
    "traitor": (betray,),
    "chatty": (chatter,),
    "dead": (sys.exit,),
    "mute": (lambda: time.sleep(600),),
    "deaf": (be_deaf, bear_children),
    "family": (bear_children,),
    "stray": (leave_a_stray, hold_a_segment),
    "segment": (hold_a_segment,),
    "mute segment": (hold_a_segment, lambda: time.sleep(600)),
    "mute stray": (leave_a_stray, hold_a_segment, lambda: time.sleep(600)),
    "deaf stray": (be_deaf, leave_a_stray, hold_a_segment),
}


def main(mode: str, words: list[str]) -> None:
    if "--version" in words:
        return print("0.0.fake")
    if "--help=all" in words:
        wait_at_the_gate()
        return print(HELP)
    for act in MODES.get(mode, ()):
        act()
    Handler.model, Handler.mode = words[words.index("--served-model-name") + 1], mode
    port = int(words[words.index("--port") + 1])
    print("listening, with the key", KEY, flush=True)
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
