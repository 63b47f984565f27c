"""How close a level came to the card's limit: the work that nothing gets around, over what the card could have done.

Counted are prompt tokens that were not cached, answer tokens, what each of them attends to, a read of the weights for
every step that gave a token, a read of what was cached. An engine does more: a share is what it came to at least.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.records import TurnRecord
from bench.speed import Speed


def reached(
    turns: Sequence[TurnRecord], lasted_s: float, steps_per_s: float | None, roof: Speed | None
) -> dict[str, Any]:
    """Columns of a level; none of a server that does not tell what was cached."""
    told = [
        (one.prompt_tokens, one.cached_tokens, one.output_tokens or 0)
        for one in turns
        if one.prompt_tokens is not None and one.cached_tokens is not None
    ]
    if not told or lasted_s <= 0:
        return {}
    prompt, cached, answer = np.array(told, dtype=float).T
    new, decoded = prompt - cached, np.maximum(answer - 1, 0)  # an answer's first token comes of its prompt's step
    attended, read = (prompt**2 - cached**2) / 2, decoded * prompt + decoded * (decoded + 1) / 2
    found = {"prefill_tokens_per_s": new.sum() / lasted_s, "decode_tokens_per_s": answer.sum() / lasted_s}
    if roof is not None:
        layers_s = roof.token_s * (new + decoded).sum() + roof.attend_s * (attended + read).sum()
        found["matrix_share"] = (layers_s + roof.sequence_s * answer.sum()) / lasted_s
    if roof is not None and steps_per_s is not None:
        moved_s = roof.read_s * (read + cached + new + decoded).sum()  # read, and written once
        found["bandwidth_share"] = steps_per_s * roof.weights_s + moved_s / lasted_s
    return {name: float(value) for name, value in found.items()}
