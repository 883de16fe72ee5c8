"""What a generated module says of itself: its description, and the manifest that tools read."""

from __future__ import annotations

from attngen.emit.arguments import TRITON
from attngen.emit.faces import BackwardFace, Interface
from attngen.emit.paged import page_numbers, stored_dtype
from attngen.emit.parts import Parts, launch_of
from attngen.emit.records import Backward, Loop
from attngen.emit.split import merged
from attngen.ir import expr as ex
from attngen.ir.expr import Const
from attngen.ir.graph import Graph
from attngen.ir.nodes import Config, Contract, Fold, Input, Load, Pages

_TILE = {"tile": ["BLOCK_M", "BLOCK_N"]}


def description(graph: Graph, parts: Parts) -> str:
    tiles = parts.fold.tiles
    assert tiles is not None
    lines = [
        f"Softmax attention over keys j with: {mask_text(parts)}.",
        "A tile of queries at positions i_lo..i_hi meets keys in "
        + " and ".join(str(i) for i in tiles.may)
        + (f"; all are allowed in {' and '.join(str(i) for i in tiles.must)}." if tiles.must else "."),
    ]
    return "\n".join(lines)


def mask_text(parts: Parts) -> str:
    """The mask in the positions of a sequence."""
    return ex.text(ex.substitute(parts.fold.domain.mask, {"prefix_start": Const(0)}))


def manifest(
    graph: Graph,
    parts: Parts,
    face: Interface,
    loops: tuple[Loop, ...],
    table_loops: tuple[Loop, ...],
    reverse: Backward | None,
) -> dict[str, object]:
    tiles = parts.fold.tiles
    assert tiles is not None
    return {
        "mechanism": "paged" if parts.pages else "packed" if parts.packed else "dense",
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
        "deterministic": all(fold.carrier != "atomic" for _, fold in graph.all(Fold)),
        "configs": _configs(parts, parts.launch.configs),
        **({"decode_configs": _configs(parts, parts.launch.decode)} if parts.launch.decode else {}),
        "kernels": {
            **_kernels(graph, parts, face, loops, table_loops),
            **(_backward(graph, parts, face.backward, reverse) if face.backward and reverse else {}),
        },
    }


def _backward(graph: Graph, parts: Parts, face: BackwardFace, reverse: Backward) -> dict[str, object]:
    """The backward kernels, with schedules of their own."""
    qk, dp = {"node": "qk", **_columns(parts.k)}, {"node": "dp", **_columns(parts.v)}
    products = {
        "dq": [{**x, **_TILE} for x in (qk, dp, {"node": "dq", **_columns(parts.k)})],
        "dk": [
            {**qk, **_TILE},
            {**dp, **_TILE} if parts.v_in_k else {**dp, **_TILE, "when": "WANT_DK"},
            *_sums_over_rows(parts, reverse),
        ],
    }
    loads = {
        "dq": _loads(graph, parts),
        "dk": [
            {"tensor": n, "tile": ["BLOCK_M"], **_columns(x)} for n, x in (("q", parts.k), ("dout", parts.v))
        ],
    }
    found: dict[str, object] = {}
    for kernel, result in ((face.rows, "lse2"), (face.dq, "dq"), (face.dkdv, "dk")):
        _, launch = launch_of(graph, f"{result}_heads" if f"{result}_heads" in graph.nodes else result)
        keys = {*kernel.constants, "num_warps", "num_stages", *(["APART"] if result == "dk" else [])}
        body = {"dq": reverse.dq, "dk": reverse.dkdv}.get(result)
        found[kernel.name] = {
            "arguments": dict(kernel.types),
            "constants": list(kernel.constants),
            "loops": [
                {
                    "role": f"{'dq' if result == 'dq' else 'dkdv'} {walk.kind}",
                    "node": result,
                    "products": products[result],
                    "loads": loads[result],
                }
                for walk in ((*body.merged, *body.loops) if body else ())
            ],
            "configs": {
                target: [{k: v for k, v in _config(c).items() if k in keys} for c in choices]
                for target, choices in launch.configs
            },
        }
    return {**found, **_captured(graph, face, {"products": [{**x, **_TILE} for x in (qk, dp)]})}


def _captured(graph: Graph, face: BackwardFace, per_tile: dict[str, object]) -> dict[str, object]:
    """The kernels of captured gradients: loops over tiles of scores, and over what those have stored."""
    found: dict[str, object] = {}
    for captured in face.captured:
        fold, (_, launch) = graph.nodes[captured.stores], launch_of(graph, captured.stores)
        assert isinstance(fold, Fold)
        scores = {"role": "captured", "node": captured.stores, **per_tile, "loads": []}
        others = {"role": "diagonals", "node": captured.stores, "products": [], "loads": []}
        over_scores = fold.level == "tile"
        keys = {*captured.kernel.constants, "num_warps", "num_stages"}
        found[captured.kernel.name] = {
            "arguments": dict(captured.kernel.types),
            "constants": list(captured.kernel.constants),
            "loops": [scores] * over_scores + [others] * (launch.tile_axis == "Sd" or not over_scores),
            "configs": {
                target: [{k: v for k, v in _config(c).items() if k in keys} for c in choices]
                for target, choices in launch.configs
            },
        }
    return found


def _sums_over_rows(parts: Parts, reverse: Backward) -> list[dict[str, object]]:
    """The products that a program over keys adds up, each under the flag that asks for it."""
    if not parts.v_in_k:
        return [
            {"node": "dk", **_columns(parts.k), **_TILE, "when": "WANT_DK"},
            {"node": "dv", **_columns(parts.v), **_TILE, "when": "WANT_DV"},
        ]
    found: list[dict[str, object]] = []
    for node, load, chunks in (("dk", parts.k, reverse.own_k_chunks), ("dv", parts.v, reverse.own_v_chunks)):
        for flag in dict.fromkeys(chunk.want for chunk in chunks):
            own = [chunk for chunk in chunks if chunk.want == flag]
            padded = sum(chunk.width for chunk in own)
            columns = min(own[-1].start + own[-1].width, load.columns) - own[0].start
            found.append({"node": node, "columns": columns, "padded": padded, **_TILE, "when": flag})
    return found


def _kernels(
    graph: Graph, parts: Parts, face: Interface, loops: tuple[Loop, ...], table_loops: tuple[Loop, ...]
) -> dict[str, object]:
    """Per kernel: argument types ("*io" points to the tensors' dtype) and compile-time constants, in order, and its loops."""
    kernels: dict[str, object] = {
        "_attention_forward": {
            "arguments": dict(face.kernel_types),
            "constants": list(face.kernel_constants),
            "loops": [_loop(graph, loop, _products(graph, parts), _loads(graph, parts)) for loop in loops],
        }
    }
    if parts.pages is not None:
        kernels["_append"] = _append(graph, parts)
    if parts.combine is not None:
        _, pieces = merged(parts.splits, prefix=parts.shares_prefix)
        kernels["_combine"] = {
            "arguments": dict(face.combine_types),
            "constants": ["BLOCK_M"],
            "loops": [
                {"role": "combine", "node": _softmax(graph), "products": [], "loads": []} for _ in pieces
            ],
            "configs": {target: [_rows_only(c) for c in found] for target, found in parts.combine.configs},
        }
    if parts.fold.domain.table:
        kernels["_mask_table"] = {
            "arguments": dict(face.table_types),
            "constants": list(face.table_constants),
            "loops": [_loop(graph, loop, [], []) for loop in table_loops],
        }
    return kernels


def _loop(graph: Graph, loop: Loop, products: list[object], loads: list[object]) -> dict[str, object]:
    """A `for` of a kernel, in the order of its text: the fold it runs, and what one tile of it multiplies and loads."""
    name = _softmax(graph)
    return {"role": "partial" if loop.masked else "full", "node": name, "products": products, "loads": loads}


def _softmax(graph: Graph) -> str:
    """The node of the forward's fold."""
    return next(name for name, fold in graph.all(Fold) if fold.monoid == "softmax")


def _products(graph: Graph, parts: Parts) -> list[object]:
    """Products of one tile: 2 x tile x columns FLOPs, of which `padded` columns are computed."""
    fold, contract = _softmax(graph), next(name for name, _ in graph.all(Contract))
    return [
        {"node": name, "tile": ["BLOCK_M", "BLOCK_N"], **_columns(load)}
        for name, load in ((contract, parts.k), (fold, parts.v))
    ]


def _loads(graph: Graph, parts: Parts) -> list[object]:
    """Tiles of keys and values that one turn of the loop brings in; with pages, all that it must read of its keys.

    An entry with ``keys`` is read once for so many.
    """
    loaded = [parts.k] if parts.v_in_k else [parts.k, parts.v]
    tiles: list[dict[str, object]] = [
        {"tensor": load.operand, "tile": ["BLOCK_N"], **_columns(load)} for load in loaded
    ]
    if parts.pages is None:
        return list(tiles)
    stored = {"dtype": stored_dtype(graph)}
    one = {"tile": ["BLOCK_N"], "columns": 1}
    scales = [
        {"tensor": f"{load.operand}_scale", **one, "dtype": "float32"}
        for load in loaded
        if parts.scales == "token_head"
    ]
    table = {"tensor": page_numbers(parts.pages), **one, "dtype": "int32", "keys": parts.pages.size}
    return [*({**tile, **stored} for tile in tiles), *scales, table]


def _columns(load: Load) -> dict[str, object]:
    return {"columns": load.columns, "padded": sum(width for _, width in load.chunks)}


def _compiled_in(graph: Graph, parts: Parts) -> dict[str, object]:
    """What another value of needs another module, read off the graph."""
    q = graph.nodes[parts.q.operand]
    assert isinstance(q, Input)
    return {
        "dtypes": list(q.dtypes),
        "layout": q.layout,
        "group": graph.axis("Hkv").group,
        "head_dim": {"qk": parts.k.columns, "v": parts.v.columns},
        "mask": mask_text(parts),
        "score": "s"
        if parts.score is None
        else ex.text(ex.substitute(parts.score.expr, {"prefix_start": Const(0)})),
        "sinks": parts.sink is not None,
        **({"cache": _cache(graph, parts.pages)} if parts.pages else {}),
        **({"splits": str(parts.splits)} if parts.splits else {}),
        "precision": parts.contract.precision,
        **({"dropout": True} if parts.has_dropout else {}),
    }


def _cache(graph: Graph, pages: Pages) -> dict[str, object]:
    k = graph.nodes["k"]
    assert isinstance(k, Input)
    form: dict[str, object] = {
        "page_size": pages.size,
        "layout": {"pshd": "nhd", "phsd": "hnd"}[k.layout],
        "table": pages.table,
        **({"prefix": "shared"} if pages.prefix else {}),
    }
    return form | ({"dtype": k.dtype, "scales": f"per_{k.scales}"} if k.scales else {})


def _append(graph: Graph, parts: Parts) -> dict[str, object]:
    """The kernel that writes new keys; its constants follow from the rows that it is given."""
    stored = TRITON[stored_dtype(graph)]
    scale = {"scale": "*fp32"} if parts.scales else {}
    steps = [f"stride_{x}" for x in ("xt", "xh", "cp", "cs", "ch")]
    steps += [f"stride_scale_{c}" for c in "psh"] if parts.scales == "token_head" else []
    arguments = {
        "x": "*io",
        "cache": f"*{stored}",
        **scale,
        "slot_mapping": "*i64",
        "cos": "*fp32",
        "sin": "*fp32",
    }
    arguments |= {"positions": "*i64", **dict.fromkeys([*steps, "stride_table"], "i32")}
    width = 1 << (parts.k.columns - 1).bit_length()
    constants = {"HEAD_DIM": parts.k.columns, "WIDTH": width, "ROTARY": parts.k.columns, "INTERLEAVED": False}
    return {
        "arguments": arguments,
        "constants": list(constants),
        "loops": [],
        "configs": {"default": [{**constants, "num_warps": 1, "num_stages": 1}]},
    }


def _rows_only(config: Config) -> dict[str, object]:
    return {
        key: value for key, value in _forward(config).items() if key in ("BLOCK_M", "num_warps", "num_stages")
    }


def _configs(parts: Parts, configs: tuple[tuple[str, tuple[Config, ...]], ...]) -> dict[str, object]:
    """Schedules per target; keys in pages are found by pointers only."""
    left_out = ("USE_DESCRIPTORS",) if parts.pages else ()
    return {
        target: [{k: v for k, v in _forward(c).items() if k not in left_out} for c in choices]
        for target, choices in configs
    }


def _forward(config: Config) -> dict[str, object]:
    return {key: value for key, value in _config(config).items() if key not in ("MERGED", "APART")}


def _config(config: Config) -> dict[str, object]:
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "USE_DESCRIPTORS": config.use_descriptors,
        "MERGED": config.merged,
        "APART": config.apart,
    }
