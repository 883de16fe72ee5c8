"""Recurrences, token by token: S = T S + k v, out = q S, with what surrounds it in Mamba-2 and in linear attention.

Sources: Mamba-2 (arXiv:2405.21060, equation 1 and section 6), RetNet (arXiv:2307.08621), GLA (arXiv:2312.06635), DeltaNet
(arXiv:2406.06484), Gated DeltaNet (arXiv:2412.06464), linear attention (arXiv:2006.16236).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attngen.reference.oracle_formula import Scope, evaluate
from attngen.reference.oracle_recurrence_inputs import Call, bind
from attngen.spec import Formula, Spec

KEPT = 16  # tokens whose states gradients keep at a time


@dataclass(frozen=True)
class Steps:
    """What a recurrence runs over, per token: all [B, L, H, ...] in the dtype to compute in.

    Attributes:
        decay: logarithms, [B, L, H, 1], or [B, L, H, K] for a decay per column; None for none.
        beta: [B, L, H] of a delta rule, else None.
        state: what goes before the first token, [sequences, H, K, V].
        bounds: where sequences of a packed call begin and end; None where each batch entry is one.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor | None
    beta: Tensor | None
    state: Tensor
    bounds: tuple[tuple[int, int], ...] | None


Run = Callable[[Steps], tuple[Tensor, Tensor]]


def recur(spec: Spec, inputs: Mapping[str, Any], *, same: bool) -> Tensor | tuple[Tensor, Tensor]:
    """out, or (out, final states) where the call asks for them; see `attngen.reference`."""
    call = bind(spec, inputs, same=same)
    steps, finish = _mamba(call) if call.recurrence.kind == "ssd" else _linear(call)
    run = _by_chunk(call) if same else by_token
    if steps.bounds is None:
        out, states = run(steps)
    else:
        parts = [run(_sequence(steps, n, *bounds)) for n, bounds in enumerate(steps.bounds)]
        out = torch.cat([steps.v[:, :0], *(out for out, _ in parts)], 1)
        states = torch.cat([steps.state[:0], *(state for _, state in parts)])
    out = finish(out).to(call.dtype)
    if not call.return_final:
        return out
    return out, (states.transpose(-1, -2) if call.recurrence.kind == "ssd" else states)


def _sequence(steps: Steps, index: int, start: int, end: int) -> Steps:
    return replace(_tokens(steps, start, end), state=steps.state[index : index + 1], bounds=None)


def _tokens(steps: Steps, start: int, end: int) -> Steps:
    along = ("q", "k", "v", "decay", "beta")
    return replace(steps, **{n: x[:, start:end] for n in along if (x := getattr(steps, n)) is not None})


# ---- what is folded


def _mamba(call: Call) -> tuple[Steps, Callable[[Tensor], Tensor]]:
    """Mamba-2: dt scales x and, times A, is the logarithm of the decay; D x and the gate z come after."""
    x, dt, log_rate = call["x"], call["dt"], call["A"]
    dt = dt if call.get("dt_bias") is None else dt + call["dt_bias"]
    if call.recurrence.dt_softplus:
        dt = torch.nn.functional.softplus(dt, threshold=1e9)
    dt = dt.clamp(*call.dt_limit)
    shared = x.shape[2] // call["B"].shape[2]
    keys, queries = (call[name].repeat_interleave(shared, 2) for name in ("B", "C"))
    skip, gate = call.get("D"), call.get("z")

    def finish(out: Tensor) -> Tensor:
        if skip is not None:
            out = out + x * (skip if skip.dim() == 2 else skip[:, None])
        return out if gate is None else out * torch.nn.functional.silu(gate)

    steps = Steps(queries, keys, x * dt[..., None], (dt * log_rate)[..., None], None, call.state, call.bounds)
    return steps, finish


def _linear(call: Call) -> tuple[Steps, Callable[[Tensor], Tensor]]:
    """q and k through the feature map, q scaled; with a normaliser, a column of ones beside v and a division at the end."""
    recurrence = call.recurrence
    q, k, v = call["q"], call["k"], call["v"]
    if recurrence.feature is not None:
        q, k = (_feature(call, recurrence.feature, x) for x in (q, k))
    q = q * call.scale
    if recurrence.normalise:
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)

    def finish(out: Tensor) -> Tensor:
        if not recurrence.normalise:
            return out
        total = out[..., -1:]
        return torch.where(total == 0, 0.0, out[..., :-1] / torch.where(total == 0, 1.0, total))

    return Steps(q, k, v, _decay(call, q), call.get("beta"), call.state, call.bounds), finish


def _decay(call: Call, q: Tensor) -> Tensor | None:
    decay = call.recurrence.decay
    if isinstance(decay, Formula):
        heads = torch.arange(q.shape[2], device=q.device)
        scope = Scope("decay", {"h": heads, **call.params}, {}, q.dtype, strict=True)
        return evaluate(decay.tree, scope, heads.shape).to(q.dtype).expand(q.shape[:3])[..., None]
    given = call.get("g")
    return given[..., None] if given is not None and given.dim() == 3 else given


def _feature(call: Call, formula: Formula, x: Tensor) -> Tensor:
    return evaluate(
        formula.tree, Scope("feature", {"x": x, **call.params}, {}, x.dtype, strict=True), x.shape
    )


# ---- the fold


def by_token(steps: Steps) -> tuple[Tensor, Tensor]:
    """out [B, L, H, V] and the last state [B, H, K, V]: one token after the other. For gradients the states of a few tokens
    at a time are kept, and worked out again."""
    outs, state = [steps.v[:, :0]], steps.state
    for start in range(0, steps.q.shape[1], KEPT):
        some = replace(_tokens(steps, start, start + KEPT), state=state)
        out, state = (
            checkpoint(_each_token, some, use_reentrant=False)
            if torch.is_grad_enabled()
            else _each_token(some)
        )
        outs.append(out)
    return torch.cat(outs, 1), state


def _each_token(steps: Steps) -> tuple[Tensor, Tensor]:
    state, outs = steps.state, list[Tensor]()
    for t in range(steps.q.shape[1]):
        k, v = steps.k[:, t, :, :, None], steps.v[:, t, :, None]
        if steps.decay is not None:
            state = state * torch.exp(steps.decay[:, t])[..., None]
        if steps.beta is not None:
            v = steps.beta[:, t, :, None, None] * (v - (k * state).sum(-2, keepdim=True))
        state = state + k * v
        outs.append((steps.q[:, t, :, :, None] * state).sum(-2))
    return torch.stack(outs, 1), state


def _by_chunk(call: Call) -> Run:
    """As an eager model would in the dtype of its inputs: chunks, whose products take and give numbers of that dtype;
    decays and states in float32."""
    size, dtype = call.recurrence.chunk, call.dtype

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (a.to(dtype) @ b.to(dtype)).float()

    def run(steps: Steps) -> tuple[Tensor, Tensor]:
        state, outs = steps.state, list[Tensor]()
        for start in range(0, steps.q.shape[1], size):
            chunk = slice(start, start + size)
            q, k, v = (x[:, chunk].transpose(1, 2) for x in (steps.q, steps.k, steps.v))
            decay = (
                torch.zeros_like(q[..., :1]) if steps.decay is None else steps.decay[:, chunk].transpose(1, 2)
            )
            total = decay.cumsum(-2)
            beta = None if steps.beta is None else steps.beta[:, chunk].transpose(1, 2)[..., None]
            out, state = _chunk(product, q, k, v, total, beta, state)
            outs.append(out.transpose(1, 2))
        return (torch.cat(outs, 1) if outs else steps.v[:, :0]), state

    return run


def _chunk(
    product: Callable[[Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    total: Tensor,
    beta: Tensor | None,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """out [B, H, C, V] of one chunk and the state after it; total holds the logarithms of decays since its start."""
    length = q.shape[-2]
    before = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if total.shape[-1] == 1:
        between = torch.where(before, total - total.transpose(-1, -2), -torch.inf).exp()
        scores = product(q, k.transpose(-1, -2)) * between
        pairs = product(k, k.transpose(-1, -2)) * between if beta is not None else None
    else:
        apart = torch.where(
            before[..., None], total[..., :, None, :] - total[..., None, :, :], -torch.inf
        ).exp()
        scores, pairs = (q[..., :, None, :] * k[..., None, :, :] * apart).sum(-1), None
    if beta is not None and pairs is not None:
        erased = torch.eye(length, dtype=q.dtype, device=q.device) + beta * pairs.tril(-1)
        written = beta * (v - product(k * total.exp(), state))
        v = torch.linalg.solve_triangular(erased, written, upper=False, unitriangular=True)
    out = product(scores, v) + product(q * total.exp(), state)
    last = total[..., -1:, :]
    grown = product((k * (last - total).exp()).transpose(-1, -2), v)
    return out, state * last.exp().transpose(-1, -2) + grown
