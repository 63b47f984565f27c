"""The search against every level one by one, on a simulated server; and what a user sees of it."""

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache

import pytest

from bench import capacity, foresight, knee, recipe, schedule, search, stats, workload
from bench.foresight import Simulated
from bench.knee import Slo
from bench.limits import Limits
from bench.load import Level
from bench.records import TurnRecord
from bench.schedule import Schedule
from bench.search import Prediction, Watch
from bench.speed import Speed
from bench.workload import Arrivals, SessionShape, Spread, Workload, WorkloadFile

MOST = 48  # sessions: the study's ladder, sixteen levels
AGENT = WorkloadFile("", 2_000, SessionShape(8, 700, 40))
FILES = {
    "agent": AGENT,
    "spread": replace(AGENT, arrivals=Arrivals("spread")),
    "mixed": WorkloadFile("", 2_000, SessionShape(Spread(3, 14, 8, 4), Spread(200, 2_000, 700, 400), 40)),
    "long": WorkloadFile("", 1_000, SessionShape(4, 3_000, 60)),
    "chatty": WorkloadFile("", 500, SessionShape(16, 150, 60)),
    "arrivals": replace(AGENT, arrivals=Arrivals(sessions_per_s=0.8)),
}


@dataclass(frozen=True)
class Setting:
    work: str
    fits: float  # sessions, by arithmetic
    slo: str = "ttft_p99<800ms"
    gpu: str = "cpu"
    flags: tuple[str, ...] = ()
    slower: float = 1.3  # than the machine's file has it: a prediction is never right to the millisecond

    def schedule(self) -> Schedule:
        work = Workload(self.work, FILES[self.work], "")
        most, limits = (MOST,), Limits()
        return Schedule(work, most, (), (), None, False, search.PLAYS, 0, limits, search=True, max_c=MOST)

    @property
    def tokens(self) -> int:
        work = self.schedule().workload
        typical = work.typical()
        return round(work.file.shared_tokens + self.fits * (typical.own_tokens + typical.output_tokens))

    def server(self) -> Simulated:
        speed = capacity.speed(self.launch())
        assert speed is not None
        times = {name: value * self.slower for name, value in asdict(speed).items() if name != "source"}
        return foresight.simulated("v", self.launch(), Speed(**times), self.tokens)

    def launch(self) -> recipe.Launch:
        return recipe.launch(self.gpu, "fp8", None, 1, True, self.flags)


SETTINGS = {
    **{f"agent in a cache of {fits}": Setting("agent", fits) for fits in (3.5, 8.9, 12.1, 17.3, 24.6)},
    **{f"spread in a cache of {fits}": Setting("spread", fits) for fits in (6.5, 14.5)},
    **{f"mixed in a cache of {fits}": Setting("mixed", fits) for fits in (5.2, 11.8, 19.4)},
    **{f"long in a cache of {fits}": Setting("long", fits) for fits in (4.4, 10.6)},
    **{f"chatty in a cache of {fits}": Setting("chatty", fits) for fits in (7.7, 15.1)},
    "arrivals": Setting("arrivals", 9.3),
    "a strict promise": Setting("agent", 12.1, "ttft_p99<400ms"),
    "a promise of the middle": Setting("agent", 12.1, "ttft_p50<150ms"),
    "a promise that nothing breaks": Setting("agent", 12.1, "ttft_p99<90s"),
    "a promise of reuse": Setting("mixed", 11.8, "eligible_hit_rate>97%"),
    "few slots": Setting("agent", 14.2, flags=("--max-num-seqs", "4")),
    "small steps": Setting("agent", 10.4, flags=("--max-num-batched-tokens", "512")),
    "a card": Setting("agent", 12.1, "ttft_p99<2s", gpu="l4"),
    "a faster card, a strict promise": Setting("long", 13.2, "ttft_p95<300ms", gpu="h100"),
    "room for all": Setting("agent", 60),
    "room for one": Setting("agent", 1.6),
}


@dataclass(frozen=True)
class Found:
    knee: tuple[int | None, int | None]
    ceiling: int | None
    server_s: float
    levels: int


@cache
def one_by_one(name: str) -> tuple[Found, float]:
    """The truth, and what the ladder costs."""
    setting = SETTINGS[name]
    plan, server, slo = setting.schedule(), setting.server(), knee.parse_slo(setting.slo)
    rows = []
    for at in range(1, MOST + 1):
        level = plan.realistic("v", at)
        rows.append(foresight.row(server, level, plan.workload, plan.seed))
    told = [row for row in rows if not row.why_none]
    found = knee.knee(told)
    edge = (found.lo, found.hi) if found else (None, 1) if knee.from_the_start(told) else (MOST, None)
    ladder = sum(row.duration_s for row in rows if row.concurrency in schedule.levels_up_to(MOST))
    return Found(edge, knee.ceiling(rows, slo), sum(row.duration_s for row in rows), MOST), ladder


def searched(setting: Setting, expected: Prediction) -> Found:
    plan, server, slo = setting.schedule(), setting.server(), knee.parse_slo(setting.slo)
    spent: list[float] = []

    def play(at: int, repeat: int, watching: Watch) -> Iterable[TurnRecord]:
        level = replace(plan.realistic("v", at), repeat=repeat)
        records = foresight.play(server, level, plan.workload, plan.seed, enough=watching.ended).records
        spent.append(stats.lasted([one for one in records if one.turn > 0]))
        if TELL: print("   ", at, repeat, len(records), round(spent[-1],1))
        return records

    known = search.Foresee(plan, setting.launch(), setting.tokens, slo)
    played = search.hunt(search.aim_of(plan, slo, expected), plan.requests_at, play, known)
    rows = [stats.reduce([one for one in own if one.turn > 0], []) for _, own in sorted(played.items())]
    told = [row for row in rows if not row.why_none]
    found = knee.knee(told)
    edge = (found.lo, found.hi) if found else (None, told[0].concurrency) if knee.from_the_start(told) else (told[-1].concurrency, None)
    return Found(edge, knee.ceiling(rows, slo), sum(spent), len(spent))
TELL = False

def main():
    global TELL
    TELL = "-v" in sys.argv
    import time
    a=b=0
    for name, setting in SETTINGS.items():
        if not any(w in name for w in (sys.argv[1:] or ['']) if w != '-v'): continue
        t=time.time()
        truth, ladder = one_by_one(name)
        t1=time.time()
        plan = setting.schedule()
        if TELL: print([x for x in range(1,49) if 0])
        p = search.Foresee(plan, setting.launch(), setting.tokens, knee.parse_slo(setting.slo)).prediction()
        f = searched(setting, p)
        a+=f.server_s; b+=ladder
        print(f"{name:35} pred {p.knee:3} {p.ceiling:3} truth {truth.knee} {truth.ceiling}  found {f.knee} {f.ceiling} levels {f.levels} {f.server_s:.1f} of {ladder:.1f} = {f.server_s/ladder:.0%}  ({t1-t:.1f} {time.time()-t1:.1f})", flush=True)
    print(a/b)
if __name__ == "__main__":
    main()
