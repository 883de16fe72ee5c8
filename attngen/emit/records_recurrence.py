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
class TensorArgument:
    """A tensor of the public function: how its shape is checked and shown."""

    name: str
    shape: str
    doc: str
    required: bool
    of_dtype: bool  # shares the dtype of the first; rows are contiguous


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
    solve: KernelFace
    pairs: KernelFace
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
