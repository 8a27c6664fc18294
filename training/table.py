"""The table that both evaluations print."""

from __future__ import annotations

GATE = 0.95


def show(table: dict[str, list[bool]]) -> bool:
    """Print right answers per question type; whether the whole reaches the mark."""
    print("| question | right | of | share |\n|---|---|---|---|")
    rows = [*sorted(table.items()), ("all", [right for rights in table.values() for right in rights])]
    for name, rights in rows:
        print(f"| {name} | {sum(rights)} | {len(rights)} | {100 * sum(rights) / len(rights):.1f} % |")
    return sum(rows[-1][1]) >= GATE * len(rows[-1][1])
