"""The chart: a panel per server, a bar per system, on one logarithmic axis.

python benchmarks/peers/chart.py    draw it again from docs/benchmarks-peers.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

from table import HAULIER, SERVERS

mpl.use("svg")

import matplotlib.pyplot as plt

OURS, THEIRS, WHISKER = "#0b6e4f", "#9fb3c8", "#33424f"
STYLE = {
    "svg.hashsalt": "peers",  # the same figures make the same file
    "svg.fonttype": "none",  # texts stay texts: small, searchable
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
TITLES = {"sqlite": "SQLite", "postgres": "PostgreSQL", "redis": "Redis"}


def draw(found: dict[str, Any], path: Path) -> None:
    """One SVG file."""
    panels = {
        server: sorted(
            (row for row in found["rows"] if row["server"] == server and row["per_s"]),
            key=lambda row: row["per_s"]["median"],
        )
        for server in SERVERS
    }
    panels = {server: rows for server, rows in panels.items() if rows}
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(panels),
            sharex=True,
            squeeze=False,
            figsize=(8, 1.2 + 0.3 * sum(len(rows) + 1 for rows in panels.values())),
            height_ratios=[len(rows) + 0.6 for rows in panels.values()],
            layout="constrained",
        )
        for axis, (server, rows) in zip(axes[:, 0], panels.items(), strict=True):
            _panel(axis, TITLES[server], rows)
        axes[-1, 0].set_xlabel(
            "no-op jobs a second, one worker process (logarithmic)          * at most once"
        )
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)
    # The library leaves blanks at line ends.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def _panel(axis: Any, title: str, rows: list[dict[str, Any]]) -> None:
    medians = [row["per_s"]["median"] for row in rows]
    names = [row["name"] + ("" if row["at_least_once"] else " *") for row in rows]
    axis.barh(
        names,
        medians,
        color=[OURS if row["name"] == HAULIER else THEIRS for row in rows],
        xerr=[
            [row["per_s"]["median"] - row["per_s"]["min"] for row in rows],
            [row["per_s"]["max"] - row["per_s"]["median"] for row in rows],
        ],
        error_kw={"ecolor": WHISKER, "elinewidth": 1, "capsize": 2},
    )
    for number, row in enumerate(rows):
        axis.annotate(
            f"{row['per_s']['median']:,.0f}",
            (row["per_s"]["max"], number),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_xlim(left=100, right=3 * max(100_000, *medians))
    axis.set_title(title, loc="left", fontweight="bold", fontsize=10)
    axis.tick_params(axis="y", length=0)


if __name__ == "__main__":
    from report import CHART, DATA

    draw(json.loads(DATA.read_text()), CHART)
