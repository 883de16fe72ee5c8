"""Attention itself: for every query the softmax over the keys that the mask allows, in blocks of queries."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from attngen.reference.oracle_dropout import dropout_factors
from attngen.reference.oracle_formula import Indexed, Scope, evaluate
from attngen.reference.oracle_inputs import Call

MAX_ELEMENTS = 2**23
"""Scores held at once; a block of queries is chosen to stay below."""


def attend_dense(call: Call) -> tuple[Tensor, Tensor]:
    """(out, lse) of a call with layout bshd or bhsd, in that layout."""
    heads_first = call.spec.layout == "bhsd"
    q, k, v = (x if heads_first else x.transpose(1, 2) for x in (call.q, call.k, call.v))
    out, lse = _attend(call, q, k, v, batch=torch.arange(q.shape[0], device=q.device), starts={})
    return (out if heads_first else out.transpose(1, 2)), lse


def attend_packed(call: Call) -> tuple[Tensor, Tensor]:
    """(out, lse) of a call with layout thd: one sequence after the other."""
    outs: list[Tensor] = []
    lses: list[Tensor] = []
    for index, (q_start, q_end, k_start, k_end) in enumerate(call.sequences):
        q = call.q[q_start:q_end].transpose(0, 1)[None]
        k, v = (x[k_start:k_end].transpose(0, 1)[None] for x in (call.k, call.v))
        batch = torch.tensor([index], device=q.device)
        out, lse = _attend(call, q, k, v, batch=batch, starts={"Tq": q_start, "Tk": k_start})
        outs.append(out[0].transpose(0, 1))
        lses.append(lse[0])
    if not outs:
        empty = call.q[:0, :, :0]
        return empty.new_zeros(0, call.q.shape[1], call.v.shape[2]), empty.new_zeros(call.q.shape[1], 0)
    return torch.cat(outs), torch.cat(lses, dim=1)


def _attend(
    call: Call, q: Tensor, k: Tensor, v: Tensor, *, batch: Tensor, starts: Mapping[str, int]
) -> tuple[Tensor, Tensor]:
    """out [B, Hq, Sq, Dv] and lse [B, Hq, Sq] of q [B, Hq, Sq, D], k [B, Hkv, Sk, D], v [B, Hkv, Sk, Dv]."""
    group = call.spec.heads.group
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    seqlen_q, seqlen_k = q.shape[2], k.shape[2]
    rows = max(1, MAX_ELEMENTS // max(1, q.shape[0] * q.shape[1] * seqlen_k))
    captured = _captured(call, seqlen_q, seqlen_k, starts)
    outs: list[Tensor] = []
    lses: list[Tensor] = []
    for start in range(0, max(seqlen_q, 1), rows):
        block = q[:, :, start : start + rows]
        symbols = _symbols(call, batch, start, block.shape[2], seqlen_q, seqlen_k)
        out, lse = _attend_block(call, block, k, v, symbols, captured)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)


def _captured(call: Call, seqlen_q: int, seqlen_k: int, starts: Mapping[str, int]) -> dict[str, Indexed]:
    """Captured tensors as one sequence sees them: token axes start at the sequence and end with it."""
    extents = {"Tq": seqlen_q, "Tk": seqlen_k}
    indexed: dict[str, Indexed] = {}
    for captured in call.spec.captured:
        tensor = call.captured[captured.name]
        indexed[captured.name] = Indexed(
            tensor=tensor,
            extents=tuple(extents.get(str(a), n) for a, n in zip(captured.axes, tensor.shape, strict=True)),
            starts=tuple(starts.get(str(axis), 0) for axis in captured.axes),
        )
    return indexed


def _symbols(
    call: Call, batch: Tensor, start: int, rows: int, seqlen_q: int, seqlen_k: int
) -> dict[str, Tensor]:
    """The symbols and params on the grid [B, Hq, rows, Sk] of a block of queries, each with few elements."""
    device = batch.device
    heads = torch.arange(call.num_q_heads, device=device)[:, None, None]
    row = torch.arange(start, start + rows, device=device)[:, None]
    return {
        "b": batch[:, None, None, None],
        "h": heads,
        "hk": heads // call.spec.heads.group,
        "row": row,
        "i": row + (seqlen_k - seqlen_q),
        "j": torch.arange(seqlen_k, device=device),
        "seqlen_q": torch.tensor(seqlen_q, device=device),
        "seqlen_k": torch.tensor(seqlen_k, device=device),
    } | call.params


def _attend_block(
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    symbols: Mapping[str, Tensor],
    captured: Mapping[str, Indexed],
) -> tuple[Tensor, Tensor]:
    """out [B, Hq, rows, Dv] and lse [B, Hq, rows] of one block of queries; k and v have Hq heads here."""
    shape = (*q.shape[:3], k.shape[2])
    allowed = torch.ones(shape, dtype=torch.bool, device=q.device)
    if call.spec.mask is not None:
        allowed = evaluate(
            call.spec.mask.tree, Scope("mask", symbols, captured, call.floats, strict=False), shape
        )
    scores = _products(q, k, allowed) * call.softmax_scale
    scores = _formula(call, scores, allowed, symbols, captured).to(call.softmax_dtype)

    peak = (
        scores.detach().amax(-1, keepdim=True) if shape[3] else scores.new_full((*shape[:3], 1), -torch.inf)
    )
    sink = None if call.sinks is None else call.sinks.to(call.softmax_dtype)[:, None, None]
    if sink is not None:
        peak = torch.maximum(peak, sink.detach())
    safe_peak = torch.where(peak == -torch.inf, 0.0, peak)
    weights = torch.exp(scores - safe_peak)
    total = weights.sum(-1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(sink - safe_peak)
    empty = total == 0
    safe_total = torch.where(empty, 1.0, total)
    lse = torch.where(empty, -torch.inf, safe_peak + torch.log(safe_total))
    p = weights / safe_total
    if call.dropout_threshold:
        p = p * dropout_factors(call.dropout_threshold, call.seed, symbols).to(p.dtype)
    return _weighted(p.to(v.dtype), v, allowed), lse[..., 0]


def _formula(
    call: Call,
    scores: Tensor,
    allowed: Tensor,
    symbols: Mapping[str, Tensor],
    captured: Mapping[str, Indexed],
) -> Tensor:
    """The scores after the spec's formula, -inf where the mask does not allow.

    The formula is evaluated at the allowed places only: nothing of the others reaches values or gradients.
    """
    if call.spec.score is None:
        return torch.where(allowed, scores, -torch.inf)
    there = {name: x if x.dim() == 0 else x.expand(scores.shape)[allowed] for name, x in symbols.items()}
    chosen = scores[allowed]
    scope = Scope("score", there | {"s": chosen}, captured, call.floats, strict=True)
    values = evaluate(call.spec.score.tree, scope, chosen.shape)
    values = values if values.is_floating_point() else values.to(call.floats)
    if bool(
        (hidden := values == -torch.inf).any()
    ):  # such a score means masked: nothing of it reaches gradients
        return _formula(call, scores, allowed.masked_scatter(allowed, ~hidden), symbols, captured)
    everywhere = values.new_full(scores.shape, -torch.inf)
    return everywhere.masked_scatter(allowed, values)


def _products(q: Tensor, k: Tensor, allowed: Tensor) -> Tensor:
    """q k^T. If one is not finite, masked pairs are left out of every sum, so that their gradients are 0."""
    if bool(torch.isfinite(q).all() & torch.isfinite(k).all()):
        return q @ k.transpose(-1, -2)
    seen = torch.where(allowed[..., None], k[:, :, None], 0.0)
    return (q[:, :, :, None] * seen).sum(-1)


def _weighted(p: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """p v. Where v is not finite, a masked value is left out of every sum: 0 * NaN is not 0."""
    if bool(torch.isfinite(v).all()):
        return p @ v
    seen = torch.where(allowed[..., None], v[:, :, None], 0.0)
    return (p[..., None] * seen).sum(-2)
