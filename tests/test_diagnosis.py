from pathlib import Path

import pytest

from bench import diagnosis

ENGINE = "\x1b[0;36m(EngineCore pid=7)\x1b[0;0m ERROR 11-20 20:00:00 [core.py:1] "
API = "(APIServer pid=6) "


@pytest.mark.parametrize(
    ("lines", "cause", "cure"),
    [
        (
            [ENGINE + "Traceback (most recent call last):",
             ENGINE + "ValueError: To serve at least one request with the model's max seq len (32768), 0.5 GiB KV cache"
             " is needed, which is larger than the available KV cache",
             API + "RuntimeError: Engine core initialization failed. See root cause above."],
            "ValueError: To serve at least one", "lower --max-model-len",
        ),
        (["vllm serve: error: unrecognized arguments: --nope"], "unrecognized arguments: --nope", "flags after --"),
        (["OSError: [Errno 98] Address already in use"], "Address already in use", "run again"),
        (["RuntimeError: Failed to infer device type"], "infer device type", "--gpu cpu"),
        (["a last word"], "a last word", ""),
        ([], "it said nothing", ""),
    ],
)  # fmt: skip
def test_the_cause_is_found_under_the_traceback(tmp_path: Path, lines: list[str], cause: str, cure: str) -> None:
    log = tmp_path / "log"
    log.write_text("\n".join(lines))
    found, hint = diagnosis.diagnose(log)
    assert cause in found
    assert cure in hint
    assert bool(cure) == bool(hint)
    assert "\x1b" not in found


def test_who_is_killed_had_no_time_to_say_why(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Initializing model took 0.1 seconds")
    assert diagnosis.diagnose(log, -9)[0].startswith("it was killed (signal 9)")
    assert diagnosis.ended(-9, log).startswith("vLLM was killed (signal 9)")
    assert "Initializing model" in diagnosis.diagnose(log, 1)[0]


def test_the_stage_is_the_furthest_one_reached(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("")
    assert diagnosis.stage(log) == "loading its libraries"
    log.write_text(API + "INFO non-default args\n" + ENGINE + "Starting to load model\nCPU KV cache size: 5 tokens")
    assert diagnosis.stage(log) == "laying out its cache"


def test_one_that_was_killed_is_not_told_by_the_last_line_it_wrote(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text("INFO: Application startup complete.\n")
    assert "for want of memory" in diagnosis.ended(-9, log)
    assert "startup" not in diagnosis.ended(-9, log)
    assert diagnosis.ended(1, log) == "vLLM ended with exit code 1: INFO: Application startup complete."
