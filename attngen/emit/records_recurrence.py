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
    query_lines: tuple[str, ...]


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
class TensorArgument:
    """A tensor of the public function: how its shape is checked and shown."""

    name: str
    shape: str
    doc: str
    required: bool
    of_dtype: bool  # shares the dtype of the first; rows are contiguous


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
    has_decay: bool
    has_step: bool
    has_late: bool
    late: str
    weighs_step: str  # when values are multiplied by the step: always, or where the exponent does not hold it
    has_softplus: bool
    shares_pairs: bool
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
    key_lines: tuple[str, ...]
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
