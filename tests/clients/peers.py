"""Other people's load clients, each called by its own command line and read by its own report."""

from tests.clients.contestants import Contestant

PEERS: tuple[Contestant, ...] = ()
