"""How long a step of the engine takes: what it computes, what it reads, and what each part costs besides."""

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class Speed:
    """Few, and each a thing of its own: a fit has no other knobs."""

    step_s: float  # whatever a step computes: scheduling, launching
    weights_s: float  # to read them all, once a step
    token_s: float  # to compute one token through the layers, but for attention
    attend_s: float  # a token of a prompt, for each token before it
    read_s: float  # a decoding sequence, for each token before it
    sequence_s: float  # a sequence in a step: rating the words, sampling, telling
    request_s: float  # a request on its way in and out, by the one process that takes it
    said_s: float  # a token of its prompt on that way
    way_s: float = 0.0  # and the rest of its way, which it does not have to share
    below: float = 2.0  # nine in ten of its predictions were right within this factor, below the knee
    past: float = 2.0  # and past it
    source: str = ""
    model: str = ""  # of what server they were fitted; of any, where nothing stands here
    tp: int = 1
    kv: str = ""

    def step(self, tokens: int, attended: float, read: int, sequences: int) -> float:
        """`attended`: pairs of a prompt's token and one before it; `read`: tokens before those that are decoded."""
        compute = max(self.weights_s, tokens * self.token_s)
        return self.step_s + compute + attended * self.attend_s + read * self.read_s + sequences * self.sequence_s

    def slower(self, times: float) -> "Speed":
        return replace(self, **{name: getattr(self, name) * times for name in CONSTANTS})


CONSTANTS = tuple(field.name for field in fields(Speed) if field.name.endswith("_s"))
