"""Deep k-NN to the event: who lies nearest to it in the input of the last layer.

After Peri et al., "Deep k-NN Defense against Clean-label Data Poisoning Attacks" (ECCV workshops 2020), which takes
L2 distances of normalised features; their rule compares the labels of neighbours and needs no event, ours is the
ranking by distance that the event allows. Samples with another label than the event's cannot have taught it that
label by likeness and come last.
"""

import numpy as np
import torch
from torch.nn import functional

from peers.case import Answer, Case


def find(case: Case) -> Answer:
    """Rank by the distance to the event, samples of its label first."""
    with torch.inference_mode():
        body = case.body
        near = functional.normalize(body(case.event_x[None]), dim=1)
        parts = [functional.normalize(body(x), dim=1) for x, _ in case.train_set.batches(256)]
        distance = (torch.cat(parts) - near).norm(dim=1)  # of unit vectors, so 2 at most
    return Answer(scores=np.where(case.train_set.y == case.event_y, 0.0, -4.0) - distance.double().numpy())
