"""What templates print: frozen records of finished strings and flags. Nothing here is computed."""

from __future__ import annotations

from dataclasses import dataclass

from attngen.emit.faces import Interface, KernelFace


@dataclass(frozen=True, slots=True)
class Chunk:
    """A power-of-two slice of the head dimension: a tile is loaded, multiplied and stored chunk by chunk."""

    index: int
    start: int
    width: int
    columns: str  # name of the vector of column indices
    walked: str  # what a pointer load of this chunk adds in a loop over rows
    mask: str  # what a pointer load of this chunk adds after the pointer
    stored: str  # mask of a whole row of queries
    plus: str  # the accumulator argument of the product: nothing for the first chunk
    plus_dp: str
    value: str  # name of the V tile
    want: str  # the flag of a launch that adds up this part of dk, where V lies inside K
    cast: str  # what follows a load of stored numbers
    half: str  # low or high: which four bits of its bytes hold it, '' where there is no other half
    brings_bytes: bool
    bytes_of: int  # the chunk that brings those bytes


@dataclass(frozen=True, slots=True)
class Loop:
    """One loop over key tiles: how tiles are counted and found, and what is computed between the two products."""

    comment: str
    before: tuple[str, ...]
    counter: str
    begin: str
    end: str
    find_tile: tuple[str, ...]
    masked: bool
    by_pointer: (
        bool  # keys between others are excluded: descriptors, which cut off ends only, would load them
    )
    key_rows: tuple[str, ...]  # statements that find where the tile's keys lie
    value_rows: tuple[str, ...]
    value_scales: str  # of stored values, one per key, '' where there are none
    before_loads: tuple[str, ...]
    row_max: str  # the largest score of each row of the tile, in the units of m_i
    tile_row: str  # where the tile begins in the descriptors' coordinates
    valid: str  # which of its keys any row of the program may see
    scores: tuple[str, ...]
    k_chunks: tuple[Chunk, ...]
    v_chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of partial results that are merged: splits from begin to end, of rows where ``there`` holds."""

    begin: str
    end: str
    there: str


@dataclass(frozen=True, slots=True)
class Table:
    """The block-table kernel: its prologue and loops, its row for a program of the main kernel, and its extent."""

    prologue: tuple[str, ...]
    full: tuple[Loop, ...]
    partial: tuple[Loop, ...]
    row: str
    heads: str
    batch: str


@dataclass(frozen=True, slots=True)
class BackwardLoop:
    """One loop of a backward kernel, over tiles of the axis that its programs do not own."""

    kind: str
    comment: str
    before: tuple[str, ...]
    single: bool
    begin: str
    end: str
    steps: str  # how many tiles
    # at most two ranges: a loop over rows goes from `first` to `last`, over the `gap` after `gap_start`. What it carries
    # along: a name, what is added between heads, and between tiles
    carried: tuple[tuple[str, str, str], ...]
    first: str
    last: str
    gap: str
    gap_start: str
    find_tile: tuple[str, ...]  # the tile of step `local`
    masked: bool
    by_pointer: bool
    before_loads: tuple[str, ...]
    tile_row: str
    valid: str
    k_chunks: tuple[Chunk, ...]
    v_chunks: tuple[Chunk, ...]
    formula: tuple[str, ...]  # on the raw scores: mask, slope, exponent
    added: tuple[str, ...]  # what becomes of ds where its place is added to memory
    mask: tuple[str, ...]  # what a partial tile of a merged loop adds
    partial: str  # the test of such a tile
    guards: bool  # where a weight is 0, dp may be NaN


@dataclass(frozen=True, slots=True)
class BackwardKernel:
    """A kernel that adds up over tiles: dq, or dk and dv."""

    prologue: tuple[str, ...]
    descriptors: tuple[str, ...]
    offsets: tuple[str, ...]
    seen: tuple[str, ...]
    merged: tuple[BackwardLoop, ...]  # one, or none
    loops: tuple[BackwardLoop, ...]
    weight: str  # what lse is taken from


@dataclass(frozen=True, slots=True)
class RowSum:
    """A sum of ds times a factor ('' is 1) per row: part of the gradient of a captured tensor."""

    name: str
    factor: str


@dataclass(frozen=True, slots=True)
class CapturedKernel:
    """A kernel that owns places of a captured tensor's gradient and walks over the tiles of scores that are added there."""

    face: KernelFace
    own: tuple[str, ...]
    shares: str  # how many places the tensor has but one for, of axes that programs own; '' is 1
    share: tuple[str, ...]  # which one
    turns: str  # how many tiles it looks at
    turn: tuple[str, ...]  # which one, and where it lies
    visited: str
    formula: tuple[str, ...]
    weight: str
    factor: str
    k_chunks: tuple[Chunk, ...]
    v_chunks: tuple[Chunk, ...]
    is_diagonal: bool
    flat_m: str  # the flag under which a tile's rows share a place, where programs own rows
    flat_n: str  # and its keys
    pointer: str  # where the sum is stored
    value: str
    mask: str


@dataclass(frozen=True, slots=True)
class PlaceKernel:
    """A kernel that adds up the diagonals of one place of a captured tensor's gradient."""

    face: KernelFace
    diagonals: str
    gradient: str
    own: tuple[str, ...]
    kept: str  # which of the rows of diagonals
    exists: str  # and whether it is there
    shift: str  # from the rows and keys of a diagonal to its i - j
    match: str  # the diagonals of this place


@dataclass(frozen=True, slots=True)
class Backward:
    """The backward part of a module."""

    dq: BackwardKernel
    dkdv: BackwardKernel
    row_bases: tuple[str, ...]
    dq_bases: tuple[str, ...]
    dkdv_bases: tuple[str, ...]
    dkdv_columns: tuple[str, ...]
    v_columns: tuple[str, ...]
    own_k_chunks: tuple[Chunk, ...]
    own_v_chunks: tuple[Chunk, ...]
    v_in_k: bool  # what dv would be is part of dk
    scale: str
    has_slope: bool
    keeps_ds: bool  # sums per row, and that of p dp, need ds before the slope of the score is in it
    slope_later: bool
    dp_precision: str
    dq_precision: str
    dk_precision: str
    dv_precision: str
    padding: int  # statistics have a multiple of so many rows
    has_dropout: bool
    dv_weight: str  # what multiplies dout in dv
    sums: tuple[RowSum, ...]
    captured: tuple[CapturedKernel, ...]
    places: tuple[PlaceKernel, ...]
    has_p_dp: bool  # the sum of p dp per row, which delta should be
    sinks: str
    sinks_rows: str
    per_head: bool
    walk_group: str  # how many heads a program walks over; '' is one
    reduces: bool
    by_sequence: bool
    results: str  # what the launcher returns


@dataclass(frozen=True, slots=True)
class Context:
    """Everything `attention.py.jinja` prints."""

    name: str
    version: str
    regenerate: str
    title: str
    description: str
    digest: str
    spec_json: str
    manifest_json: str
    interface: Interface
    group: int
    qk_dim: int
    v_dim: int
    dtypes: str
    mask_text: str
    batch_word: str
    is_packed: bool
    is_paged: bool
    heads_in_rows: bool
    head_tiles: bool  # a tile holds some heads of a group, not all
    sequence: tuple[str, ...]
    q_rows: str  # where a program's rows lie from their base
    out_rows: str
    lse_rows: str
    value_scale: str  # of all values, '' is 1
    largest: str  # number that a cache stores
    rounds: bool
    packs: bool  # two numbers to a byte
    cache_qk_dim: int  # what the last axis of a cache counts
    cache_v_dim: int
    needs_sm_89: bool
    per_key_scales: bool
    scale_of_all: str
    has_splits: bool
    has_prefix: bool  # groups of sequences share their first keys
    part: str  # which of a row's partial results a program stores
    partial_doc: tuple[str, ...]  # what partial results take, where the table's width decides it
    counting: tuple[str, ...]  # how many a row has, where lengths decide it
    pieces: tuple[Piece, ...]
    combine_columns: tuple[str, ...]
    combine_rows: str
    combine_warps: int
    partial_chunks: tuple[Chunk, ...]
    prologue: tuple[str, ...]
    columns: tuple[str, ...]
    bases: tuple[str, ...]
    out_bases: tuple[str, ...]
    descriptors: tuple[str, ...]
    offsets: tuple[str, ...]
    mixes_addresses: bool
    k_chunks: tuple[Chunk, ...]
    v_chunks: tuple[Chunk, ...]
    loops: tuple[Loop, ...]
    factor: str
    qk_precision: str
    pv_precision: str
    loads_v: bool
    sink: str
    has_dropout: bool
    has_table: bool
    table: Table
    has_search: bool
    has_floordiv: bool
    has_tanh: bool
    has_backward: bool
    backward: Backward | None
