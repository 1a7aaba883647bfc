"""The demo: plant a lesion in a real scan, ask a network, explain its answer, and hold each map against the truth."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import medviz
from medviz.attribution import Attribution
from medviz.demo.files import Files
from medviz.demo.measure import measure
from medviz.demo.network import CLASSES, LesionNet, load_network
from medviz.demo.scan import Lesion, load_scan, plant
from medviz.devices import usable
from medviz.image import Image

EXPLAINERS = ("medviz-xai/gradcam", "medviz-xai/gradcampp", "medviz-xai/layercam")
SEED = 3_000_005  # of the planted lesion; the network was trained with other seeds, in the other volume

_METHODS = tuple(name.rpartition("/")[2] for name in EXPLAINERS)


def run_demo(folder: Path, overwrite: bool, device: str, progress: bool, echo: Callable[[str], None]) -> None:
    """Run the whole demo, write its files into `folder`, and say through `echo` what was found.

    Args:
        folder: where to; made if it is missing.
        overwrite: replace the files of an earlier run. Files of other names in the folder are left alone.
        device: "auto" (a GPU of CUDA, else the CPU), or a name such as "cpu", "cuda:1" or "mps".
        progress: show bars on stderr, where that is a terminal.
        echo: called with the report, a line or a few at a time.

    Raises:
        FileExistsError: a file of the demo exists and `overwrite` is False.
        NotADirectoryError: `folder` is a file.
        PermissionError: nothing can be written into `folder`.
        ValueError: an unknown `device`, one that torch cannot use, or a scan that is not the expected one.
    """
    files = Files(Path(folder).expanduser(), overwrite, progress)
    files.check(_METHODS)
    where = usable(device)
    scan = load_scan(0)
    planted, lesion = plant(scan, SEED)
    echo(_describe(scan, lesion))
    network = load_network().to(where)
    echo(_answers(network, where, scan, planted))
    maps: Any = medviz.explain(
        network, planted, list(EXPLAINERS), CLASSES.index("lesion"), device=where, progress=progress
    )
    echo(_table(maps, lesion))
    with _one_thread():
        written = list(files.write(maps, planted, lesion))
    echo("\nWritten:\n" + "\n".join(f"  {path}" for path in written))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Draw with one thread: pictures are many small operations, and on a busy machine threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _describe(scan: Image, lesion: Lesion) -> str:
    kind = "bright" if lesion.contrast > 0 else "dark"
    size = " x ".join(str(n) for n in scan.data.shape[1:])
    place = ", ".join(f"{x:.0f}" for x in lesion.center_mm)
    return (
        f"Scan: a brain, {size} voxels of echo-planar MRI, as nibabel ships it.\n"
        f"Planted: a {kind} lesion, radius {lesion.radius_mm:.1f} mm, at voxel {lesion.center}: ({place}) mm, RAS+."
    )


def _answers(network: LesionNet, where: torch.device, scan: Image, planted: Image) -> str:
    with torch.no_grad():
        chances = network(torch.stack([scan.data, planted.data]).to(where)).softmax(1).cpu()
    lines = ["\nThe network's answer"]
    for name, chance in zip(("without the lesion", "with the lesion"), chances, strict=True):
        answer = int(chance.argmax())
        lines.append(f"  {name:20}{CLASSES[answer]} (probability {float(chance[answer]):.3f})")
    return "\n".join(lines)


def _table(maps: Sequence[Attribution], lesion: Lesion) -> str:
    lines = [f"\n{'map':12}{'peak to lesion centre':>22}{'mass inside':>14}{'times its share of the volume':>32}"]
    for one in maps:
        found = measure(one, lesion)
        lines.append(f"{one.method:12}{found.distance_mm:>19.1f} mm{found.inside:>14.0%}{found.gain:>32.0f}")
    return "\n".join(lines)
