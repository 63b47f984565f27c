"""What a thousand tasks cost, each a whole session: in money and in energy."""

from collections.abc import Mapping
from typing import Any

from bench import recipe


def usd_h(launch: Mapping[str, Any]) -> float | None:
    """Of the machine that a run was made on; None where it has no price."""
    card = (launch.get("file") or {}).get("card")
    return card["price_usd_h"]["value"] * recipe.cards(launch["tp"], launch["extra"]) if card else None


def of_tasks(each_s: float | None, req_per_s: float | None, turns: float) -> float | None:
    """Of a thousand, by what a second takes: dollars, or joules."""
    return float(each_s / req_per_s * turns * 1000) if each_s and req_per_s else None


def in_money(usd_h: float | None, req_per_s: float | None, turns: float) -> float | None:
    return of_tasks(usd_h / 3600 if usd_h else None, req_per_s, turns)
