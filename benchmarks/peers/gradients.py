"""Influence as likeness of gradients: the product (TracIn), the cosine (GradCos) and the cosine layer by layer (GAS).

Pruthi et al., "Estimating Training Data Influence by Tracing Gradient Descent" (NeurIPS 2020); Hammoudeh and Lowd,
"Identifying a Training-Set Attack's Target Using Renormalized Influence Estimation" (CCS 2022). Both sum over
checkpoints of the training; an investigator has the last one, and so have we, which makes GAS over all layers the same
as GradCos. A rate of learning, the same for all samples, changes no ranking.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from peers.case import Answer, Case

CHUNK = 64  # samples whose gradients are held at once; more is no faster on a CPU
Gradients = dict[str, Tensor]


def find_product(case: Case) -> Answer:
    """TracIn over all layers."""
    return _ranked(case, "", lambda products, _, __: products.sum(0))


def find_last_product(case: Case) -> Answer:
    """TracIn at the last layer."""
    return _ranked(case, _last(case), lambda products, _, __: products.sum(0))


def find_cosine(case: Case) -> Answer:
    """GAS of one checkpoint, which is GradCos, over all layers."""
    return _ranked(case, "", _cosine)


def find_last_cosine(case: Case) -> Answer:
    """GradCos at the last layer."""
    return _ranked(case, _last(case), _cosine)


def find_cosine_by_layer(case: Case) -> Answer:
    """GAS-L: each tensor of parameters is renormalised on its own."""
    return _ranked(case, "", lambda products, norms, own: (products / (norms * own).clamp_min(1e-30)).sum(0))


def per_sample(case: Case, prefix: str) -> Iterator[Gradients]:
    """Yield the gradients of the loss of each sample at its label, a chunk (b, ...) at a time.

    Args:
        case: whose samples.
        prefix: of the names of parameters; "" takes all.
    """
    for x, y in case.train_set.batches(CHUNK):
        yield _gradients(case, x, torch.from_numpy(y), prefix)


def _gradients(case: Case, x: Tensor, y: Tensor, prefix: str) -> Gradients:
    state = {name: t.detach() for name, t in (*case.model.named_parameters(), *case.model.named_buffers())}
    chosen = {name: state[name] for name, _ in case.model.named_parameters() if name.startswith(prefix)}
    model: nn.Module = case.model
    if prefix:  # what is below the last layer needs no gradient, so it runs once and outside
        with torch.no_grad():
            x = case.body(x)
        model = case.head
        state = chosen = {name.removeprefix(prefix): t for name, t in chosen.items()}

    def loss(parameters: Gradients, sample: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, {**state, **parameters}, (sample[None],))
        return functional.cross_entropy(logits, label[None])

    result: Gradients = vmap(grad(loss), in_dims=(None, 0, 0))(chosen, x, y)
    return result


def _last(case: Case) -> str:
    return f"{len(case.model) - 1}."


def _cosine(products: Tensor, norms: Tensor, own: Tensor) -> Tensor:
    return products.sum(0) / (norms.square().sum(0) * own.square().sum()).sqrt().clamp_min(1e-30)


def _ranked(case: Case, prefix: str, rule: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Answer:
    """Rank samples by a rule of (products (l, n), norms (l, n), norms of the event's (l, 1)) over l tensors."""
    event = _gradients(case, case.event_x[None], torch.tensor([case.event_y]), prefix)
    own = torch.stack([g.double().norm() for g in event.values()])[:, None]
    products, norms = [], []
    for chunk in per_sample(case, prefix):
        flat = {name: g.flatten(1) for name, g in chunk.items()}
        products.append(torch.stack([flat[name] @ event[name].flatten() for name in event]))
        norms.append(torch.stack([g.norm(dim=1) for g in flat.values()]))
    scores = rule(torch.cat(products, 1).double(), torch.cat(norms, 1).double(), own)
    return Answer(scores=scores.numpy())
