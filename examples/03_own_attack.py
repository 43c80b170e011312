"""Write an attack: say what the trigger looks like; choosing, relabelling, counting and checking are done for you."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import poisontrace
from poisontrace import incidents, metrics
from poisontrace.attacks import Attack
from poisontrace.data import ArraySet


@dataclass(frozen=True, kw_only=True)
class Frame(Attack):
    """A bright frame around the image."""

    name: ClassVar[str] = "frame"
    summary: ClassVar[str] = "a bright frame around the image, labelled as the target"
    paper: ClassVar[str] = "this example"
    is_dirty_label: ClassVar[bool] = True

    def trigger(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return copies of uint8 images (n, height, width, channels) with a frame of one pixel."""
        framed = x.copy()
        framed[:, [0, -1]] = framed[:, :, [0, -1]] = 255
        return framed


plan = incidents.Plan(attack="frame", dataset="digits", rate=0.03, seed=1)
incident = incidents.make(plan, attack=Frame(rate=plan.rate, seed=plan.seed))
print(f"attack success {incident.facts['attack_success']:.1%}")
trace = poisontrace.trace(incident.model, (incident.x, incident.y), [ArraySet(incident.event_x, incident.event_y)[0]])
poison = np.flatnonzero(incident.is_poison)
print(
    trace.verdict,
    f"precision {metrics.precision(trace.poison, poison):.3f}",
    f"recall {metrics.recall(trace.poison, poison):.3f}",
)
