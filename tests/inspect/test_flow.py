"""Loops of listings of a few lines, and of random control flow against definitions by brute force."""

import networkx as nx
from hypothesis import given
from hypothesis import strategies as st

from attngen.inspect.assembly import Instruction, Listing, parse_sass
from attngen.inspect.flow import NaturalLoop, busiest_path, flow, innermost, natural_loops


def cut(*lines):
    """The flow of a kernel; labels are written `.L_a:` or `$a:`, jumps `BRA a` and `CALL.REL.NOINC a`, calls `CALL $a`."""
    text = [".section\t.text.k,x"]
    for line in lines:
        start, _, name = line.rpartition(" ")
        jumps = start.endswith(("BRA", "CALL.REL.NOINC"))
        text.append(
            line
            if line.endswith(":")
            else f"/*0000*/ {start} `(.L_{name}) ;"
            if jumps
            else f"/*0000*/ {start} `({name}) ;"
            if start.endswith("CALL")
            else f"/*0000*/ {line} ;"
        )
    return flow(parse_sass("\n".join(text), "k"))


def loops(found):
    return [(loop.header, sorted(loop.blocks)) for loop in natural_loops(found)]


def ops(found, path):
    return [i.op for block in path for i in found.issued(block)]


def turn(found, heavy):
    """The operations of one turn of the innermost loop around `heavy`."""
    weights = [sum(i.op == heavy for i in block) for block in found.blocks]
    (loop,) = innermost(natural_loops(found), weights)
    return ops(found, busiest_path(found, loop, [(w,) for w in weights]))


def test_blocks_end_at_jumps_and_at_labels():
    found = cut("MOV", "FADD", ".L_a:", "FMUL", "@P0 BRA a", "FFMA", "EXIT")
    assert [[i.op for i in block] for block in found.blocks] == [
        ["MOV", "FADD"],
        ["FMUL", "BRA"],
        ["FFMA", "EXIT"],
    ]
    assert sorted(found.graph.edges) == [(0, 1), (1, 1), (1, 2)]
    assert loops(found) == [(1, [1])]


def test_an_empty_listing_has_no_loops():
    found = flow(Listing((), {}))
    assert found.blocks == ()
    assert natural_loops(found) == []


def test_a_jump_without_condition_is_not_passed():
    found = cut("BRA b", ".L_a:", "FADD", ".L_b:", "@P0 EXIT", "BRA a")
    assert sorted(found.graph.edges) == [(0, 2), (1, 2), (2, 3), (3, 1)]
    assert loops(found) == [(2, [1, 2, 3])]


def test_a_jump_to_the_end_and_to_an_unknown_label_leaves():
    found = cut("@P0 BRA end", "@P1 BRA nowhere", "FADD", ".L_end:")
    assert sorted(found.graph.edges) == [(0, 1), (1, 2)]


def test_two_ways_back_to_one_header_are_one_loop():
    found = cut("MOV", ".L_a:", "FADD", "@P0 BRA a", "FMUL", "@P1 BRA a", "EXIT")
    assert loops(found) == [(1, [1, 2])]


def test_nested_loops():
    found = cut(
        "MOV", ".L_outer:", "FADD", ".L_inner:", "HMMA", "@P0 BRA inner", "FMUL", "@P1 BRA outer", "EXIT"
    )  # fmt: skip
    assert loops(found) == [(1, [1, 2, 3]), (2, [2])]
    inner, outer = natural_loops(found)[::-1]
    assert innermost([outer, inner], [1, 1, 1, 1, 1]) == [inner]
    assert innermost([outer, inner], [0, 0, 0, 1, 0]) == [outer]
    assert innermost([outer, inner], [1, 0, 0, 0, 1]) == []
    assert turn(found, "HMMA") == ["HMMA", "BRA"]
    assert turn(found, "FMUL") == ["FADD", "HMMA", "BRA", "FMUL", "BRA"]  # the inner loop once


def test_a_wait_out_of_line_is_a_loop_of_its_own_and_not_in_the_turn():
    found = cut(
        "MOV", ".L_loop:", "SYNCS", "@!P0 BRA wait", ".L_go:", "HGMMA", "@P1 BRA loop", "EXIT",
        ".L_wait:", "SYNCS", "@!P0 BRA wait", "BRA go",
    )  # fmt: skip
    assert loops(found) == [(1, [1, 2, 4, 5]), (4, [4])]
    assert turn(found, "HGMMA") == ["SYNCS", "BRA", "HGMMA", "BRA"]


def test_a_predicated_call_closes_a_loop():
    found = cut("MOV", ".L_a:", "HMMA", "@!P0 CALL.REL.NOINC b", "CALL.REL.NOINC a", ".L_b:", "EXIT")
    assert loops(found) == [(1, [1, 2])]


SUBROUTINE = (
    "$div:", "FADD", "@P0 BRA short", "MUFU", "MUFU", "BRA out", ".L_short:", "LOP3", ".L_out:", "RET",
    "$trap:", "BPT", ".L_ever:", "BRA ever",
)  # fmt: skip
DIVISION = ["CALL", "FADD", "BRA", "LOP3", "RET"]


def test_a_call_issues_the_shortest_way_through_the_subroutine_and_comes_back():
    found = cut(
        ".L_a:", "HMMA", "CALL $div", "FMUL", "CALL $div", "@P1 BRA a", "CALL $trap", "EXIT", *SUBROUTINE
    )
    assert loops(found) == [(0, [0])]
    assert turn(found, "HMMA") == ["HMMA", *DIVISION, "FMUL", *DIVISION, "BRA"]
    # the trap does not return, and one that is not in the listing is only the call
    assert ops(found, [1]) == ["CALL", "EXIT"]
    assert ops(cut("CALL $elsewhere", "EXIT"), [0]) == ["CALL", "EXIT"]


def test_the_way_around_a_call_is_the_shorter_one():
    found = cut(
        ".L_a:", "HMMA", "@P0 BRA b", "CALL $div", "BRA c", ".L_b:", "IADD", "IADD", "IADD", ".L_c:", "@P1 BRA a",
        "EXIT", *SUBROUTINE,
    )  # fmt: skip
    assert turn(found, "HMMA") == ["HMMA", "BRA", "IADD", "IADD", "IADD", "BRA"]
    # a call under a predicate need not happen
    found = cut(".L_a:", "HMMA", "@P0 CALL $div", "@P1 BRA a", "EXIT", *SUBROUTINE)
    assert turn(found, "HMMA") == ["HMMA", "CALL", "BRA"]


def test_subroutines_may_call_others():
    found = cut("CALL $outer", "EXIT", "$outer:", "FMUL", "CALL $div", "RET", *SUBROUTINE)
    assert ops(found, [0]) == ["CALL", "FMUL", *DIVISION, "RET", "EXIT"]


def test_the_turn_takes_the_longer_side_if_the_work_is_there():
    found = cut(
        ".L_a:", "MOV", "@P0 BRA skip", "UMOV", "UMOV", "UTCHMMA", ".L_skip:", "FADD", "@P1 BRA a", "EXIT"
    )  # fmt: skip
    assert turn(found, "UTCHMMA") == ["MOV", "BRA", "UMOV", "UMOV", "UTCHMMA", "FADD", "BRA"]
    assert turn(found, "FADD") == ["MOV", "BRA", "FADD", "BRA"]


def test_a_cycle_with_two_entries_is_no_natural_loop_and_does_not_stop_the_count():
    found = cut(
        ".L_a:", "HMMA", "@P0 BRA c", ".L_b:", "FADD", ".L_c:", "FMUL", "@P1 BRA b", "@P2 BRA a", "EXIT"
    )  # fmt: skip
    assert loops(found) == [(0, [0, 1, 2, 3])]
    assert turn(found, "HMMA") == ["HMMA", "BRA", "FMUL", "BRA", "BRA"]


def test_cutting_a_cycle_with_two_entries_keeps_the_way_back():
    """Blocks v and w and u form a cycle that is entered at u and w; only v leads back to the header, which is last."""
    found = cut(
        "BRA head", ".L_v:", "HMMA", "@P0 BRA head", ".L_w:", "FADD", ".L_u:", "FMUL", "@P1 BRA v", "EXIT",
        ".L_head:", "@P2 BRA u", "BRA w",
    )  # fmt: skip
    (header,) = {header for header, _ in loops(found)}
    assert [i.op for i in found.blocks[header]] == ["BRA"]
    assert turn(found, "HMMA") == ["BRA", "FMUL", "BRA", "HMMA", "BRA"]


@st.composite
def listings(draw):
    """Up to eight blocks, each of one or more instructions, that fall through, jump, branch or exit."""
    size = draw(st.integers(1, 8))
    code, labels = [], {}
    for block in range(size):
        labels[str(block)] = len(code)
        code += [Instruction(op="MOV")] * draw(st.integers(1, 3))
        end = draw(st.sampled_from(["fall", "jump", "branch", "branch", "branch", "exit"]))
        if end != "fall":
            goes_to = None if end == "exit" else str(draw(st.integers(0, size - 1)))
            code.append(Instruction(op="BRA", ends=True, guarded=end == "branch", goes_to=goes_to))
    return Listing(tuple(code), labels)


def reached(edges, start, without=None):
    found, todo = {start} - {without}, [start]
    while todo:
        block = todo.pop()
        after = {b for a, b in edges if a == block and block != without} - found - {without}
        found |= after
        todo += after
    return found


def natural_loops_by_definition(edges):
    """Edges to a header without which their start is not reached; with what reaches them without the header."""
    live = reached(edges, 0)
    edges = {(a, b) for a, b in edges if a in live}
    back = {(end, header) for end, header in edges if end == header or end not in reached(edges, 0, header)}
    bodies = {header: {header} for _, header in back}
    for end, header in back:
        bodies[header] |= {b for b in live - {header} if end in reached(edges, b, header)}
    return [NaturalLoop(header, frozenset(body)) for header, body in sorted(bodies.items())], back


@given(listings())
def test_natural_loops_are_those_of_the_definition(listing):
    found = flow(listing)
    assert natural_loops(found) == natural_loops_by_definition(set(found.graph.edges))[0]


@given(listings(), st.data())
def test_the_turn_is_the_best_of_all_ways_round(listing, data):
    found = flow(listing)
    expected, back = natural_loops_by_definition(set(found.graph.edges))
    weights = [(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 1))) for _ in found.blocks]

    def cost(path):
        return (*(-sum(w) for w in zip(*(weights[b] for b in path), strict=True)), len(ops(found, path)))

    for loop in expected:
        path = busiest_path(found, loop, weights)
        body = found.graph.subgraph(loop.blocks)
        assert path[0] == loop.header
        assert all(body.has_edge(a, b) for a, b in zip(path, [*path[1:], loop.header], strict=True))
        if nx.is_directed_acyclic_graph(nx.DiGraph(set(body.edges) - back)):
            assert cost(path) == min(cost(turn) for turn in nx.simple_cycles(body) if loop.header in turn)
