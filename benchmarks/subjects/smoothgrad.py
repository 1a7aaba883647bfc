"""SmoothGrad beside MONAI's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.agreement import agree
from benchmarks.methods import TARGET
from benchmarks.networks import NETWORKS, own
from benchmarks.options import Options
from benchmarks.rows import Case, Row
from benchmarks.timing import Way, interleaved, medians, ratio
from medviz.explainers.smoothgrad import SmoothGrad

_SAMPLES, _FEW = 25, 5
_CASES = [("3-D DenseNet121", 64, 48), ("2-D ResNet18", 128, 64)]


def cases(options: Options) -> Iterator[Case]:
    """Return a case for each network."""
    for name, full, small in _CASES:
        yield Case(name, partial(_compare, name, small if options.quick else full, options), "smoothgrad")


def _compare(name: str, edge: int, options: Options) -> Iterator[Row]:
    import monai.visualize

    network = NETWORKS[name]
    model, image = network.model(options.device), network.image(edge, options.device)
    mine, theirs = own(model), own(model)

    def ways(noise: float, samples: int) -> dict[str, Way]:
        ours = SmoothGrad(noise, samples, "magnitude", seed=0)
        peer = monai.visualize.SmoothGrad(theirs, noise, samples, verbose=False)
        return {"medviz": lambda: ours(mine, image, TARGET), "MONAI": lambda: peer(image.clone(), TARGET)}

    quiet = ways(0.0, 2)  # their noise differs; without any, both are the gradient's magnitude
    found = agree({"medviz": quiet["medviz"]().values, "MONAI": quiet["MONAI"]()}, 1e-4, scaled=True)
    rounds, samples = options.rounds(5), _FEW if options.quick else _SAMPLES
    times = interleaved(ways(0.15, samples), rounds, options.device)
    said = f"agree without noise to {found:.0e} (MONAI's magnitude is scaled); {rounds} rounds"
    title = f"{name}, {network.size(edge)}, {samples} samples"
    yield Row("smoothgrad", title, ratio(times, "MONAI", "medviz"), medians(times), said)
