"""The problems that a spec is checked with: few, small, and each there for a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from attngen.check.problem import Problem
from attngen.check.uses import constants, must_be_positive
from attngen.spec import Param, Spec

NEAR: Final = 256
"""Constants of a mask up to here are met by ordinary lengths, larger ones by few queries after many keys."""
FAR: Final = 16_384

INT_VALUES: Final = (7, 1, 16, -2, 40, 0, 3, 50, 64, 1000, 20, 11)
FLOAT_VALUES: Final = (0.5, 1.0, 30.0, 0.0, 2.5, -1.5)


def problems(spec: Spec) -> list[Problem]:
    """Return the problems of a spec, in the order of a check; equal specs have equal problems."""
    found = _paged(spec) if spec.cache else _packed() if spec.layout == "thd" else _dense(spec)
    return [_with_params(spec, number, problem) for number, problem in enumerate(found)]


def _dense(spec: Spec) -> list[Problem]:
    # as many programs for a large group of query heads as for a small one
    few = spec.heads.group > 4
    batch = 1 if few else 2
    heads = 1 if few else 2
    return [
        Problem(name="ragged", lengths=((37, 83),) * batch, kv_heads=heads),
        Problem(name="more queries than keys", lengths=((52, 21),), kv_heads=3 - heads, strides="odd"),
        Problem(name="one query", lengths=((1, 70),) * 2, kv_heads=2, strides="swapped"),
        Problem(name="one key", lengths=((19, 1),)),
        Problem(name="whole tiles", lengths=((64, 64),), strides="padded"),
        Problem(name="shared keys", lengths=((9, 33),) * 2, strides="expanded"),
        Problem(name="large logits", lengths=((33, 49),), values="large"),
        Problem(name="many tiles", lengths=((97, 113),)),
        Problem(name="no keys", lengths=((5, 0),)),
        Problem(name="no queries", lengths=((0, 7),)),
        Problem(name="empty batch", lengths=()),
        *_beyond(constants(spec), few),
    ]


def _beyond(numbers: Sequence[int], few: bool) -> list[Problem]:
    """Lengths that pass the constants of the mask, so that their edges show."""
    near = [n for n in numbers if n <= NEAR]
    made: list[Problem] = []
    if near:
        keys = near[-1] + 45
        queries = min(keys, 33 if few or keys > 128 else 70)
        made.append(Problem(name=f"past {near[-1]}", lengths=((queries, keys),)))
    far = [n for n in numbers if NEAR < n <= FAR]
    for n in far[-2:]:
        made.append(Problem(name=f"past {n}", lengths=((17, n + 9),)))
        made.append(Problem(name=f"past {n}, large logits", lengths=((17, n + 9),), values="large"))
    return made


def _packed() -> list[Problem]:
    mixed = ((20, 31), (0, 9), (37, 41), (1, 1), (5, 0), (12, 50))
    return [
        Problem(name="mixed lengths", lengths=mixed, kv_heads=2),
        Problem(name="unused keys", lengths=mixed, used_k=(17, 0, 41, 1, 0, 33), spare=30),
        Problem(name="more queries than keys", lengths=((33, 9), (18, 17)), strides="odd"),
        Problem(name="one sequence", lengths=((64, 64),), strides="padded"),
        Problem(name="shared keys", lengths=((9, 30), (17, 20)), kv_heads=2, strides="expanded"),
        Problem(name="many short", lengths=((1, 1), (2, 3)) * 4, strides="swapped"),
        Problem(name="large logits", lengths=((20, 33), (7, 40)), values="large"),
        Problem(name="many tiles", lengths=((97, 113),)),
        Problem(name="only empty", lengths=((0, 0), (0, 0))),
        Problem(name="no keys", lengths=((3, 0), (2, 0))),
        Problem(name="no sequences", lengths=()),
    ]


def _paged(spec: Spec) -> list[Problem]:
    mixed = ((1, 40), (20, 31), (0, 9), (5, 5), (1, 1), (3, 0), (12, 50))
    few = spec.heads.group > 4
    return [
        Problem(name="mixed batch", lengths=mixed, kv_heads=2, spare=30),
        Problem(
            name="decode", lengths=((1, 40), (1, 17), (1, 1), (1, 64), (1, 0)), kv_heads=2, strides="swapped"
        ),
        Problem(name="chunked prefill", lengths=((33, 70), (18, 17)), strides="odd"),
        Problem(name="whole tiles", lengths=((64, 64),), strides="padded"),
        Problem(name="padding requests", lengths=((1, 30), (0, 0), (1, 20), (0, 0))),
        Problem(name="shared heads", lengths=((1, 1), (2, 3)) * 4, kv_heads=2, strides="expanded"),
        Problem(name="large logits", lengths=((20, 33), (7, 40)), values="large"),
        Problem(name="many tiles", lengths=((97, 113),)),
        Problem(name="only empty", lengths=((0, 0), (0, 0))),
        Problem(name="no keys", lengths=((3, 0), (2, 0))),
        Problem(name="no sequences", lengths=()),
        *_beyond(constants(spec), few),
    ]


def _with_params(spec: Spec, number: int, problem: Problem) -> Problem:
    params = tuple(
        (param.name, _value(spec, param, number + 3 * at))
        for at, param in enumerate(p for p in spec.params if p.runtime)
    )
    return replace(problem, params=params, seed=number)


def _value(spec: Spec, param: Param, number: int) -> int | float:
    values: Sequence[int | float] = INT_VALUES if param.type == "int" else FLOAT_VALUES
    allowed = [v for v in values if v > 0] if must_be_positive(spec, param) else list(values)
    return allowed[number % len(allowed)]
