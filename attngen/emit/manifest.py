"""What a generated module says of itself: its description, and the manifest that tools read."""

from __future__ import annotations

from attngen.emit.interface import Interface
from attngen.emit.parts import Parts
from attngen.ir import expr as ex
from attngen.ir.graph import Graph
from attngen.ir.nodes import Config, Input


def description(graph: Graph, parts: Parts) -> str:
    tiles = parts.fold.tiles
    assert tiles is not None
    lines = [
        f"Softmax attention over keys j with: {ex.text(parts.fold.domain.mask)}.",
        "A tile of queries at positions i_lo..i_hi meets keys in "
        + " and ".join(str(i) for i in tiles.may)
        + (f"; all are allowed in {' and '.join(str(i) for i in tiles.must)}." if tiles.must else "."),
    ]
    return "\n".join(lines)


def manifest(graph: Graph, parts: Parts, face: Interface) -> dict[str, object]:
    tiles = parts.fold.tiles
    assert tiles is not None
    return {
        "mechanism": "packed" if parts.launch.rows == "packed" else "dense",
        "compiled_in": _compiled_in(graph, parts),
        "run_time": [
            n for n, kind in face.kernel_types if not kind.startswith("*") and not n.startswith("stride")
        ],
        "mask": {
            "may": [str(i) for i in tiles.may],
            "must": [str(i) for i in tiles.must],
            "residual": ex.text(tiles.residual),
            "exact": tiles.exact,
            "notes": list(tiles.notes),
        },
        "configs": {target: [_config(c) for c in choices] for target, choices in parts.launch.configs},
        "kernels": _kernels(parts, face),
    }


def _kernels(parts: Parts, face: Interface) -> dict[str, object]:
    """Per kernel: argument types ("*io" points to the tensors' dtype) and compile-time constants, in order."""
    kernels: dict[str, object] = {
        "_attention_forward": {"arguments": dict(face.kernel_types), "constants": list(face.kernel_constants)}
    }
    if parts.fold.domain.table:
        kernels["_mask_table"] = {
            "arguments": dict(face.table_types),
            "constants": list(face.table_constants),
        }
    return kernels


def _compiled_in(graph: Graph, parts: Parts) -> dict[str, object]:
    """What another value of needs another module, read off the graph."""
    q = graph.nodes[parts.q.operand]
    assert isinstance(q, Input)
    return {
        "dtypes": list(q.dtypes),
        "layout": q.layout,
        "group": graph.axis("Hkv").group,
        "head_dim": {"qk": parts.k.columns, "v": parts.v.columns},
        "mask": ex.text(parts.fold.domain.mask),
        "score": "s" if parts.score is None else ex.text(parts.score.expr),
        "sinks": parts.sink is not None,
        "precision": parts.contract.precision,
    }


def _config(config: Config) -> dict[str, object]:
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "USE_DESCRIPTORS": config.use_descriptors,
    }
