"""The tree of a session: what counts, what was abandoned, and where it was forked."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from kern_events.cli.text import clipped, counted, moment, one_line
from kern_events.events import Branch, Branches, Fork

_DEEPEST: Final = 12  # A longer chain of restores goes on flat: each line says where it goes on from.
_REASON: Final = 300  # characters


class _Plain(Tree):
    """For a pipe: drawn in ASCII."""

    TREE_GUIDES: Final = [Tree.ASCII_GUIDES] * 3  # type: ignore[misc]


def put_branches(out: Console, tree: Branches) -> None:
    """Print a tree: each branch below the one that it goes on from, in the order of recording."""
    root = (Tree if out.is_terminal else _Plain)(Text(_title(tree), "bold"), guide_style="dim")
    holders: list[tuple[Tree, int]] = []  # Where what goes on from each branch hangs, and how deep.
    starts = [branch.first_version for branch in tree.branches]
    for branch in tree.branches:
        holder, depth = _holder(root, holders, starts, branch.origin_version)
        node = holder.add(_branch(branch))
        holders.append((node, depth + 1) if depth + 1 < _DEEPEST else (holder, depth))
    for fork in tree.forks:
        _holder(root, holders, starts, fork.version)[0].add(_fork(fork))
    out.print(root)


def _holder(
    root: Tree, holders: Sequence[tuple[Tree, int]], starts: Sequence[int], version: int
) -> tuple[Tree, int]:
    """Where hangs what goes on from a version; at the root where that is none of the session's own."""
    index = bisect_right(starts, version) - 1
    return holders[index] if index >= 0 else (root, 0)


def _title(tree: Branches) -> str:
    said = [f"session {one_line(tree.session_id)}"]
    if tree.parent is not None:
        said.append(f"forked from {one_line(tree.parent)} at version {tree.fork_version:,}")
    branches = len(tree.branches)
    said.append("1 branch" if branches == 1 else f"{branches:,} branches")
    if tree.forks:
        said.append(counted(len(tree.forks), "fork"))
    return " · ".join(said)


def _branch(branch: Branch) -> Text:
    first, last, live = branch.first_version, branch.last_version, branch.live_version
    said = [_span("version", first, last)]
    said.append("abandoned" if live is None else "live" if live == last else f"live up to {live:,}")
    if branch.turns:
        said.append(_span("turn", branch.turns[0], branch.turns[-1]))
    said.append(moment(branch.at))
    if branch.origin_version:
        said.append(f"from version {branch.origin_version:,}")
    if branch.actor is not None:
        said.append(f"actor {one_line(branch.actor)}")
    if branch.reason is not None:
        said.append(f"“{one_line(clipped(branch.reason, _REASON))}”")
    return Text(" · ".join(said), "dim" if live is None else "")


def _fork(fork: Fork) -> Text:
    status = "" if fork.status == "open" else f" · {fork.status}"
    return Text(f"fork {one_line(fork.session_id)} at version {fork.version:,}{status}", "cyan")


def _span(noun: str, first: int, last: int) -> str:
    return f"{noun} {first:,}" if first == last else f"{noun}s {first:,} to {last:,}"
