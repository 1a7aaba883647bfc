"""How the command line is run, and a folder to run it in: a network in a module, its weights, and a scan."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import click
import nibabel as nib
import numpy as np
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from medviz.cli import main

MODULE = """
import copy

import attrs
import medviz
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=3, width=4):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv3d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool3d(2),
            nn.Conv3d(width, width, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3, 4)))


class Fails(Net):
    def forward(self, x):
        raise RuntimeError("the network\\nfell over")


class Flat(Net):
    def forward(self, x):
        return len(3)


class Stops(Net):
    def forward(self, x):
        raise KeyboardInterrupt


READY = Net()


def number():
    return 3


def leave():
    raise SystemExit(3)


def halve(image):
    return attrs.evolve(image, data=image.data / 2)


def pad_the_end(image):
    return attrs.evolve(image, data=torch.nn.functional.pad(image.data * 2 - 1, (0, 3, 0, 0, 0, 5)))


def cut_the_front(image):
    return attrs.evolve(image, data=image.data[:, 1:])


def cut_a_copy(image):
    made = copy.deepcopy(image)
    return attrs.evolve(made, data=made.data[:, 1:])


def mirror_in_place(image):
    image.data.copy_(image.data.flip(1).clone())
    return image


def leave_it(image):
    raise SystemExit(4)


def shrink(image):
    return attrs.evolve(image, data=image.data[:, ::2])


def shrink_and_say_so(image):
    return medviz.Image(image.data[:, ::2], image.affine @ np.diag([2.0, 1, 1, 1]))


def cut_and_move_in_place(image):
    image.affine[:, 3] += image.affine[:, 1]
    return attrs.evolve(image, data=image.data[:, :, 1:])


def lose(image):
    return image.data


def first_two(output):
    return output[:, 0] + output[:, 1]
"""


def invoke(*arguments: str, of: click.Command = main) -> Result:
    """Run a command; before click 8.2 it has to be asked for a stderr that is apart from stdout."""
    apart: Any = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    return CliRunner(**apart).invoke(of, arguments)


def make_folder(folder: Path) -> Path:
    """Write `nets_for_cli.py`, weights in several forms and `scan.nii.gz`."""
    (folder / "nets_for_cli.py").write_text(MODULE)
    scope: dict[str, object] = {}
    exec(compile(MODULE, "nets_for_cli.py", "exec"), scope)
    torch.manual_seed(0)
    model = scope["Net"]()  # type: ignore[operator]
    state = model.state_dict()
    save_file(state, folder / "good.safetensors")
    torch.save(state, folder / "good.pt")
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, folder / "nested.pt"
    )
    for key in ("model_state_dict", "model"):
        torch.save({key: state, "epoch": 3}, folder / f"{key}.pt")
    torch.save({**state, "head.extra": torch.zeros(1)}, folder / "unexpected.pt")
    save_file({k: v for k, v in state.items() if k != "head.bias"}, folder / "missing.safetensors")
    save_file({**state, "head.bias": torch.zeros(7)}, folder / "shape.safetensors")
    torch.save({"epoch": 3}, folder / "nothing.pt")
    torch.save(torch.nn.Linear(1, 1), folder / "pickle.pt")
    (folder / "noise.pt").write_bytes(b"no weights at all")
    (folder / "noise.safetensors").write_bytes(b"no weights at all")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and still in use
        torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), folder / "scripted.pt")
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    scan = np.random.default_rng(0).normal(size=(12, 14, 10)).astype(np.float32)
    nib.save(nib.Nifti1Image(scan, affine), folder / "scan.nii.gz")
    return folder
