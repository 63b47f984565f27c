"""Where knee and ceiling are expected: simulated before a server has answered, corrected by each level it plays."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bench import foresight, search, stats
from bench.errors import BenchError
from bench.foresight import Simulated
from bench.knee import Slo
from bench.recipe import Launch
from bench.records import TurnRecord
from bench.schedule import Schedule
from bench.search import Prediction, Turns, Watch

BLIND = 8  # sessions to begin with, where nothing is known of the cache
SIMULATED = 3_000  # requests: a level of more would be waited for


@dataclass(frozen=True, slots=True)
class Expectation:
    """What is known of a server before it has answered: its levels on a simulated one."""

    schedule: Schedule
    launch: Launch | None
    tokens: int | None
    slo: Slo

    def prediction(self) -> Prediction:
        """By simulation, where enough is known for that; else by arithmetic."""
        fit = self.schedule.fit(self.tokens)
        if fit is None:
            return Prediction(BLIND, BLIND, "a guess: nothing is known of the cache")
        counted = Prediction(int(fit), int(fit), f"arithmetic: {fit:.1f} sessions fit", self.tokens)
        server = self._server(counted.knee)
        return counted if server is None else self._simulated(server, counted, "simulated") or counted

    def corrected(self, said: Prediction, played: Mapping[int, Turns]) -> Prediction | None:
        """Until the ceiling lies between two levels, the one next to it tells how fast the server is there. One that
        lost its history where the simulation did not, or did not where it did, tells nothing of that."""
        seen = {one.level: one for one in search.judge(played, self.slo, self.schedule.requests_at)}
        found = search.bracket([(level, one.ceiling.broken) for level, one in seen.items()])
        level = found.lo or found.hi
        server = self._server(level) if level and not (found.lo and found.hi) else None
        if server is None or level is None:
            return None
        turns = [record for record in played[level] if record.repeat == 0]
        assumed = self._play(server, level)[: len(turns)]
        (simulated,) = search.judge({level: assumed}, self.slo, self.schedule.requests_at)
        if simulated.knee.broken != seen[level].knee.broken:
            return None
        here, there = self._pace(turns), self._pace(assumed)
        if not here or not there:
            return None
        slower = here / there
        told = f"simulated, {slower:.2f} times as slow as assumed"
        expected = self._simulated(_paced(server, slower), said, told)
        return expected and replace(expected, knee=said.knee)

    def _pace(self, records: Turns) -> float:
        """Of what was promised: the wait for a first token, or the time that all of it took."""
        turns = [record for record in records if record.turn > 0 and record.status == "ok"]
        if not self.slo.metric.startswith("ttft"):
            return stats.lasted(turns) if turns else 0.0
        return sum(map(stats.least, turns)) / max(1, len(turns))

    def _server(self, level: int) -> Simulated | None:
        if self.launch is None or self.schedule.requests_at(level) > SIMULATED:
            return None
        try:
            return foresight.simulated(self.launch.kv, self.launch, tokens=self.tokens)
        except BenchError:  # what cannot be simulated can be counted
            return None

    def _play(self, server: Simulated, level: int) -> list[TurnRecord]:
        here = self.schedule.realistic(server.name, level)
        return foresight.play(server, here, self.schedule.workload, self.schedule.seed).records

    def _simulated(self, server: Simulated, start: Prediction, how: str) -> Prediction | None:
        def play(level: int, repeat: int, watching: Watch) -> Iterable[TurnRecord]:
            return self._play(server, level)

        aim = search.aim_of(self.schedule, self.slo, start, plays=1)
        try:
            seen = search.judge(search.hunt(aim, play), self.slo, aim.requests)
        except BenchError:  # what cannot be simulated can be counted
            return None
        knees, ceilings = search.questions(aim, seen)
        return Prediction(knees.bracket.lo or 0, ceilings.bracket.lo or 0, how, start.tokens)


def _paced(server: Simulated, slower: float) -> Simulated:
    return replace(server, speed=server.speed.slower(slower))
