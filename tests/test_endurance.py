"""A day of load in a quarter of a minute: what a run holds does not grow with it."""

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_simulated_day_takes_no_more_memory_and_files_than_its_first_hours(tmp_path: Path) -> None:
    """In a process of its own, where time passes as fast as it can; turns and ticks are those of a day."""
    script = """
        import asyncio, gc, os, sys
        from dataclasses import replace
        from pathlib import Path
        from bench import load, workload
        from bench.client import Keeping, Target
        from bench.dialect import Dialect
        from bench.pulse import felt
        from bench.records import Folder
        from tests.test_load import WORDS
        from tests.test_stats import ONE

        HOUR, TURN_S, SESSIONS = 3600.0, 12.0, 14
        folder = Folder(Path(sys.argv[1]))

        class Day(asyncio.SelectorEventLoop):
            # Where everybody waits, the time they wait for is now.
            late = 0.0

            def time(self):
                return super().time() + self.late

            def _run_once(self):
                if not self._ready and self._scheduled:
                    self.late += max(0.0, self._scheduled[0].when() - self.time())
                super()._run_once()

        class Sender:
            target = Target("http://nobody", "M", Dialect("", "", b"", b"", WORDS, b",", "word", True), 0.0)

            async def send(self, turn):
                sent = clock.now()
                await asyncio.sleep(TURN_S)
                return replace(ONE, session=turn.session, turn=turn.number, intended_s=turn.intended_s, sent_s=sent,
                               end_s=clock.now(), output_tokens=75, answer=b",".join(WORDS[:75]))

        class Clock:
            def now(self):
                return asyncio.get_running_loop().time() - began

            async def sleep_until(self, when):
                await asyncio.sleep(max(0.0, when - self.now()))

        def held():
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd"))

        async def look(seen):
            for hour in range(24):
                await clock.sleep_until((hour + 1) * HOUR)
                seen.append(held())

        async def day():
            seen = []
            work = workload.load("coding-agent")
            turns = int(24 * HOUR / TURN_S) * SESSIONS
            keeping = Keeping(Sender(), folder.keep)
            stage = load.Stage(workload.Content(WORDS, b",", 0, 0), 128, keeping.send, clock)
            performance = load.Performance(load.Level("v", "realistic", SESSIONS, 0, turns), work, stage, 0)
            looking = asyncio.create_task(look(seen))
            async with felt(print):
                await performance.run(clock.now())
            looking.cancel()
            return seen, turns

        clock, loop = Clock(), Day()
        began = loop.time()
        seen, turns = loop.run_until_complete(day())
        print(len(seen), turns, *(f"{memory:.1f}" for memory, _ in seen), *{files for _, files in seen})
        assert sum(1 for _ in (folder.path / "requests.jsonl").open()) == turns
        assert len(seen) >= 23
        assert len({files for _, files in seen}) == 1
        assert seen[-1][0] < seen[2][0] + 1.5
    """
    words = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    ran = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
