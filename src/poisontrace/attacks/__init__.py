"""The attacks, by name. A new attack is one file and one line here."""

from poisontrace.attacks.badnets import BadNets
from poisontrace.attacks.base import Attack, Attacker, Attempts, Poisoned
from poisontrace.attacks.malware import MalwareBackdoor

ATTACKS: dict[str, type[Attack]] = {attack.name: attack for attack in (BadNets, MalwareBackdoor)}

__all__ = ["ATTACKS", "Attack", "Attacker", "Attempts", "BadNets", "MalwareBackdoor", "Poisoned"]
