"""Other ways to find poison, each behind the same two words: a ``Case`` goes in, an ``Answer`` comes out.

None of this is shipped with the package. A method is a module with a function ``find(case)``; ``METHODS`` names them in
the order of the tables.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One line of the tables.

    Attributes:
        module: in this package; ``function`` is in it.
        function: takes a ``Case``, returns an ``Answer``.
        needs: what beyond model, data and event it is told: "" nothing, "rate" how much of the event's label is poison,
            "truth" everything.
        images_only: whether it cannot say anything about rows.
    """

    module: str
    function: str = "find"
    needs: str = ""
    images_only: bool = False


METHODS = {
    "ours": Method("ours"),
    "published procedure": Method("published"),
    "Δ-Influence": Method("influence", "find_by_change", images_only=True),
    "EK-FAC influence": Method("influence"),
    "TracIn, last layer": Method("gradients", "find_last_product"),
    "GradCos, last layer": Method("gradients", "find_last_cosine"),
    "TracIn, all layers": Method("gradients", "find_product"),
    "GAS": Method("gradients", "find_cosine"),
    "GAS, by layer": Method("gradients", "find_cosine_by_layer"),
    "deep k-NN to the event": Method("nearest"),
    "activation clustering": Method("art_filters", "find_by_activations"),
    "spectral signatures": Method("art_filters", "find_by_spectrum", needs="rate"),
    "random": Method("floors", "find_at_random"),
    "oracle": Method("floors", "find_the_truth", needs="truth"),
    "one forward pass": Method("floors", "run_once"),
}
