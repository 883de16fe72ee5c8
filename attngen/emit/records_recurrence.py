"""What the templates of recurrences print: frozen records of finished strings and flags."""

from __future__ import annotations

from dataclasses import dataclass

from attngen.emit.faces import KernelFace


@dataclass(frozen=True, slots=True)
class ColumnChunk:
    """A power-of-two slice of the columns of keys or values."""

    index: int
    width: int
    columns: str  # name of the vector of column indices
    loaded: str  # what a test of rows adds to be one of elements
    masked: str  # the mask of a load of tokens
    mask: str  # what a store of states adds to its mask
    fill: str  # where a load puts ones, '' is nowhere
    of_state: str  # the mask of a load of states by this chunk of rows or columns
    plus: str  # what a product over this chunk adds itself to: nothing for the first
    plus_acc: str  # the same in the kernel of pairs
    plus_scores: str  # the same where scores are summed up key by key
    query_lines: tuple[str, ...]
    key_lines: tuple[str, ...]
    of_tile: str  # the mask of a tile of states whose columns are a vector e


@dataclass(frozen=True, slots=True)
class ReadProduct:
    """One product of queries and a tile of states."""

    query: str
    result: str
    plus: str
    rows: str
    columns: str
    mask: str


@dataclass(frozen=True, slots=True)
class BlockPair:
    """A block of 16 x 16 on or below the diagonal of what a delta rule solves: of A, and of T = (I + A)^-1."""

    name: str
    row: int
    column: int
    matrix: str  # from products of keys to the block of A
    inverse: str
    weigh_values: str  # the block of T times what values are weighed with
    weigh_keys: str


@dataclass(frozen=True, slots=True)
class Block:
    """16 tokens of a chunk, and their row of blocks; `below` are those left of the diagonal, the nearest first."""

    index: int
    tokens: str
    own: str  # the name of the block on the diagonal
    pairs: tuple[BlockPair, ...]
    below: tuple[BlockPair, ...]


@dataclass(frozen=True, slots=True)
class Solved:
    """A kernel that solves for the tokens of a chunk, once for values and once for keys."""

    face: KernelFace
    doc: tuple[str, ...]
    bases: tuple[str, ...]
    values: str  # the right sides: the tensor
    share: tuple[str, ...]  # what keys are weighed with, where it is not beta
    of_values: str  # the results
    of_keys: str
    rows: tuple[
        Block, ...
    ]  # in the order of the solution, pairs with the columns of blocks that are there by then


@dataclass(frozen=True, slots=True)
class TensorArgument:
    """A tensor of the public function: how its shape is checked and shown."""

    name: str
    shape: str
    doc: str
    required: bool
    of_dtype: bool  # shares the dtype of the first; rows are contiguous


@dataclass(frozen=True, slots=True)
class Tile:
    """Some columns of some tokens, as a kernel of the backward loads them."""

    name: str
    index: int
    width: int
    columns: str
    base: str
    walked: str  # where it begins in the loop over whole tiles
    row: str
    stride: str
    masked: str
    lines: tuple[str, ...]  # what becomes of it when it is loaded
    own: str  # of a partner: the tile of queries that it meets
    plus: str  # and what their product adds itself to


@dataclass(frozen=True, slots=True)
class ChunkProducts:
    """A kernel that stores products of two rows each of a chunk."""

    face: KernelFace
    doc: str
    heads: str  # how many heads, or groups of heads, have products of their own
    head: str  # the head of a program
    place: str  # and where its products are
    columns: tuple[str, ...]
    bases: tuple[str, ...]
    query: tuple[Tile, ...]
    partner: tuple[Tile, ...]
    result: str


@dataclass(frozen=True, slots=True)
class Launched:
    """A kernel of the backward, and how many programs of it run."""

    face: KernelFace
    programs: str


@dataclass(frozen=True, slots=True)
class AdjointSide:
    """A kernel that makes some columns of the gradient of queries or of keys, where each column decays by itself.

    Tokens of other tiles are read ``far``; those of the program's own in blocks of 16, all but the row's own ``near``, and
    within that one token after the other, ``here``.
    """

    face: KernelFace
    doc: str
    io: str  # dtype of products
    inside: str
    bases: tuple[str, ...]
    other: str  # the load of tokens n
    other_lines: tuple[str, ...]
    sums: str  # and of the decays up to them
    own: str
    own_sums: str
    own_pairs: str
    far_edge: str  # the load of the decays up to an edge
    far_begin: str
    far_end: str
    far_pairs: str
    to_edge: str  # what lies between a token n and an edge
    from_edge: str  # and between an edge and a row
    near_edge: str
    near_begin: str
    near_end: str
    near_pairs: str
    here_pairs: str
    here_apart: str
    of_state: tuple[str, ...]  # statements that add up what is read of the state
    to_state: str
    products: tuple[str, ...]
    finish: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Term:
    """Products of queries and some tiles of the other tokens of a chunk, which weigh others that are summed up."""

    partner: tuple[Tile, ...]
    stored_pairs: str
    signed: str  # what becomes of a tile of products before it is added, '' is nothing
    summed: tuple[Tile, ...]
    diagonal: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AdjointRead:
    """A kernel of the backward that reads states and the other tokens of a chunk."""

    face: KernelFace
    doc: str
    heads: int  # that one program goes through
    sums_heads: bool
    io: str  # dtype of products
    precision: str
    bases: tuple[str, ...]
    of_rows: tuple[str, ...]
    query: tuple[Tile, ...]
    terms: tuple[Term, ...]
    summed: tuple[Tile, ...]
    products: tuple[ReadProduct, ...]
    to_tile: str  # the decay between where the state is and the tile
    within: tuple[str, ...]  # what is done with what was read of other tokens alone
    of_state: tuple[str, ...]  # and of the state alone
    begin: str
    end: str
    near: str
    walks_far: bool
    weight: tuple[str, ...]
    from_tile: str  # and that between the tile's end and each of its tokens
    times_step: tuple[str, ...]
    weighs_pairs: bool  # before they are rounded, where gradients of decays are the difference of what two kernels add up
    finish: tuple[str, ...]
    stores: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeltaAdjoint:
    """What the backward of a delta rule prints besides: gradients of what tokens write, and how they go into states."""

    solved: Solved
    bases: tuple[str, ...]
    value: str  # the gradient of values: the tensor
    written: str  # from gradients of what tokens write to those of values
    taken: str  # and to what leaves the gradient of the state, along the tokens' keys


@dataclass(frozen=True, slots=True)
class Adjoint:
    """The backward part of a recurrence's module."""

    out: KernelFace
    out_sums: tuple[str, ...]
    out_lines: tuple[str, ...]
    out_stores: tuple[str, ...]
    states: KernelFace
    states_bases: tuple[str, ...]
    query_lines: tuple[str, ...]
    weight: str  # of a token's gradient where its chunk begins
    scan: KernelFace
    dstates_place: str
    dinit_place: str
    pairs: ChunkProducts | None  # of gradients of what is read and values, where they are stored
    sides: tuple[AdjointSide, ...]
    delta: DeltaAdjoint | None
    early: tuple[AdjointRead, ...]  # kernels before the scan
    reads: tuple[AdjointRead, ...]
    launched: tuple[Launched, ...]
    tokens: KernelFace
    of_decays: bool  # per head
    of_columns: bool
    of_both: str
    token_lines: tuple[str, ...]
    read_columns: int  # of a row of what is read, as it lies between kernels


@dataclass(frozen=True, slots=True)
class AdjointFaces:
    """The argument lists of the backward: its kernels, its launcher, its custom op."""

    out: KernelFace
    states: KernelFace
    scan: KernelFace
    pairs: KernelFace | None
    queries: KernelFace
    keys: KernelFace
    values: KernelFace
    tokens: KernelFace
    delta: tuple[KernelFace, ...]  # of a delta rule: of writes, of what is solved, and of what tokens find
    needs_raw: str  # when it needs what was read, '' is never
    arguments: tuple[str, ...]
    call: str
    saved: str
    kept: str
    gradients: tuple[str, ...]  # names of inputs that get one
    buffers: tuple[str, ...]
    results: tuple[str, ...]  # what the op returns
    returned: str  # a gradient or None per argument of the forward op
    named: str
    asked: str
    raw_values: tuple[str, ...]  # what the launcher passes to the kernel that reads, for what was read
    kept_buffers: str
    buffer_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DecodeChunk:
    """Columns of a state that a program that decodes holds."""

    columns: str  # name of the vector of column indices
    start: str
    width: str
    place: str  # name of where its tile lies
    at: str
    owned: str
    tile: str
    acc: str
    values: str
    value_lines: tuple[str, ...]
    stored: str  # the mask of a store of out, '' where it has none of these columns


@dataclass(frozen=True, slots=True)
class Decode:
    """What the templates of decode print."""

    face: KernelFace
    function: str
    training: str  # the function that has gradients
    op_arguments: tuple[str, ...]
    op_call: str
    public_arguments: tuple[str, ...]
    tensors: tuple[TensorArgument, ...]
    token_tensors: str  # those that have an axis of tokens, as arguments
    all_tensors: str
    state_shape: str
    state_doc: str
    sizes: tuple[str, ...]
    state_rows: int
    padded_rows: int
    bases: tuple[str, ...]
    owned: str  # what a program has of a state
    tiles: str  # programs per head
    programs: str
    chunks: tuple[DecodeChunk, ...]
    rows: tuple[str, ...]  # what a token brings
    token_lines: tuple[str, ...]
    decay: str
    erase: str  # the share of what a key reads that its value replaces, '' is no delta rule
    finish: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RecurrenceContext:
    """Everything `recurrence.py.jinja` prints."""

    name: str
    version: str
    regenerate: str
    title: str
    description: str
    digest: str
    spec_json: str
    manifest_json: str
    chunk: int
    last: int
    group: int
    has_total: bool
    has_decay: bool  # per head
    has_rows: bool  # per column of keys, which is a row of the state
    erases: bool
    has_step: bool
    has_late: bool
    late: str
    weighs_step: str  # when values are multiplied by the step: always, or where the exponent does not hold it
    has_softplus: bool
    stores_pairs: bool
    pairs_of: str
    pairs_heads: str
    pairs_programs: str
    totals_programs: str
    total_size: int
    total_dtype: str
    left: str  # the function that says what a sum of decays leaves
    log2e: str
    precision: str
    key_columns: int
    wide_columns: int
    state_size: int
    pairs_size: int
    k_chunks: tuple[ColumnChunk, ...]
    v_chunks: tuple[ColumnChunk, ...]
    out_chunks: tuple[ColumnChunk, ...]
    products: tuple[ReadProduct, ...]
    key_columns_lines: tuple[str, ...]
    value_columns: tuple[str, ...]
    query_bases: tuple[str, ...]
    key_bases: tuple[str, ...]
    value_bases: tuple[str, ...]
    q_name: str
    v_name: str
    q_stride: str
    k_stride: str
    v_stride: str
    token_lines: tuple[str, ...]
    decay: str
    state_key_lines: tuple[str, ...]
    across: tuple[str, ...]
    blocks: tuple[Block, ...]
    decay_of_chunk: str
    decay_of_state: str
    scan_columns: int
    weight_to_end: str
    weight_to_tile: str
    state_rows: str  # the mask of a load of keys by rows of states
    diagonal: tuple[str, ...]
    finish: tuple[str, ...]
    init: str
    init_place: str
    states_place: str
    totals: KernelFace
    states: KernelFace
    scan: KernelFace
    solve: Solved | None
    pairs: KernelFace
    shared_pairs: ChunkProducts | None
    readers_of_pairs: tuple[
        str, ...
    ]  # kernels that read tiles of what heads share, zeros above the diagonal too
    read: KernelFace
    op_name: str
    op_arguments: tuple[str, ...]
    op_call: str
    public_arguments: tuple[str, ...]
    public_call: str
    tensors: tuple[TensorArgument, ...]
    sizes: tuple[str, ...]
    first: str
    value_tensor: str
    state_shape: str
    large: str
    function: str
    documented: tuple[str, ...]
    prepared: tuple[str, ...]  # statements that complete what a caller leaves out
    return_flag: str
    states_doc: str
    adjoint: Adjoint | None
    adjoint_face: AdjointFaces | None
