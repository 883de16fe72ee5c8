"""Decode: the fold of a recurrence run token by token, its state read and written in place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from attngen.ir.expr import Const
from attngen.ir.graph import Graph
from attngen.ir.nodes import Finish, Fold, Launch, Map, Node, Read, Store
from attngen.passes.schedules_recurrence import of_decode


def decode_nodes(graph: Graph, loaded: Mapping[str, str]) -> dict[str, Node]:
    """The nodes of the kernel that decodes, of the semantic graph of a recurrence.

    Its fold is cut at every token and the state stays in registers, decays in base two. What is read, and what becomes of
    that, are the nodes of the semantic graph once more, over this fold. `loaded` names the loads of inputs.
    """
    fold, read = graph.nodes["fold"], graph.nodes["read"]
    assert isinstance(fold, Fold)
    assert isinstance(read, Read)
    found: dict[str, Node] = {
        "token_fold": replace(
            fold,
            element=loaded.get(fold.element, fold.element),
            value=loaded.get(fold.value, fold.value),
            base="2" if fold.decay else "e",
            factor=Const(math.log2(math.e)) if fold.decay else None,
            level="token",
            order="sequential",
            carrier="register",
        ),
        "token_read": replace(read, query=loaded.get(read.query, read.query), state="token_fold"),
    }
    stores = {"out": "io", "states": "own"}
    for result, dtype in stores.items():
        name = result
        while f"token_{name}" not in found:
            node = graph.nodes[name]
            assert isinstance(node, Map | Finish)
            found[f"token_{name}"] = replace(node, operand=f"token_{node.operand}")
            name = node.operand
        axes = getattr(found[f"token_{result}"], "axes", ())
        found[f"store_token_{result}"] = Store(operand=f"token_{result}", name=result, dtype=dtype, axes=axes)
    sizes = [graph.axis(a).size for a in fold.axes[-2:]]
    rows, columns = (int(size.value) for size in sizes if isinstance(size, Const))
    values = graph.axis("V").size
    whole = isinstance(values, Const) and values.value != columns
    found["decode_kernel"] = Launch(
        stores=tuple(f"store_token_{result}" for result in stores),
        tile_axis=fold.axes[-1],
        program_axes=("B", "H"),
        configs=of_decode(rows, columns, whole=whole),
        rows="states",
    )
    return found
