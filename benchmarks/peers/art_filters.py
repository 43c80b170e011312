"""Activation clustering and spectral signatures, as the Adversarial Robustness Toolbox (ART) has them.

Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering" (2018): two clusters of ten
principal components in each label, the smaller one is poison. Tran et al., "Spectral Signatures in Backdoor Attacks"
(NeurIPS 2018): in each label the samples with the largest share in the first singular vector, 1.5 times as many as
there is poison, and that number must be told. Neither looks at the event. Both papers watch the last hidden layer; with
PyTorch ART takes the last module whatever it is, so it is given the network without its last layer.
"""

import numpy as np
import torch
from art.defences.detector.poison import ActivationDefence, SpectralSignatureDefense
from art.estimators.classification import PyTorchClassifier

from peers.case import Answer, Case
from poisontrace._rng import derive
from poisontrace.data import to_inputs


def find_by_activations(case: Case) -> Answer:
    """Accuse the smaller cluster of each label."""
    np.random.seed(derive(case.seed, "peers/activations") % 2**32)  # ART's k-means takes no seed of its own
    defence = ActivationDefence(_classifier(case), to_inputs(case.train_set.x).numpy(), case.train_set.y)
    _, is_clean = defence.detect_poison(nb_clusters=2, nb_dims=10, reduce="PCA", cluster_analysis="smaller")
    return Answer(np.flatnonzero(np.array(is_clean) == 0))


def find_by_spectrum(case: Case) -> Answer:
    """Accuse 1.5 times the true share of poison in each label; what is not accused has no score."""
    defence = SpectralSignatureDefense(
        _classifier(case), to_inputs(case.train_set.x).numpy(), case.train_set.y, expected_pp_poison=case.rate
    )
    report, is_clean = defence.detect_poison()
    scores = np.zeros(len(case.train_set))
    scores[list(report)] = [float(score) for score in report.values()]
    return Answer(np.flatnonzero(np.array(is_clean) == 0), scores)


def _classifier(case: Case) -> PyTorchClassifier:
    return PyTorchClassifier(
        case.body,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=tuple(case.event_x.shape),
        nb_classes=case.head.out_features,
        device_type="cpu",
    )
