"""What is promised, what was measured, and whether the one holds the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import attrs

from benchmarks.timing import Spread

TIMES = "\N{MULTIPLICATION SIGN}"


@attrs.frozen
class Line:
    """One promise: a measured number must be at most, or at least, the target."""

    text: str
    sense: Literal["≤", "≥"]
    target: float
    unit: str = TIMES

    def holds(self, value: float) -> bool:
        """Return whether `value` keeps the promise."""
        return value <= self.target if self.sense == "≤" else value >= self.target

    def margin(self, value: float) -> float:
        """Return how far `value` is on the right side: above 1 it is kept, the smallest is the worst."""
        return self.target / max(value, 1e-30) if self.sense == "≤" else value / self.target

    def said(self) -> str:
        """Return the target as it stands in the table."""
        return f"{self.sense} {number(self.target, self.unit)}"


_DEEPEST = "Grad-CAM at the deepest layer / one inference"
_OCCLUSION = "MONAI / medviz, exact occlusion, same windows"
LINES: dict[str, Line] = {
    "gradcam deepest": Line(_DEEPEST, "≤", 1.10),
    "gradcam layer2": Line("Grad-CAM at `layer2` of a 3-D ResNet18 / one inference", "≤", 1.5),
    "gradcam peers": Line("Grad-CAM: medviz / the fastest peer", "≤", 1.0),
    "memory": Line("Extra memory of Grad-CAM / of one inference (+ 8 MB)", "≤", 1.10),
    "shared": Line("Six class-activation methods for three targets / one inference", "≤", 1.5),
    "occlusion 3-D ResNet18": Line(f"{_OCCLUSION}, 3-D ResNet18", "≥", 3.5),
    "occlusion 2-D ResNet18": Line(f"{_OCCLUSION}, 2-D ResNet18", "≥", 4.0),
    "occlusion 3-D DenseNet121": Line(f"{_OCCLUSION}, 3-D DenseNet121", "≥", 2.3),
    "occlusion 2-D DenseNet121": Line(f"{_OCCLUSION}, 2-D DenseNet121", "≥", 1.4),
    "occlusion error": Line("Exact occlusion: largest difference from MONAI's map, of its maximum", "≤", 1e-5, "error"),
    "occlusion exact": Line("Exact occlusion: largest error of a fall, of the largest, float64", "≤", 1e-5, "error"),
    "occlusion untraceable": Line("Occlusion of a model that cannot be traced / bare passes", "≤", 1.05),
    "smoothgrad": Line("MONAI / medviz, SmoothGrad, 25 samples", "≥", 1.3),
    "cam": Line("MONAI / medviz, CAM at 4,096 locations", "≥", 10.0),
    "blend": Line("MONAI / medviz, `blend_images` at 128³", "≥", 2.5),
    "gif": Line("MONAI / medviz, GIF of 128 frames to TensorBoard", "≥", 1.5),
    "import": Line("`import medviz`", "≤", 0.080, "s"),
    "help": Line("`medviz --help`", "≤", 0.4, "s"),
    "plugins": Line("`medviz plugins`", "≤", 0.6, "s"),
    "parallel time": Line("Grad-CAM / inference: largest edge against 64³, time", "≤", 1.10),
    "parallel memory": Line("Grad-CAM / inference: largest edge against 64³, memory", "≤", 1.10),
}
CPU_ONLY = frozenset({"import", "help", "plugins", "gif"})


@attrs.frozen
class Row:
    """One comparison.

    Args:
        line: the promise that it belongs to, a key of `LINES`; "": none, for information.
        case: what was measured: network, size, layer.
        value: the measured number, in the line's unit.
        seconds: the median of each way, by name.
        note: how well the results agree, how many rounds, what else a reader must know.
        failed: why nothing was measured; the rest says nothing then.
        met: whether the promise is kept, where the number alone does not say it.
    """

    line: str
    case: str
    value: Spread | None = None
    seconds: Mapping[str, float] = attrs.field(factory=dict)
    note: str = ""
    failed: str = ""
    met: bool | None = None

    @property
    def kept(self) -> bool | None:
        """Whether the promise is kept; None: none was given."""
        if self.line not in LINES:
            return None
        if self.value is None:
            return False
        return LINES[self.line].holds(self.value.median) if self.met is None else self.met


@attrs.frozen
class Point:
    """One method on a volume of one edge.

    Args:
        method: its name; "inference" is the network alone.
        edge: of the volume, in voxels.
        seconds: of one call, or None where it failed.
        ratio: to inference, in the same process, in turns.
        megabytes: extra memory of one call, in 10⁶ bytes.
        failed: why there is no number.
    """

    method: str
    edge: int
    seconds: float | None = None
    ratio: Spread | None = None
    megabytes: float | None = None
    failed: str = ""


@attrs.frozen
class Case:
    """Something to be measured by itself: where one fails, the others go on."""

    name: str
    run: Callable[[], Iterable[Row | Point]]
    line: str = ""


def number(value: float, unit: str = TIMES) -> str:
    """Return a number as it stands in the table."""
    if unit == "error":
        return f"{value:.0e}"
    if unit == "s":
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} {TIMES}" if value >= 10 else f"{value:.2f} {TIMES}"


def plain(item: Row | Point) -> dict[str, Any]:
    """Return `item` as what JSON can hold."""
    return {"is": type(item).__name__, **attrs.asdict(item)}


def item_of(data: Mapping[str, Any]) -> Row | Point:
    """Return what `plain` was given."""
    fields = {key: value for key, value in data.items() if key != "is"}
    name = "value" if data["is"] == "Row" else "ratio"
    fields[name] = Spread(**fields[name]) if fields[name] else None
    return Row(**fields) if data["is"] == "Row" else Point(**fields)
