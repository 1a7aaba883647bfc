"""Pictures of the results: transparent, in tones that stand out from white and from black."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import Point

INK = "#808080"
STYLES = {  # colour, marker, width
    "inference": ("#8a8a8a", "s", 5.0),
    "medviz": ("#e8590c", "o", 2.4),
    "medviz, six methods": ("#b07d00", "D", 1.8),
    "MONAI": ("#2b8a9e", "^", 1.4),
    "captum": ("#7a6ad8", "v", 1.4),
    "grad-cam": ("#c2458f", "P", 1.4),
    "torchcam": ("#3f9b4f", "X", 1.4),
}
_RC = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 11,
    "font.size": 10,
    "svg.hashsalt": "medviz",
    "svg.fonttype": "path",
}


def edges(points: Sequence[Point], path: Path, title: str) -> Path:
    """Draw time and extra memory of every method over the volume's edge, and write them to `path`.

    Raises:
        ValueError: no point holds a number.
    """
    measured = [point for point in points if point.seconds is not None and point.megabytes is not None]
    if not measured:
        raise ValueError("there is nothing to draw: no method was measured at any edge.")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_RC):
        figure = Figure(figsize=(9.6, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _panel(left, measured, lambda point: point.seconds, "time of one call, s")
        _panel(right, measured, lambda point: point.megabytes, "extra memory of one call, MB")
        figure.suptitle(title, fontsize=11)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, transparent=True, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def _panel(axes: Any, points: Sequence[Point], value: Callable[[Point], float | None], label: str) -> None:
    for method in dict.fromkeys(point.method for point in points):
        colour, marker, width = STYLES.get(method, (INK, ".", 1.0))
        pairs = sorted((point.edge, value(point)) for point in points if point.method == method)
        layer = {"inference": 1, "medviz": 3}.get(method, 2)
        marked = {"color": colour, "marker": marker, "linewidth": width, "markersize": 5, "zorder": layer}
        axes.plot([edge for edge, _ in pairs], [found for _, found in pairs], label=method, **marked)
    ticks = sorted({point.edge for point in points})
    axes.set(xscale="log", yscale="log", xlabel="edge of the volume, voxels", ylabel=label)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.grid(True, color=INK, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
