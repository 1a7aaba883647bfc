"""Make the drawings of docs/how-it-works.md: `python tools/drawings.py`. Sizes in them come from the running code."""

from __future__ import annotations

from pathlib import Path

import torch
from svg import arrow, box, drawing, rect, text
from torch import nn

from medviz.demo.network import LesionNet
from medviz.incremental import Incremental

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"
SCAN = (1, 1, 128, 96, 24)
PHOTO, PATCH = 64, 12


def cut_graph() -> str:
    """Draw the cut graph, with the sizes of the demo's network on the demo's scan."""
    sizes = _outputs(LesionNet().eval(), SCAN)
    below = ["stem", "layer1", "layer2", "layer3"]
    shapes = [text(20, 32, "Forward, once", "ink bold", "start")]
    shapes.append(box(20, 60, 62, 54, ("image",), "ghost"))
    x = 82.0
    for name in below:
        shapes += [arrow(f"M{x:g} 87 h14"), box(x + 16, 60, 80, 54, (name, sizes[name]), "ghost")]
        x += 96
    shapes += [arrow(f"M{x:g} 87 h14"), box(x + 16, 54, 96, 66, ("layer4", sizes["layer4"]), "kept")]
    leaf = x + 64
    x += 112
    for name in ("pool", "fc"):
        shapes += [arrow(f"M{x:g} 87 h14"), box(x + 16, 60, 58, 54, (name,))]
        x += 74
    shapes += [arrow(f"M{x:g} 87 h14"), box(x + 16, 60, 66, 54, ("score",))]
    score = x + 49
    shapes += [
        text(258, 145, "no graph: each output is freed as soon as the next layer has been run", "faint small"),
        text(leaf, 145, "kept, as a leaf", "hot small bold"),
        text((leaf + score) / 2 + 40, 145, "graph recorded", "faint small"),
        text(20, 192, "Backward, once for each target", "ink bold", "start"),
        arrow(f"M{score:g} 175 V215 H{leaf + 4:g} V165", "heat"),
        text((leaf + score) / 2, 236, "gradient of the score at layer4", "hot small bold"),
        arrow(f"M{leaf - 10:g} 215 H51", "off"),
        text(258, 236, "not computed, nothing kept for it", "faint small"),
    ]
    return drawing(score + 53, 256, "The graph is cut at the layer that is explained.", shapes)


def shared_pass() -> str:
    """Draw how three methods and two targets share one forward pass."""
    methods, targets = ("gradcam", "gradcampp", "layercam"), ("class 0", "class 1")
    shapes = [
        box(20, 95, 88, 60, ("images", "(B, C, *S)")),
        arrow("M108 125 h20"),
        box(130, 85, 130, 80, ("forward pass", "one, for everything"), "kept"),
        arrow("M260 110 C284 110 280 70 302 70"),
        arrow("M260 140 C284 140 280 186 302 186"),
        box(304, 40, 136, 60, ("output", "targets fixed on it")),
        box(304, 156, 136, 60, ("activation", "of the layer")),
        arrow("M372 40 V22 H702 V37"),
        arrow("M440 70 h31"),
        arrow("M440 186 h20"),
        rect(464, 114, 316, 136, "ghost", 7),
    ]
    for j, target in enumerate(targets):
        x = 474 + 156 * j
        shapes += [box(x, 40, 140, 60, ("backward pass", target), "kept"), arrow(f"M{x + 70} 100 v21", "heat")]
        shapes += [box(x, 124 + 41 * i, 140, 34, (method,)) for i, method in enumerate(methods)]
    shapes.append(text(240, 240, "1 forward pass + 2 short backward passes = 6 maps", "ink bold"))
    return drawing(800, 268, "Three methods and two targets share one forward pass.", shapes)


def incremental() -> str:
    """Draw what a window can change, layer after layer, with the sizes that the engine itself works with."""
    layers, share = _boxes()
    shapes, x, base = [], 24.0, 196
    for name, side, start, size in layers:
        scale = 1.9 if side == PHOTO else 2.9 if side == PHOTO // 2 else 4.4
        edge, low, length = side * scale, start * scale, size * scale
        top = base - edge
        shapes += [
            rect(x, top, edge, edge, "box", 2),
            rect(x + low, top + low, length, length, "kept", 1),
            text(x + edge / 2, base + 20, name, "ink bold"),
            text(x + edge / 2, base + 37, f"{side}², box {size}²", "faint small"),
            text(x + edge / 2, base + 53, f"{size**2 / side**2:.0%}", "hot small bold"),
            arrow(f"M{x + edge + 4:g} {base - 40} h16"),
        ]
        x += edge + 24
    shapes += [
        box(x, base - 76, 146, 72, ("mean", "the clean one, plus", "what the box changed")),
        arrow(f"M{x + 146:g} {base - 40} h14"),
        box(x + 162, base - 66, 92, 52, ("linear", "whole, small")),
        rect(24, 24, 12, 12, "box", 2),
        text(44, 34, "clean map, made once", "ink", "start"),
        rect(204, 24, 12, 12, "kept", 1),
        text(224, 34, "what the window can change: run again for each window", "ink", "start"),
        text(x + 254, 34, f"{share:.0%} of the work", "hot bold", "end"),
    ]
    return drawing(x + 274, 268, "Only what a window can change is run again.", shapes)


def _outputs(network: nn.Module, shape: tuple[int, ...]) -> dict[str, str]:
    """Return the size in memory of what each named child of a network returns."""
    sizes: dict[str, str] = {}
    for name, child in network.named_children():
        child.register_forward_hook(
            lambda module, args, output, name=name: sizes.update({name: f"{output.numel() * 4 / 1e6:.2g} MB"})
        )
    with torch.no_grad():
        network(torch.ones(shape))
    return sizes


def _boxes() -> tuple[list[tuple[str, int, int, int]], float]:
    """Return name, side of the map, first voxel and side of the box of each layer, and the share of the work.

    The boxes are seen: they hold every value that another patch has changed. The share is what the engine says.
    """
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(i, o, 3, padding=1) for i, o in ((1, 8), (8, 16), (16, 32))]
    first, second, third = convolutions
    layers = (first, nn.AvgPool2d(2), second, nn.AvgPool2d(2), third)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2)).eval()
    start = (PHOTO - PATCH) // 2
    clean, patch = torch.zeros(1, 1, PHOTO, PHOTO), torch.ones(1, 1, PATCH, PATCH)
    changed = clean.clone()
    changed[..., start : start + PATCH, start : start + PATCH] = patch
    with torch.no_grad():
        engine = Incremental(model, clean)
        engine.run(patch, torch.tensor([[start, start]]))
        rows = [_box_of("image", clean, changed)]
        for layer in layers:
            clean, changed = layer(clean), layer(changed)
            rows.append(_box_of("conv" if layer in convolutions else "pool", clean, changed))
    return rows, engine.share


def _box_of(name: str, clean: torch.Tensor, changed: torch.Tensor) -> tuple[str, int, int, int]:
    (where,) = ((changed - clean).abs().amax((0, 1, 2)) > 1e-6).nonzero(as_tuple=True)
    return name, clean.shape[-1], int(where[0]), int(where[-1] - where[0]) + 1


DRAWINGS = {"cut-graph.svg": cut_graph, "shared-pass.svg": shared_pass, "incremental.svg": incremental}

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
