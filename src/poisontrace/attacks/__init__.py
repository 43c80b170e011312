"""The attacks, by name. A new attack is one file and one line here."""

from poisontrace.attacks.badnets import BadNets
from poisontrace.attacks.base import Attack, Attacker, Attempts, Poisoned
from poisontrace.attacks.bullseye import BullseyePolytope
from poisontrace.attacks.malware import MalwareBackdoor
from poisontrace.attacks.physical import Physical
from poisontrace.attacks.trojan import Trojan
from poisontrace.attacks.witches import WitchesBrew

ATTACKS: dict[str, type[Attack]] = {
    attack.name: attack for attack in (BadNets, Trojan, Physical, BullseyePolytope, WitchesBrew, MalwareBackdoor)
}

__all__ = [
    "ATTACKS",
    "Attack",
    "Attacker",
    "Attempts",
    "BadNets",
    "BullseyePolytope",
    "MalwareBackdoor",
    "Physical",
    "Poisoned",
    "Trojan",
    "WitchesBrew",
]
