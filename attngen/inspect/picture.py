"""A picture of reports: per target a roofline, and how long each pipe of an SM is busy per loop."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attngen.inspect.report import KernelReport, LoopReport
from attngen.target.facts import Target, target

# Okabe and Ito's colours, which people with colour blindness can tell apart
_COLOURS = {
    "tensor": "#0072B2",
    "mufu": "#D55E00",
    "issue": "#999999",
    "fma": "#009E73",
    "alu": "#E69F00",
    "convert": "#CC79A7",
    "shuffle": "#56B4E9",
    "shared": "#F0E442",
}
_Named = tuple[str, LoopReport]
ROLE_COLOURS = {"full": _COLOURS["tensor"], "partial": _COLOURS["alu"]}


def picture(reports: Sequence[KernelReport], names: Mapping[Path, str]) -> str:
    """Draw reports as SVG; the same reports give the same text. `names` gives the spec of each module."""
    by_target: dict[str, list[_Named]] = {}
    for report in reports:
        loops = by_target.setdefault(report.compiled.target, [])
        kernel = f"{names[report.module]} {report.name.removeprefix('_')}"
        loops += [(f"{kernel} {loop.role or f'line {loop.line}'}", loop) for loop in report.loops]
    tallest = max([len(loops) for loops in by_target.values()], default=0)
    with mpl.rc_context({"svg.hashsalt": "attngen", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(13, max(4.0, 1.5 + 0.22 * tallest) * len(by_target)), layout="constrained")
        axes = figure.subplots(len(by_target), 2, squeeze=False, width_ratios=(2, 3))
        for row, (name, loops) in zip(axes, by_target.items(), strict=True):
            _roofline(row[0], target(name), loops)
            _pipes(row[1], target(name), loops)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": "attngen"})
    return out.getvalue()


def _roofline(axes: Axes, goal: Target, loops: Sequence[_Named]) -> None:
    """Predicted TFLOP/s over FLOPs per byte that the loop loads; a bar reaches from serial to overlap, turns is the dot."""
    peak = goal.peak_tflops("16")
    ridge = 1000 * peak / goal.dram_gbps
    axes.plot([1, ridge, 1e4], [goal.dram_gbps / 1000, peak, peak], color="black", linewidth=1)
    axes.annotate(f"16-bit peak {peak:.0f} TFLOP/s", (1e4, peak), ha="right", va="bottom")
    axes.annotate(f"DRAM {goal.dram_gbps} GB/s", (1.2, 1.3 * goal.dram_gbps / 1000), rotation=0)
    for _, loop in loops:
        if not loop.bytes_per_flop:
            continue
        intensity, rate = 1 / loop.bytes_per_flop, loop.prediction
        colour = ROLE_COLOURS.get(loop.role.rpartition(" ")[2], "black")  # of "dq full": full
        axes.plot(
            [intensity] * 2, [rate.tflops_serial, rate.tflops_overlap], color=colour, linewidth=1, alpha=0.6
        )
        axes.plot(intensity, rate.tflops_turns, marker="o", markersize=3, color=colour)
    axes.set(xscale="log", yscale="log", ylabel="predicted TFLOP/s: serial to overlap, dot turns")
    axes.set_xlabel("useful FLOPs per byte loaded, from any cache (blue full, orange partial, black other)")
    axes.set_title(f"{goal.name}, {goal.product}")
    axes.grid(alpha=0.2, which="both")


def _pipes(axes: Axes, goal: Target, loops: Sequence[_Named]) -> None:
    """Clocks of each pipe per 1000 clocks that the useful work needs on the matrix units, one bar after another."""
    names = [name for name, _ in loops]
    left = [0.0] * len(loops)
    for pipe, colour in _COLOURS.items():
        widths = [_per_1000(loop, pipe) for _, loop in loops]
        axes.barh(range(len(names)), widths, left=left, color=colour, label=pipe, height=0.8)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(names)), names)
    axes.axvline(1000, color="black", linewidth=0.5)
    axes.invert_yaxis()
    axes.set_xlabel("clocks of each pipe per 1000 tensor clocks of useful work (they overlap in part)")
    axes.set_title(f"{goal.name}: load of the pipes, stacked")
    axes.legend(ncols=len(_COLOURS), loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)


def _per_1000(loop: LoopReport, pipe: str) -> float:
    return 1000 * loop.prediction.clocks[pipe] / loop.prediction.useful_clocks
