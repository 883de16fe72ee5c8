"""`attngen explain` for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from attngen.cli.explain import CHARACTERS
from attngen.cli.explain_recurrence import recurrence_sections
from attngen.cli.output import columns


def as_text(found: Mapping[str, Any]) -> str:
    """Return the text form of an explanation."""
    title = f"{found['name']}: {found['summary']}" if found["summary"] else found["name"]
    sections = [
        ("structure (compiled in)", _pairs(found["compiled_in"])),
        ("run time (arguments of a call)", _pairs(found["run_time"])),
        *_middle(found),
        ("semantic graph", found["semantic"].rstrip()),
        ("passes", columns([[step["name"], step["does"]] for step in found["passes"]])),
        ("scheduled graph", found["scheduled"].rstrip()),
        ("schedules by target and bits per element, untuned", _all_schedules(found["schedules"])),
    ]
    parts = [f"{heading}\n{_indented(body)}" for heading, body in sections]
    return "\n\n".join([f"{title}\nmechanism: {found['mechanism']}", *parts])


def _middle(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "launches" in found:
        return recurrence_sections(found)
    return [("plan of the mask", _mask(found["mask"])), ("tiles", _tiles(found["tiles"]))]


def _all_schedules(schedules: Mapping[str, Any]) -> str:
    """Of one kernel by target, or of several by kernel and target."""
    if "default" in schedules:
        return _schedules(schedules)
    return "\n".join(f"{kernel}\n{_indented(_schedules(of))}" for kernel, of in schedules.items())


def _indented(body: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in body.splitlines())


def _pairs(values: Mapping[str, Any]) -> str:
    return columns([[name, _value(value)] for name, value in values.items()])


def _value(value: Any) -> str:
    if isinstance(value, dict):
        pairs = cast(dict[str, Any], value).items()
        return ", ".join(f"{name} = {_value(inner)}" for name, inner in pairs)
    if isinstance(value, list):
        return ", ".join(_value(inner) for inner in cast(list[Any], value))
    return value if isinstance(value, str) else json.dumps(value)


def _mask(mask: Mapping[str, Any]) -> str:
    rows = [
        ["mask", mask["formula"] or "none: every query sees every key"],
        ["may", " and ".join(mask["may"]) or "nowhere"],
        ["must", " and ".join(mask["must"]) or "nowhere"],
        ["row limits", mask["row"]],
        ["residual", "none" if mask["residual"].lower() == "true" else mask["residual"]],
        ["exact", "yes" if mask["exact"] else "not proved: tiles may be visited in vain"],
        *(["note", note] for note in mask["notes"]),
    ]
    help_text = [
        "A tile of queries i_lo..i_hi meets no key outside `may` and all of `must`; in between, a key counts",
        "if it is inside the row limits and the residual holds. The loops walk tiles of BLOCK_N keys:",
    ]
    return "\n".join([columns(rows), *help_text, *(f"  {line}" for line in mask["loops"])])


def _tiles(tiles: Mapping[str, Any]) -> str:
    picture, pictured = tiles["map"], tiles.get("pictured")
    counts = f"full {tiles['full']:,}, partial {tiles['partial']:,}, empty {tiles['empty']:,}"
    lines = [_lengths(tiles), counts]
    lines += [f"assumed: {_value(tiles['assumed'])}"] if tiles["assumed"] else []
    if pictured:
        lines.append(f"the longest document: {pictured['seqlen_q']} queries, {pictured['seqlen_k']} keys")
    words = ("empty", "partial", "full")
    legend = ", ".join(f"{c} {word}" for c, word in zip(CHARACTERS, words, strict=True))
    size = f"{picture['block_m']} x {picture['block_n']}"
    lines.append(f"down queries, across keys, a character is {size}: {legend}")
    return "\n".join([*lines, *(f"  {row}" for row in picture["rows"])])


def _lengths(tiles: Mapping[str, Any]) -> str:
    lengths = f"{tiles['seqlen_q']:,} queries, {tiles['seqlen_k']:,} keys"
    if "documents" in tiles:
        lengths += f" in {tiles['documents']:,} documents"
    return f"{lengths}, tiles of {tiles['block_m']} x {tiles['block_n']}, one head"


def _schedules(schedules: Mapping[str, list[dict[str, Any]]]) -> str:
    rows: list[list[str]] = []
    for target, choices in schedules.items():
        for number, config in enumerate(choices):
            shown = f"{config['block_m']} x {config['block_n']}"
            shown += f", {config['num_warps']} warps, {config['num_stages']} stages"
            shown += ", descriptors" if config["use_descriptors"] else ""
            rows.append([target if not number else "", shown])
    return columns(rows)
