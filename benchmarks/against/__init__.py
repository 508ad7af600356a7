"""The working tree against an earlier revision: ``--against REV``.

Both run the same events in turns, each in a process of its own, on the libraries of this environment; processor time
has the aims, since the machine may have other work.
"""

from __future__ import annotations

from benchmarks.against import processes, steps
from benchmarks.against.tree import Side, Tree
from benchmarks.harness import Context, Figure


def measure(context: Context) -> list[Figure]:
    """The learning step, then processes with real servers."""
    assert context.against is not None, "asked for with --against REV"
    sides = [context.start(Side(context.start(Tree(context.folder, rev)))) for rev in (None, context.against)]
    now, before = sides
    return [*steps.measure(context, now, before), *processes.measure(context, now, before)]
