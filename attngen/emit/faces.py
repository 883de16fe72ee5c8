"""The records of a generated module's argument lists: finished text, which templates print."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CapturedArgument:
    """A captured tensor of the public function: the shape it must have, as the text of a tuple, and its dtypes."""

    name: str
    shape: str
    dtypes: str
    is_sorted: bool
    doc: str
    needs: tuple[tuple[str, str], ...]  # tests of what formulas read, and what to say where one fails


@dataclass(frozen=True, slots=True)
class ScalarArgument:
    """A run-time parameter of the public function: its name and Python type."""

    name: str
    kind: str
    is_int: bool
    is_axis: bool  # the size of a captured tensor's axis


@dataclass(frozen=True, slots=True)
class KernelFace:
    """The argument list of one backward kernel, and what the launcher passes."""

    name: str
    arguments: tuple[str, ...]
    types: tuple[tuple[str, str], ...]
    constants: tuple[str, ...]
    values: tuple[str, ...]

    @property
    def unspecialized(self) -> str:
        """The numbers that vary from call to call: no kernel is compiled again for theirs."""
        return unspecialized(self.types)


@dataclass(frozen=True, slots=True)
class ForwardLaunch:
    """A launch of the forward kernel."""

    comment: str
    when: str  # '' is always
    grid: str
    values: tuple[str, ...]
    config: str


@dataclass(frozen=True, slots=True)
class CapturedFace:
    """How the launcher runs a kernel of the gradient of one captured tensor."""

    stores: str
    kernel: KernelFace
    before: tuple[str, ...]  # statements that make its buffers
    programs: str


@dataclass(frozen=True, slots=True)
class BackwardFace:
    """The argument lists of the backward: its kernels, its launcher, its custom op."""

    rows: KernelFace
    dq: KernelFace
    dkdv: KernelFace
    op_arguments: tuple[str, ...]
    op_call: str
    returns: str
    saved: str  # tensors that autograd keeps
    kept: str  # and plain values
    named: str  # the gradients of the backward op
    results: str  # a gradient, or None, per argument of the forward op
    without: tuple[
        tuple[int, str, str], ...
    ]  # captured tensors of floats that get none: place, name, what to do
    fake: str
    grads: str  # of q, k and v
    gradient_arguments: tuple[str, ...]
    gradient_call: str
    index_types: tuple[str, ...]
    padded: str  # the shape of statistics per row
    keys_length: str
    keys_heads: str
    wants: str  # the sums that a launch over keys may be asked for, as variables of the launcher
    flags: tuple[str, ...]  # and as arguments of the kernel
    group_sums: str  # what adds up the heads of each group, where programs own query heads
    row_strides: str
    descriptor_tensors: str
    grads_empty: tuple[str, ...]
    buffers: tuple[str, ...]  # of gradients of captured tensors
    captured: tuple[CapturedFace, ...]


@dataclass(frozen=True, slots=True)
class Interface:
    """Argument lists as finished text, one entry per line."""

    kernel_arguments: tuple[str, ...]
    kernel_types: tuple[tuple[str, str], ...]
    kernel_constants: tuple[str, ...]
    unspecialized: str
    launches: tuple[ForwardLaunch, ...]
    programs: str
    table_arguments: tuple[str, ...]
    table_types: tuple[tuple[str, str], ...]
    table_constants: tuple[str, ...]
    table_values: tuple[str, ...]
    index_types: tuple[str, ...]
    op_name: str
    op_arguments: tuple[str, ...]
    op_call: str
    public_call: str
    public_arguments: tuple[str, ...]
    scalars: tuple[ScalarArgument, ...]
    captured: tuple[CapturedArgument, ...]
    reads_values: bool  # some checks look at values, where that needs no device sync
    has_sinks: bool
    has_extents: bool  # the launcher asks how far a tensor reaches
    default_scale: str
    q_sizes: str
    k_sizes: str
    q_doc: str
    k_doc: str
    v_doc: str
    lse_doc: str
    rank: int
    out_empty: str
    lse_empty: str
    nothing: str  # the test of a call without work
    configs: str  # schedules to choose from
    aligned: str  # whether descriptors can address the tensors
    large_name: str
    large: str  # whether offsets within a tile need 64 bits
    tile_lines: tuple[str, ...]
    has_decode: bool  # schedules of their own for few queries
    measures: bool  # lengths decide the number of splits
    combine_arguments: tuple[str, ...]
    combine_types: tuple[tuple[str, str], ...]
    combine_unspecialized: str
    combine_values: tuple[str, ...]
    combine_bases: tuple[str, ...]
    is_csr: bool
    stored: str  # dtype of a cache
    stored_doc: str
    scales: tuple[str, ...]  # arguments that bring scales of what is stored
    scale_shape: str
    scale_doc: str
    cache_strides: tuple[str, ...]  # axes of a cache: pages, slots, heads
    cache_head: int
    append_arguments: tuple[str, ...]
    caches: str
    written: tuple[str, ...]  # caches and scales that an append writes
    k_scale_given: str
    v_scale_given: str
    page_size: int
    heads_first: bool
    prefix_config: str  # the schedule of the launch that folds shared prefixes
    prefix_lines: tuple[str, ...]
    grid_length: str
    launch_length: str
    launch_keys: str
    launch_heads: str
    launch_batch: str
    heads: int  # the axis of heads in q's layout
    group_axis: int  # the one after it, when heads are split into groups
    keys_grid_length: str
    backward: BackwardFace | None


def unspecialized(types: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f'"{n}"' for n, kind in types if kind in ("i32", "fp32") and "stride" not in n)
