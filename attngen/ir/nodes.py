"""The node types. The whole vocabulary fits on two screens; each node names its operands and verifies itself.

A node exists only with a rule in `attngen.reference.interpreter` and a reader in `attngen.emit.parts` (a test walks them
all). Shapes are lists of axis names declared by the graph; a value's element is addressed by the axes' symbols.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from attngen.errors import InternalError
from attngen.ir.expr import TRUE, Expr, Symbol, symbols, text, type_of
from attngen.ir.tiles import Tiles

Axes = tuple[str, ...]
Monoid = Literal["softmax", "sum", "decay"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """An address map: key j of a sequence lies in slot j % size of the page that entry j // size of its table names.

    ``table`` is how the tables are given: ``dense``, a row per sequence, or ``csr``, one after the other. With a ``prefix``
    the first keys of a sequence are those of its group, in pages that a table of groups names; j counts on from them.
    """

    size: int
    table: Literal["dense", "csr"]
    prefix: bool = False

    def __str__(self) -> str:
        prefix = ", prefix=True" if self.prefix else ""
        return f"pages(size={self.size}, table={self.table}{prefix})"


Address = Literal["strided"] | Pages


OWNED_AXES = ("B", "Hq", "Hkv")  # of which a program has one place


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A named axis: its size (an expression of run-time lengths, or a number) and the symbol that runs along it.

    ``group`` maps it onto another axis: the kv-head axis has ``parent="Hq", group=4`` when ``hk = h // 4``. ``origin`` names
    where a sequence begins on an axis of packed tokens: formulas count from there, and ``size`` is the sequence's length.
    """

    name: str
    size: Expr
    symbol: str
    parent: str = ""
    group: int = 1
    origin: str = ""

    def __str__(self) -> str:
        tail = f" = {self.parent} // {self.group}" if self.parent else ""
        start = f"{self.origin} + " if self.origin else ""
        return f"{self.name}({start}{self.symbol} < {text(self.size)}){tail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """A cut of a fold across programs: into ``count`` parts, fewer where there are fewer tiles (0: as many as the keys of
    all rows and the machine make useful, each tile of rows by its own keys), or into parts of ``keys`` keys."""

    count: int = 0
    keys: int = 0

    def __str__(self) -> str:
        return f"splits({f'keys={self.keys}' if self.keys else f'count={self.count or chr(42)}'})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """The positions of an axis that a fold runs over: [0, size) where ``mask`` holds.

    ``table`` asks that tiles which the plan cannot decide are looked at once, by a kernel of their own, before the fold;
    ``splits`` that several programs share the keys of a row; ``prefix`` that the fold is cut after so many keys, which rows
    of several sequences share. In the formulas of such a fold ``prefix_start`` is where the keys of a piece begin.
    """

    size: Expr
    mask: Expr = TRUE
    table: bool = False
    splits: Splits | None = None
    prefix: Expr | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One schedule of a kernel: what tuning may vary without changing what is computed."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    use_descriptors: bool = False
    merged: bool = False  # one loop over full and partial tiles, the mask under a branch
    apart: bool = (
        False  # dk and dv by programs of their own; where V lies inside K, two parts of dk's columns
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Base of all nodes. Fields named in ``OPERANDS`` hold the ids of other nodes (one id, or a tuple of ids)."""

    kind: ClassVar[str] = ""
    LEVEL: ClassVar[Literal["semantic", "scheduled", "both"]] = "both"
    OPERANDS: ClassVar[tuple[str, ...]] = ()

    def operands(self) -> tuple[str, ...]:
        """Return the ids of the nodes this one reads, in order."""
        found: list[str] = []
        for name in self.OPERANDS:
            value = getattr(self, name)
            found.extend(value if isinstance(value, tuple) else (value,))
        return tuple(name for name in found if name)

    def attributes(self) -> tuple[tuple[str, object], ...]:
        """Return all other fields, for the text form."""
        return tuple((f.name, getattr(self, f.name)) for f in fields(self) if f.name not in self.OPERANDS)

    def verify(self) -> None:
        """Raise `InternalError` if the node contradicts itself."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InternalError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Input(Node):
    """An argument of the generated function: a tensor over ``axes``, or a scalar when ``axes`` is empty.

    ``dtype`` is a torch name, or ``io`` for the one of ``dtypes`` that q, k, v and out share at run time. ``layout`` is the
    order in which the argument holds batch, sequence, head and dim (``bshd``, ``bhsd``; ``thd`` packs sequences into tokens;
    in ``pshd`` and ``phsd`` p are the ``pages`` of a cache and s the slots of a page). ``argument`` is the caller's name of
    it, where that is another. With ``scales`` the values are those stored (in ``dtype``) times a scale per tensor, head, or
    token and head, which an argument of its own brings. ``int4`` is no name of torch: numbers from -8 to 7 in two's
    complement, two to a byte, column 2 c in the low four bits of byte c and column 2 c + 1 in the high ones.
    ``default`` is the text of a scalar's default ('' when the caller must give it). ``grad``: the backward returns a
    gradient for it. The role ``gradient`` is that of a result's gradient, which autograd hands to the backward; ``seed`` that
    of the two integers (seed, offset) which a call's random numbers come from. A call may leave an ``optional`` tensor out:
    maps say what is done then (``given``), and a state that would begin with it is zero; other nodes that read it have no
    value. A captured tensor of dtype ``float`` may have any floating-point dtype.
    """

    kind: ClassVar[str] = "input"
    axes: Axes
    dtype: str
    role: Literal["tensor", "captured", "scalar", "gradient", "seed"] = "tensor"
    dtypes: tuple[str, ...] = ()
    layout: str = ""
    pages: Pages | None = None
    argument: str = ""
    scales: Literal["", "tensor", "head", "token_head"] = ""
    sorted: bool = False
    default: str = ""
    grad: bool = False
    optional: bool = False

    def verify(self) -> None:
        """A scalar has no axes, and only captured integer tensors can be declared sorted."""
        _require((self.role == "scalar") == (not self.axes), "input: exactly scalars have no axes")
        _require(
            not self.sorted or self.role == "captured", "input: only captured tensors are declared sorted"
        )
        _require(
            (self.role != "tensor" or self.dtype == "io") == (not self.scales),
            "input: scales go with a dtype",
        )
        _require(("p" in self.layout) == (self.pages is not None), "input: pages go with their layout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract(Node):
    """Sum of products of two tensors over one shared axis, and any other that the result lacks, accumulated in fp32.

    With ``decay``, which varies along that axis too, each product is multiplied by exp(decay of left - decay of right) before
    it is added, or by 1 where that is larger: right is a token no later than left, others are not read. In ``reverse`` right is
    no earlier than left, and the decay that between the two from left to right. Of two scans over
    chunks, the left in reverse, the products are of the states at the end of each chunk and those at its start, decayed
    through the chunk (of which nothing is erased).
    """

    kind: ClassVar[str] = "contract"
    OPERANDS: ClassVar[tuple[str, ...]] = ("left", "right", "decay")
    left: str
    right: str
    decay: str = ""
    reverse: bool = False
    over: str
    axes: Axes
    precision: Literal["ieee", "tf32x3", "tf32"] = "ieee"

    def verify(self) -> None:
        """The contracted axis is gone from the result."""
        _require(
            self.over not in self.axes, f"contract: {self.over} is summed and cannot be an axis of the result"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Map(Node):
    """An element-wise formula of ``operand`` (symbol ``s``), positions, scalars and captured tensors.

    It may read ``others``, by their own names; those that lack an axis of the result are broadcast along it. Without an
    operand it is a formula of positions alone. Where a call leaves the optional tensor ``given`` out, it passes its operand on.
    """

    kind: ClassVar[str] = "map"
    OPERANDS: ClassVar[tuple[str, ...]] = ("operand", "others", "captured")
    operand: str = ""
    others: tuple[str, ...] = ()
    captured: tuple[str, ...] = ()
    given: str = ""
    expr: Expr
    axes: Axes

    def verify(self) -> None:
        """A map computes a number."""
        _require(type_of(self.expr) != "bool", "map: the formula is a truth value, not a number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Random(Node):
    """A random integer from 0 to 65535 per query head, query and key; it depends on ``seed`` and on where the element is in
    the sequences, and on nothing else: not on tiles, splits, ranks, packing, lengths, numbers of heads, or the device.

    Philox4x32-10 (Salmon et al., SC 2011; Random123) makes four words of 32 bits from a key of two and a counter of four.
    It serves blocks of eight elements, chosen so that those of a call meet in one thread of a tensor core's tile:

        key     = the first two words under the key (seed low, seed high) and the counter (offset low, offset high, 0, 0)
        counter = (j // 16 * 4 + j % 8 // 2, row // 16 * 8 + row % 8, h, b)
        word    = j % 2 * 2 + j // 8 % 2, of which row // 8 % 2 = 0 takes the high 16 bits and 1 the low ones

    b counts batch entries, or packed sequences; h query heads; row and j from the start of a sequence. No gradient passes it.
    """

    kind: ClassVar[str] = "random"
    OPERANDS: ClassVar[tuple[str, ...]] = ("seed",)
    seed: str
    axes: Axes

    def verify(self) -> None:
        """Elements are those of a matrix of scores."""
        _require(self.axes == ("B", "Hq", "Sq", "Sk"), "random: the axes are B, Hq, Sq, Sk")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold(Node):
    """Fold of a monoid along ``axis`` over ``domain``; for softmax, of the pairs (element, value).

    There, ``dropout`` multiplies the weights of the values, and not those that the sum of weights adds up.

    For sum, of the products element * value, or of the element alone where ``value`` is ''. Axes that the result lacks are
    summed too (the query heads of a group, where the result has kv heads). With ``at``, the element at a place is added
    where these indices point: the gradient of the captured tensor ``into``, whose shape the result has ('': of its axes).
    A ``prefix`` keeps the axis: each place i holds the sum of all up to it (before ``i+1``), or without it (before ``i``),
    beginning with ``init``.

    For decay, of the pairs (T, S), where a token's T multiplies the state by exp(``decay``) (per head, or per row of the
    state; '' is 1) and, with ``erase``, takes erase * element (element^T state) out of it; its S is the outer product of
    element and value, times erase. Merging (T1, S1) and (T2, S2) gives (T2 T1, T2 S1 + S2); the state before the first token
    is ``init``. In ``reverse`` the fold goes from the last token to the first: the state of a token is its own S and T of the
    next token times that one's state, and after the last token it is ``init``. With ``along`` it is the adjoint of a fold
    that erases: what leaves the state lies along that key, erase * along (along^T state), and no value is multiplied by erase.

    Scheduling fills the lower half: ``base`` of the exponential and the positive ``factor`` that multiplies the element inside
    it, the mask's plan, and where the fold is cut: into tiles inside a program; at level ``split`` also across programs,
    whose partial results a buffer carries to the kernel that merges them. The carrier ``atomic`` adds in any order, in memory.
    At level ``chunk`` runs of ``chunk`` tokens, counted from where a sequence begins, are folded each by itself; a fold over
    the axis C of these, in the order ``scan``, gives the state before each of them. ``decay`` then counts from the start of a
    chunk up to each token, and so does ``late`` ('': it is ``decay``) up to each token that is written, less the logarithm
    of what multiplies its value. ``erase`` is then a row per token, and a chunk's T is exp(decay) less the outer products of
    element and erase, each decayed to the chunk's end; in reverse less those of ``along`` and erase, decayed to its start, and
    its S is less those of ``along`` and ``taken``. The order is ``sequential`` where no T is ever made: a state goes through
    the chunks, and each token's element^T (erase^T state) is taken out of it. At level ``token`` the state goes from each
    token to the next in order.
    """

    kind: ClassVar[str] = "fold"
    OPERANDS: ClassVar[tuple[str, ...]] = (
        "element", "value", "dropout", "captured", "decay", "late", "erase", "along", "taken", "init",
    )  # fmt: skip
    monoid: Monoid
    element: str
    value: str = ""
    dropout: str = ""
    captured: tuple[str, ...] = ()
    axis: str
    domain: Domain
    axes: Axes
    at: tuple[Expr, ...] = ()
    into: str = ""
    prefix: Literal["", "i+1", "i"] = ""
    decay: str = ""
    late: str = ""
    erase: str = ""
    along: str = ""
    taken: str = ""
    init: str = ""
    reverse: bool = False
    precision: Literal["ieee", "tf32x3", "tf32"] = "ieee"
    base: Literal["e", "2"] = "e"
    factor: Expr | None = None
    tiles: Tiles | None = None
    level: Literal["whole", "tile", "split", "chunk", "token"] = "whole"
    order: Literal["free", "full-then-partial", "sequential", "parallel", "scan"] = "free"
    carrier: Literal["none", "register", "buffer", "atomic"] = "none"
    chunk: int = 0

    def verify(self) -> None:
        """A mask is a truth value; a cut fold has a plan, an order and a carrier; softmax alone has weights to drop."""
        _require(self.monoid == "softmax" or not self.dropout, "fold: only softmax has weights to drop")
        _require(self.monoid == "decay" or not self.erase, "fold: decay alone has a state to erase from")
        _require(
            bool(self.along) == (bool(self.erase) and self.reverse),
            "fold: exactly what erases in reverse does so along another's key",
        )
        _require(not self.taken or bool(self.along and self.chunk), "fold: chunks alone have something taken")
        _require(
            self.monoid == "decay"
            or bool(self.prefix)
            or not (self.init or (self.reverse and not self.chunk)),
            "fold: only what goes token by token begins somewhere",
        )
        _require(type_of(self.domain.mask) == "bool", "fold: the mask is not a truth value")
        _require((self.level == "chunk") == (self.chunk > 0), "fold: chunks have a size")
        _require(self.level != "token" or self.monoid == "decay", "fold: states alone go from token to token")
        cut = self.level != "whole"
        _require(
            cut == (self.order != "free") == (self.carrier != "none"),
            "fold: level, order and carrier go together",
        )
        _require(
            self.level != "tile" or self.tiles is not None or bool(self.decay),
            "fold: cut into tiles without a plan of its mask (run plan-masks)",
        )
        if self.monoid == "softmax" and self.level == "split":
            _require(self.domain.splits is not None, "fold: cut into splits that its domain does not ask for")
            _require(self.carrier == "buffer", "fold: partial results of splits are carried by a buffer")
        if self.factor is not None:
            _require(
                "j" not in symbols(self.factor),
                "fold: the factor inside the exponential must not vary with j",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lift(Node):
    """One value as an element of a monoid; for softmax a score whose value is zero (an attention sink)."""

    kind: ClassVar[str] = "lift"
    OPERANDS: ClassVar[tuple[str, ...]] = ("operand",)
    monoid: Monoid
    operand: str
    axes: Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge(Node):
    """The monoid's merge of two elements, left before right; for sum, left plus right."""

    kind: ClassVar[str] = "merge"
    OPERANDS: ClassVar[tuple[str, ...]] = ("left", "right")
    monoid: Monoid
    left: str
    right: str
    axes: Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Read(Node):
    """What queries see of the states of a decay fold: query^T state, of the state right after each token.

    A query over the state's columns reads its rows: state query. With ``before``, of the state that each token finds: that
    of the token before it (of the first, where the fold begins), decayed by this one.

    Of states of chunks (a fold in the order ``scan``), times the exponential of what ``decay`` and ``late`` (as in `Fold`) say
    of the decay between the token and where that state is.
    """

    kind: ClassVar[str] = "read"
    OPERANDS: ClassVar[tuple[str, ...]] = ("query", "state", "decay", "late")
    query: str
    state: str
    decay: str = ""
    late: str = ""
    before: bool = False
    axes: Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Solve(Node):
    """x of (I + A) x = weight * rhs, for each run of ``chunk`` tokens, counted from where a sequence begins; ``transposed``,
    of (I + A)^T. Without a ``weight`` it is 1.

    A is strictly lower triangular: A[t, j] = scale_t exp(decay_t - decay_j) matrix[t, j] for j < t, the decay ('' is 0) counted
    from the start of the chunk. With the products of keys as ``matrix`` and beta as ``scale`` this is the WY form of a chunk of
    delta rules (arXiv:2406.06484, arXiv:2412.06464): what its tokens write, and what they take from the state before it.
    """

    kind: ClassVar[str] = "solve"
    LEVEL: ClassVar[Literal["semantic", "scheduled", "both"]] = "scheduled"
    OPERANDS: ClassVar[tuple[str, ...]] = ("matrix", "rhs", "scale", "weight", "decay")
    matrix: str
    rhs: str
    scale: str
    weight: str = ""
    decay: str = ""
    transposed: bool = False
    chunk: int
    block: int
    axes: Axes

    def verify(self) -> None:
        """A chunk is cut into blocks, which the inverse is made of."""
        _require(
            self.block >= 16 and self.chunk % self.block == 0,
            f"solve: {self.chunk} tokens are no number of blocks of {self.block}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish(Node):
    """What a caller sees of a monoid's element: for softmax ``out`` (acc / l, 0 if l is 0) or ``lse`` (natural log, fp32).

    For decay ``states``, those after the last token, or ``out``: of columns that end with what values of one give, all
    others divided by it (0 if it is 0).
    """

    kind: ClassVar[str] = "finish"
    OPERANDS: ClassVar[tuple[str, ...]] = ("operand",)
    monoid: Monoid
    operand: str
    result: Literal["out", "lse", "states"]
    axes: Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Load(Node):
    """Bring a tile of a tensor to the program: rows of ``tile_axis``, columns in power-of-two ``chunks`` (start, width).

    The chunks cover the last axis once; the last may reach past its end, where lanes read zero. ``columns`` limits a view
    (MLA's V is the first columns of K). ``address`` says how rows are found: by strides (from where the axis begins), or
    in pages. With ``halves`` a chunk is brought in as two of half its width, its even and its odd columns: in a cache of
    4-bit numbers they are the low and the high halves of the same bytes.
    """

    kind: ClassVar[str] = "load"
    LEVEL: ClassVar[Literal["semantic", "scheduled", "both"]] = "scheduled"
    OPERANDS: ClassVar[tuple[str, ...]] = ("operand",)
    operand: str
    axes: Axes
    tile_axis: str
    columns: int
    chunks: tuple[tuple[int, int], ...]
    address: Address
    halves: bool = False

    def verify(self) -> None:
        """Chunks are powers of two of at least 16 (twice that in halves), adjacent, and cover the columns."""
        end, least = 0, 32 if self.halves else 16
        for start, width in self.chunks:
            _require(
                start == end and width >= least and width & (width - 1) == 0,
                f"load: bad chunks {self.chunks}",
            )
            end = start + width
        _require(end >= self.columns, f"load: chunks {self.chunks} do not cover {self.columns} columns")
        _require(
            end - self.columns < least,
            f"load: chunks {self.chunks} waste {least} or more of {self.columns} columns",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice(Node):
    """``columns`` columns of a tensor's last axis from ``start``, as a tensor over ``axes`` (MLA: V inside K, its first ones).

    Where ``axes`` lacks the last axis, it is one column.
    """

    kind: ClassVar[str] = "slice"
    OPERANDS: ClassVar[tuple[str, ...]] = ("operand",)
    operand: str
    start: int = 0
    columns: int
    axes: Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Pad(Node):
    """A tensor whose last axis is filled up to that of ``axes``: with zeros it is the adjoint of `Slice`."""

    kind: ClassVar[str] = "pad"
    OPERANDS: ClassVar[tuple[str, ...]] = ("operand",)
    operand: str
    fill: float = 0.0
    axes: Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Store(Node):
    """Write a tile to an output tensor, in its ``dtype``: a torch name, ``io``, or the one that the tensor has (``own``).

    Sums of which differences are taken are ``sums``: float64 beside tensors of float32, else float32.
    """

    kind: ClassVar[str] = "store"
    LEVEL: ClassVar[Literal["semantic", "scheduled", "both"]] = "scheduled"
    OPERANDS: ClassVar[tuple[str, ...]] = ("operand",)
    operand: str
    name: str
    dtype: str
    axes: Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch(Node):
    """One kernel: its stores, the axis whose tiles and the axes whose elements become programs, and its schedules.

    ``across`` names a second axis whose tiles become programs: each owns a rectangle.

    ``rows`` says how a program finds its rows: on a ``grid`` of the longest length and all program axes, or by ``search``
    in cu_seqlens_q, where tiles of all sequences stand in a row; of ``chunks`` none belongs to two sequences. Of ``states``
    each is changed in place by the row of the call that an index gives it to, if any.
    Programs of kv heads (program axis Hkv) hold the query heads of a group side by side in a tile.
    ``configs`` gives, per target, schedules to try in order; the first one is the untuned default. ``decode`` gives those of
    calls whose sequences have few queries each. Chunks of its loads that are wider
    than ``widest`` columns are cut: each is an accumulator of its own.
    """

    kind: ClassVar[str] = "launch"
    LEVEL: ClassVar[Literal["semantic", "scheduled", "both"]] = "scheduled"
    OPERANDS: ClassVar[tuple[str, ...]] = ("stores",)
    stores: tuple[str, ...]
    rows: Literal["grid", "search", "chunks", "states"] = "grid"
    tile_axis: str
    across: str = ""
    program_axes: Axes
    widest: int = 1024
    configs: tuple[tuple[str, tuple[Config, ...]], ...]
    decode: tuple[tuple[str, tuple[Config, ...]], ...] = ()

    def verify(self) -> None:
        """Every target has at least one schedule, and there is one that any machine can run."""
        _require(all(choices for _, choices in self.configs), "launch: a target without a schedule")
        _require("default" in dict(self.configs), "launch: no default schedule")


NODE_TYPES: tuple[type[Node], ...] = (
    Input, Contract, Map, Random, Slice, Pad, Fold, Lift, Merge, Read, Solve, Finish, Load, Store, Launch,
)  # fmt: skip


def symbol(name: str) -> Symbol:
    """Return an integer symbol: a position or a length."""
    return Symbol(name, "int")
