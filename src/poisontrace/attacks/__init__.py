"""The attacks, by name. A new attack is one file and one line here."""

from poisontrace.attacks.badnets import BadNets
from poisontrace.attacks.base import Attack, Attacker, Attempts, Poisoned
from poisontrace.attacks.physical import Physical

ATTACKS: dict[str, type[Attack]] = {attack.name: attack for attack in (BadNets, Physical)}

__all__ = ["ATTACKS", "Attack", "Attacker", "Attempts", "BadNets", "Physical", "Poisoned"]
