"""How many agents does this card hold, and what breaks first?"""

__version__ = "0.1.0"
