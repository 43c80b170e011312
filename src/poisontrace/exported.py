"""A program of ``torch.export`` as a network with layers, so that the tracer can watch what goes into them."""

from typing import Any

import torch
from torch import nn

from poisontrace._errors import UnsupportedModelError

CONVOLUTIONS: dict[Any, Any] = {
    torch.ops.aten.conv1d.default: nn.Conv1d,
    torch.ops.aten.conv2d.default: nn.Conv2d,
    torch.ops.aten.conv3d.default: nn.Conv3d,
}


def as_module(program: Any) -> nn.Module:
    """Return an exported program with a layer in the place of each linear map and convolution.

    The program should have been exported in eval mode with a batch size that may vary.

    Args:
        program: what ``torch.export.load`` or ``torch.export.export`` returned. Loading one may run code that is in the
            file, so do it only where you trust its origin.

    Raises:
        UnsupportedModelError: if the program has no linear map.

    Example:
        >>> batch = {0: torch.export.Dim("n", min=1, max=1024)}
        >>> program = torch.export.export(nn.Linear(4, 2), (torch.zeros(3, 4),), dynamic_shapes=(batch,))
        >>> as_module(program)(torch.zeros(7, 4)).shape
        torch.Size([7, 2])
    """
    graph_module = program.module()
    tensors = {**dict(graph_module.named_parameters()), **dict(graph_module.named_buffers())}
    n_layers = 0
    for node in list(graph_module.graph.nodes):
        weights = [argument for argument in node.args[1:3] if isinstance(argument, torch.fx.Node)]
        if node.op != "call_function" or any(weight.op != "get_attr" for weight in weights) or not weights:
            continue
        found = [tensors[weight.target] for weight in weights]
        layer = _layer(node, found[0], found[1] if len(found) > 1 else None)
        if layer is None:
            continue
        name = f"layer_{n_layers}_{str(weights[0].target).replace('.', '_')}"
        graph_module.add_submodule(name, layer)
        with graph_module.graph.inserting_after(node):
            call = graph_module.graph.call_module(name, (node.args[0],))
        node.replace_all_uses_with(call)
        graph_module.graph.erase_node(node)
        n_layers += 1
    if not n_layers:
        raise UnsupportedModelError(
            "'model' must hold linear maps or convolutions (got a program without one). "
            "Pass the network itself as --model file.py:factory."
        )
    graph_module.recompile()
    return torch.fx.GraphModule(graph_module, graph_module.graph)


def _layer(node: torch.fx.Node, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module | None:
    """Return the layer that does what a node does, with the same tensors, or None if there is none."""
    layer: nn.Module
    if node.target == torch.ops.aten.linear.default:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    elif node.target in CONVOLUTIONS:
        names = ("stride", "padding", "dilation", "groups")
        settings: Any = dict(zip(names, node.args[3:], strict=False))
        n_in, kernel = weight.shape[1] * settings.get("groups", 1), tuple(weight.shape[2:])
        kind = CONVOLUTIONS[node.target]
        layer = kind(n_in, weight.shape[0], kernel, bias=bias is not None, device="meta", **settings)
    else:
        return None
    layer.weight = nn.Parameter(weight.detach())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach())
    return layer
