"""The oracle: the paper's dense formula straight from the spec, in float64, without graphs or kernels.

This file has the contract; `oracle_inputs.py` checks a call, `oracle_formula.py` evaluates formulas, and
`oracle_attend.py` is attention itself, `oracle_dropout.py` its random numbers. torch is imported by the call, so that
importing this costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from attngen.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

MODES = ("float64", "same")


def reference(
    spec: Spec, *, precision: Literal["float64", "same"] = "float64", **inputs: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention as `spec` says, differentiable by autograd with respect to every floating-point input.

    Args:
        spec: the variant.
        precision: "float64" computes all in float64. "same" computes as an eager torch model would, in the
            dtype of q: products in that dtype, softmax in float32, probabilities cast before the second
            product. Its error against "float64" is the yardstick for kernels.
        inputs: the arguments of the generated function. Dense (bshd): q [B, Sq, Hq, D], k [B, Sk, Hkv, D],
            v [B, Sk, Hkv, Dv], and for bhsd with heads before tokens; packed (thd): q [Tq, Hq, D],
            k [Tk, Hkv, D], v [Tk, Hkv, Dv], cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k and maybe
            seqused_k; paged: q [Tq, Hq, D], k_cache, v_cache, page_table and cache_seqlens (or
            page_indptr, page_indices, last_page_len), cu_seqlens_q, max_seqlen_q.
            Then softmax_scale (default D ** -0.5), sinks [Hq] where the spec has them, return_lse,
            run-time params and captured tensors by name; with dropout, dropout_p and seed (an int, or a tensor
            int64 [2]: seed and offset; none is drawn here). Without v where the spec says v_from_k.
            Mamba-2: x [B, L, H, P], dt [B, L, H], A [H], B and C [B, L, G, N], and maybe D [H] or [H, P], z like x,
            dt_bias [H], dt_limit, initial_states [sequences, H, P, N], cu_seqlens, return_final_states. Other
            recurrences: q and k [B, L, H, K], v [B, L, H, V], where the spec has them g [B, L, H] or [B, L, H, K] and beta
            [B, L, H], and maybe scale (default K ** -0.5), initial_state [sequences, H, K, V], cu_seqlens,
            return_final_state. With a normaliser states have V + 1 columns; the last is that of values of one.

    Returns:
        out, shaped like q with the columns of v; with return_lse also lse, [B, Hq, Sq] or [Hq, Tq], base e.
        float64, or for "same" out in q's dtype and lse in float32. Of a recurrence out, shaped like v (x), and the
        final states where they are asked for.

    Raises:
        TensorError: a missing, unknown or wrong argument, with what was expected.
        CheckError: a formula reads a captured tensor out of its bounds, or divides by zero, where it matters.
    """
    from attngen.reference.oracle_attend import attend_dense, attend_packed
    from attngen.reference.oracle_inputs import bind

    if precision not in MODES:
        raise ValueError(f"precision is 'float64' or 'same', got {precision!r}")
    if spec.recurrence is not None:
        from attngen.reference.oracle_recurrence import recur

        return recur(spec, inputs, same=precision == "same")
    call = bind(spec, inputs, same=precision == "same")
    out, lse = attend_packed(call) if spec.layout == "thd" else attend_dense(call)
    return (out, lse) if call.return_lse else out
