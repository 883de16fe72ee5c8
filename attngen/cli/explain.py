"""`attngen explain`: what a spec means for the kernel, as JSON-able data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from attngen.cli.example import Assumed, Example, assume
from attngen.cli.explain_recurrence import recurrence_explanation
from attngen.cli.listing import mechanism
from attngen.ir.expr import text
from attngen.ir.graph import graph_text
from attngen.ir.nodes import Fold, Launch
from attngen.ir.tile_ranges import tile_ranges
from attngen.ir.tiles import Tiles
from attngen.passes.build import build
from attngen.passes.pipeline import PIPELINE, run
from attngen.spec import Spec

WIDTH: Final = 64
CHARACTERS: Final = ".+#"
"""Of empty, partial and full tiles."""


def explanation(spec: Spec, example: Example) -> dict[str, Any]:
    """Return everything that `explain` says of a spec."""
    if spec.recurrence is not None:
        return recurrence_explanation(spec, spec.recurrence, example)
    semantic = build(spec)
    scheduled = run(semantic)
    fold = next(fold for _, fold in scheduled.all(Fold) if fold.monoid == "softmax")
    launch = scheduled.all(Launch)[0][1]
    tiles = _tiles(fold)
    return {
        "name": spec.name,
        "summary": spec.summary,
        "mechanism": mechanism(spec),
        "compiled_in": _compiled_in(spec),
        "run_time": _run_time(spec),
        "mask": _mask(spec, tiles),
        "tiles": _counts(spec, tiles, launch, example),
        "passes": [{"name": step.name, "does": _first_line(step)} for step in PIPELINE],
        "schedules": {target: [asdict(c) for c in choices] for target, choices in launch.configs},
        "semantic": graph_text(semantic),
        "scheduled": graph_text(scheduled),
    }


def _tiles(fold: Fold) -> Tiles:
    assert fold.tiles is not None  # `run` verified the scheduled graph
    return fold.tiles


def _compiled_in(spec: Spec) -> dict[str, Any]:
    """The structure: another value of any of these is another kernel."""
    structure = ("head_dim", "layout", "score", "mask", "sinks", "dropout", "cache", "precision")
    canonical = spec.canonical()
    values = {param.name: param.value for param in spec.params if not param.runtime}
    found = {"dtypes": list(spec.dtypes), "group": spec.heads.group}
    found |= {key: canonical[key] for key in structure if key in canonical}
    return found | ({"params": values} if values else {})


def _run_time(spec: Spec) -> dict[str, str]:
    """What a call brings."""
    found = {
        "heads": f"any number in groups of {spec.heads.group}; {spec.heads.q} / {spec.heads.kv} in the spec",
        "lengths": _lengths(spec),
        "strides": "any, with a contiguous last dimension",
        "softmax_scale": f"{spec.head_dim.qk**-0.5:.6g} unless given",
    }
    if spec.cache is not None and spec.cache.prefix:
        found["prefixes"] = (
            "per group of sequences: prefix_table, prefix_seqlens and cu_groups; none, or any number of keys"
        )
    found |= {param.name: f"{param.type} param" for param in spec.params if param.runtime}
    for captured in spec.captured:
        axes = ", ".join(str(axis) for axis in captured.axes)
        found[captured.name] = f"{captured.dtype} [{axes}]{', ascending' if captured.sorted else ''}"
    found |= {"sinks": "float32 [Hq]"} if spec.sinks else {}
    drawn = {"dropout_p": "float, 0 <= dropout_p < 1", "seed": "int, int64 [2] (seed, offset), or drawn"}
    return found | (drawn if spec.dropout else {})


def _lengths(spec: Spec) -> str:
    if spec.cache is not None:
        return "per sequence: queries from cu_seqlens_q, keys and their pages from the tables"
    packed = spec.layout == "thd"
    return "per sequence, from cu_seqlens and seqused_k" if packed else "batch, seqlen_q, seqlen_k"


def _mask(spec: Spec, tiles: Tiles) -> dict[str, Any]:
    loops = tile_ranges(tiles)
    return {
        "formula": spec.mask.text if spec.mask else None,
        "may": [str(part) for part in tiles.may],
        "must": [str(part) for part in tiles.must],
        "row": str(tiles.row),
        "residual": text(tiles.residual),
        "exact": tiles.exact,
        "notes": list(tiles.notes),
        "loops": str(loops).splitlines(),
    }


def _counts(spec: Spec, tiles: Tiles, launch: Launch, example: Example) -> dict[str, Any]:
    """Tiles of one head, with the untuned default schedule, and their picture."""
    from attngen.ir.tile_counts import count

    config = dict(launch.configs)["default"][0]
    blocks = {"block_m": config.block_m, "block_n": config.block_n}
    assumed = assume(spec, tiles, example)
    lengths: dict[str, Any] = {"seqlen_q": example.seqlen_q, "seqlen_k": example.seqlen_k}
    packed: dict[str, Any] = {}
    one = lengths
    if spec.layout == "thd":
        q, k = example.lengths()
        lengths = {"seqlen_q": q, "seqlen_k": k}
        longest = max(range(len(q)), key=lambda n: (q[n], k[n]))
        one = {"seqlen_q": q[longest], "seqlen_k": k[longest]}
        packed = {"documents": example.documents, "pictured": one}
    found = count(tiles, **lengths, block_m=config.block_m, block_n=config.block_n, env=assumed.env)
    return {
        "seqlen_q": example.seqlen_q,
        "seqlen_k": example.seqlen_k,
        **packed,
        **blocks,
        "assumed": assumed.words,
        "full": found.full,
        "partial": found.partial,
        "empty": found.empty,
        "map": _picture(tiles, one, blocks, assumed),
    }


def _picture(
    tiles: Tiles, lengths: Mapping[str, int], blocks: Mapping[str, int], assumed: Assumed
) -> dict[str, Any]:
    from attngen.ir.tile_counts import tile_map

    found = tile_map(
        tiles,
        seqlen_q=lengths["seqlen_q"],
        seqlen_k=lengths["seqlen_k"],
        block_m=blocks["block_m"],
        block_n=blocks["block_n"],
        env=assumed.env,
        limit=WIDTH,
    )
    rows = ["".join(CHARACTERS[kind] for kind in row) for row in found.classes.tolist()]
    return {"block_m": found.block_m, "block_n": found.block_n, "rows": rows}


def _first_line(step: object) -> str:
    return (type(step).__doc__ or "").strip().splitlines()[0]
