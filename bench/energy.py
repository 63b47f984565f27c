"""What a server's cards have drawn since their driver came up, as the driver counts it: through its library, NVML.

A reading takes the driver's counter and no process; cards older than Volta have none.
"""

import ctypes
from collections.abc import Callable

Read = Callable[[], float | None]


def counter(visible: str | None, most: int) -> Read:
    """Joules of the first so many of the cards that CUDA_VISIBLE_DEVICES leaves; None where nothing counts them."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        ready = library.nvmlInit_v2() == 0
    except (OSError, AttributeError):
        return lambda: None
    cards = [_card(library, word) for word in _words(library, visible)[:most]] if ready else []
    return lambda: _joules(library, cards)


def _words(library: ctypes.CDLL, visible: str | None) -> list[str]:
    if visible is not None:
        return [word.strip() for word in visible.split(",")]
    count = ctypes.c_uint()
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    return [str(at) for at in range(count.value)]


def _card(library: ctypes.CDLL, word: str) -> ctypes.c_void_p | None:
    card = ctypes.c_void_p()
    if word.isdigit():
        wrong = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(word)), ctypes.byref(card))
    else:
        wrong = library.nvmlDeviceGetHandleByUUID(word.encode(), ctypes.byref(card))
    return None if wrong else card


def _joules(library: ctypes.CDLL, cards: list[ctypes.c_void_p | None]) -> float | None:
    """Of all of them, or of none: a sum that lacks one is no sum."""
    millijoules = ctypes.c_ulonglong()
    total = 0.0
    for card in cards:
        if card is None or library.nvmlDeviceGetTotalEnergyConsumption(card, ctypes.byref(millijoules)):
            return None
        total += millijoules.value / 1000
    return total if cards else None
