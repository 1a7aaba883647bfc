"""Make the pictures of the pages "Your model in five minutes" and "Choosing a method", from the demo's scan.

python tools/docs_pictures.py
"""

from pathlib import Path

import medviz
from medviz.demo.network import CLASSES, load_network
from medviz.demo.run import SEED
from medviz.demo.scan import load_scan, plant

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
EXPLAINERS = {
    "reading-unsigned.png": "layercam",
    "reading-signed.png": "occlusion:mask_size=12,overlap=0.5,occluder=blur",
    "choosing-black-holes.png": "occlusion:mask_size=12,overlap=0.5,occluder=gaussian",
}
WINDOW = (0.0, 950.0)  # that of the demo's pictures


def main() -> None:
    """Explain the demo's answer by each method, and draw all maps through the same voxel."""
    planted, lesion = plant(load_scan(0), SEED)
    network = load_network()
    draw = medviz.get_renderer("medviz-xai/planes", voxel=lesion.center, window=WINDOW, dpi=90)
    for name, explainer in EXPLAINERS.items():
        attribution = medviz.explain(network, planted, f"medviz-xai/{explainer}", CLASSES.index("lesion"))
        medviz.get_sink("medviz-xai/png", path=IMAGES / name, overwrite=True)(draw(attribution))


if __name__ == "__main__":
    main()
