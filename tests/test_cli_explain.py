"""`medviz explain` and `medviz layers`, on a small network, its weights and a scan."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import Result
from helpers_cli import invoke, make_folder

import medviz
from medviz.cli.layers import parse_size
from medviz.cli.loading import load_weights
from medviz.cli.placing import stand_alike
from medviz.cli.targets import parse

MODEL = ("--model", "nets_for_cli:Net", "--weights", "good.safetensors")
SCAN = ("--image", "scan.nii.gz", "--no-progress", "--device", "cpu")
MAP = ("--sink", "nifti:path=map.nii.gz")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("cli"))


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with links to what was made, as the current one; afterwards nothing is left in `sys`."""
    for file in made.iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "nets_for_cli", raising=False)
    return tmp_path


def explain(*arguments: str) -> Result:
    return invoke("explain", *SCAN, *arguments)


def refused(result: Result, message: str) -> None:
    """Assert that the command failed with exactly one line, that holds `message`, and wrote nothing to stdout."""
    lines = result.stderr.splitlines()
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert [line for line in lines if line.startswith("medviz: error: ")] == lines[-1:]
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_the_command_of_the_readme_writes_everything(folder: Path) -> None:
    done = explain(
        *MODEL,
        *("--explainer", "gradcampp:layer=features.3", "--target", "1", "--renderer", "planes"),
        *("--sink", "png:path=out.png", "--sink", "gif:path=out.gif", "--sink", "tensorboard:path=runs/"),
        *("--sink", "nifti:path=map.nii.gz"),
    )
    assert done.exit_code == 0, done.stderr
    assert done.stdout.split() == ["out.png", "out.gif", "runs", "map.nii.gz"]
    assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "out.gif").read_bytes().startswith(b"GIF89a")
    assert list((folder / "runs").iterdir())
    scan, written = nib.load("scan.nii.gz"), nib.load("map.nii.gz")
    assert written.shape == scan.shape
    assert np.allclose(written.affine, scan.affine)


def test_the_map_is_what_the_library_returns(folder: Path) -> None:
    done = explain(*MODEL, "--explainer", "gradcam:layer=features.3", "--target", "2", *MAP)
    assert done.exit_code == 0, done.stderr
    sys.path.insert(0, str(folder))
    from nets_for_cli import Net  # type: ignore[import-not-found]

    model = Net()
    model.load_state_dict(torch.load("good.pt", weights_only=True))
    expected = medviz.get_explainer("gradcam", layer="features.3")(model, medviz.read("scan.nii.gz"), 2)
    assert np.allclose(nib.load("map.nii.gz").get_fdata(), expected.values[0, 0].numpy(), atol=1e-6)


def test_explainers_and_targets_share_one_call_and_name_their_files(folder: Path) -> None:
    done = explain(
        *MODEL,
        *("--explainer", "gradcam", "--explainer", "layercam:layer=features.0"),
        *("--target", "0", "--target", "predicted", "--tag", "t", "--step", "4"),
        *("--sink", "npz:path=maps/{explainer}_{target}_{tag}_{step}_{index}.npz"),
    )
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in (folder / "maps").iterdir()) == [
        f"{explainer}_{target}_t_4_0.npz"
        for explainer in ("gradcam", "layercam-layer=features.0")
        for target in ("class-0", "predicted")
    ]
    loaded = medviz.Attribution.load(next((folder / "maps").glob("layercam*class-0*")))
    assert loaded.target == "class 0"


def test_the_automatic_layer_is_named_on_stderr(folder: Path) -> None:
    done = explain(*MODEL, "--explainer", "gradcam", *MAP)
    assert done.exit_code == 0, done.stderr
    assert "'features'\n" in done.stderr


def test_several_images_make_a_batch(folder: Path) -> None:
    done = explain(*MODEL, "--image", "scan.nii.gz", "--explainer", "gradcam", "--sink", "npz:path={index}.npz")
    assert done.stdout.split() == ["0.npz", "1.npz"]


def test_preprocess_model_arguments_and_target_function(folder: Path) -> None:
    done = explain(
        *("--model", "nets_for_cli:Net", "--model-arg", "classes=5", "--model-arg", "width=2"),
        *("--preprocess", "nets_for_cli:halve", "--target", "nets_for_cli:first_two"),
        *("--explainer", "gradcam", "--sink", "npz:path=a.npz"),
    )
    assert done.exit_code == 0, done.stderr
    result = medviz.Attribution.load("a.npz")
    assert result.target == "first_two"
    assert torch.allclose(result.image[0] * 2, medviz.read("scan.nii.gz").data)


@pytest.mark.parametrize("weights", ["good.safetensors", "good.pt", "nested.pt", "model_state_dict.pt", "model.pt"])
def test_weights_load_from_every_form(folder: Path, weights: str) -> None:
    done = explain(
        *("--model", "nets_for_cli:Net", "--weights", weights, "--explainer", "gradcam", "--target", "0", *MAP)
    )
    assert done.exit_code == 0, done.stderr
    first = nib.load("map.nii.gz").get_fdata()
    done = explain(*MODEL, "--explainer", "gradcam", "--target", "0", "--sink", "nifti:path=b.nii.gz")
    assert done.exit_code == 0, done.stderr
    assert np.array_equal(first, nib.load("b.nii.gz").get_fdata())


def test_weights_of_a_model_whose_own_keys_begin_with_module(tmp_path: Path) -> None:
    model, path = torch.nn.ModuleDict({"module": torch.nn.Linear(2, 1)}), tmp_path / "own.pt"
    for wrapped in (model, torch.nn.DataParallel(model)):
        torch.save({key: value + 1 for key, value in wrapped.state_dict().items()}, path)
        fresh = copy.deepcopy(model)
        load_weights(fresh, path)
        assert torch.equal(fresh["module"].bias, model["module"].bias + 1)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("unexpected.pt", "do not fit the model: 1 unexpected: head.extra"),
        ("missing.safetensors", "do not fit the model: 1 missing: head.bias"),
        ("shape.safetensors", "1 of another shape: head.bias (7,) instead of (3,)"),
        ("nothing.pt", "holds no state dict"),
        ("pickle.pt", "is refused: it is not a plain torch state dict"),
        ("scripted.pt", "A TorchScript file is not one"),
        ("noise.pt", "'noise.pt' is refused"),
        ("noise.safetensors", "is not a safetensors file"),
        ("absent.pt", "there is no file 'absent.pt'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder: Path, weights: str, message: str) -> None:
    refused(explain("--model", "nets_for_cli:Net", "--weights", weights, "--explainer", "gradcam", *MAP), message)
    assert not (folder / "map.nii.gz").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nets_for_cli", "is not of the form package.module:name"),
        ("nets_for_clu:Net", "there is no module 'nets_for_clu' here"),
        ("nets_for_cli:Nett", "'nets_for_cli' has no 'Nett'; did you mean 'Net'?"),
        ("nets_for_cli:number", "returned a int; expected a torch.nn.Module"),
        ("nets_for_cli:__name__", "is a str; name a function that makes a model"),
        ("nets_for_cli:Fails", "RuntimeError: the network fell over (--debug shows where)"),
        ("nets_for_cli:leave", "ended the program by sys.exit(3)"),
        ("nets_for_cli:Flat", "(--debug shows where)"),
    ],
)
def test_models_that_do_not_work_are_refused(folder: Path, model: str, message: str) -> None:
    refused(explain("--model", model, "--explainer", "gradcam", *MAP), message)


def test_a_ready_made_module_is_taken_as_it_is(folder: Path) -> None:
    other = ("--sink", "nifti:path=other.nii.gz")
    assert explain("--model", "nets_for_cli:READY", "--explainer", "gradcam", *other).exit_code == 0
    refused(
        explain("--model", "nets_for_cli:READY", "--model-arg", "width=2", "--explainer", "gradcam", *MAP),
        "takes no --model-arg",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--explainer", "gradcamp", *MAP), "did you mean 'gradcampp' or 'gradcam'"),
        (("--explainer", "gradcam:layr=x", *MAP), "has no parameter 'layr'; did you mean 'layer'"),
        (("--explainer", "gradcam:layer=features.9", *MAP), "features.9"),
        (("--explainer", "gradcam", "--sink", "nifti"), "needs `path`: nifti:path=…"),
        (("--explainer", "gradcam", "--sink", "png:path={what}.png"), "has the placeholder 'what'"),
        (("--explainer", "gradcam", "--target", "7", *MAP), "`target` 7 is out of range"),
        (("--explainer", "gradcam", "--target", "seven", *MAP), "`--target` 'seven' cannot be read"),
        (("--explainer", "gradcam", "--target", "nets_for_cli:READY2", *MAP), "has no 'READY2'"),
        (("--explainer", "gradcam", "--target", "segmentation:1", *MAP), "SegmentationTarget needs an output"),
        (("--explainer", "gradcam", "--model-arg", "width", *MAP), "`--model-arg` 'width' is not key=value"),
        (("--explainer", "gradcam", "--model-arg", "width=3", "--model-arg", "width=4", *MAP), "key is given twice"),
        (("--explainer", "gradcam", "--model-arg", "depth=3", *MAP), "depth"),
        (("--explainer", "gradcam", "--preprocess", "nets_for_cli:lose", *MAP), "returned a Tensor; expected a medviz"),
        (("--explainer", "gradcam", "--preprocess", "nets_for_cli:shrink", *MAP), "kept the affine, which is of other"),
        (("--explainer", "gradcam", "--renderer", "planes", *MAP), "no sink takes its pictures"),
        (("--explainer", "gradcam", "--wrap", "stopwatch", *MAP), "no plugin 'stopwatch' among the wrappers"),
        (("--explainer", "gradcam", "--reader", "nift", *MAP), "did you mean 'nifti'"),
        (("--explainer", "gradcam", "--batch-size", "0", *MAP), "neither 'auto' nor a positive number"),
        (("--explainer", "gradcam", "--output", "logits", *MAP), "logits"),
        (("--explainer", "gradcam"), "Missing option '--sink'"),
    ],
)
def test_wrong_input_is_refused_in_one_line(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    refused(explain("--model", "nets_for_cli:Net", *arguments), message)


def test_a_renderer_that_fails_costs_the_other_sinks_nothing(folder: Path) -> None:
    """The network may have run for an hour."""
    broken = ("--sink", "png:path=a.png,renderer=planes(voxel=[99,0,0])")
    done = explain(*MODEL, "--explainer", "vanillagrad", *broken, *MAP)
    assert done.exit_code == 2
    assert "voxel" in done.stderr
    assert (folder / "map.nii.gz").exists()
    assert not (folder / "a.png").exists()
    assert "map.nii.gz" in done.stdout


def smooth() -> torch.Tensor:
    axes = torch.meshgrid(*[torch.linspace(0, 6, n) for n in (20, 24, 18)], indexing="ij")
    noise = torch.rand(20, 24, 18, generator=torch.Generator().manual_seed(0))
    return (axes[0].sin() + (axes[1] * 0.7).cos() + axes[2] * 0.3 + 0.1 * noise)[None] * 300


@pytest.mark.parametrize(
    ("change", "alike"),
    [
        (lambda x: x[:, :18, :, :15], True),
        (lambda x: F.pad(x, (0, 5, 0, 0, 0, 3)), True),
        (lambda x: F.pad(((x - 100) / 200).clamp(0, 1), (0, 3)), True),
        (lambda x: F.pad(-x, (0, 3)), True),
        (lambda x: (x - x.mean()) / x.std(), True),
        (lambda x: -x.clamp(-100, 200), True),
        (lambda x: F.avg_pool3d(x[None], 3, 1, 1)[0], True),
        (lambda x: x * 0, True),
        (lambda x: x / 0, True),  # another check refuses it
        (lambda x: torch.cat([x.roll(1, 1), x, x.roll(-1, 1)]), True),
        (lambda x: F.pad(torch.cat([x.flip(1), x * 0, x]), (0, 3)), True),
        (lambda x: F.pad(torch.stack([x[0] > 10_000, x[0] <= 100, x[0] > 100]).float(), (0, 3)), True),
        (lambda x: F.pad(F.avg_pool3d(x[None], 3, 1, 1)[0], (0, 3)), True),
        (lambda x: x[:, 1:], False),
        (lambda x: x[:, 1:, 1:, 1:], False),
        (lambda x: x[:, :, 3:], False),
        (lambda x: x[:, 2:-1, 3:, 1:], False),
        (lambda x: F.pad(x, (1, 9, 1, 9, 1, 9)), False),
        (lambda x: x.roll(1, 2), False),
        (lambda x: x.roll((5, -6), (1, 2)), False),
        (lambda x: F.pad(x[:, 4:, 3:, 5:], (0, 5, 0, 3, 0, 4)), False),
        (lambda x: F.pad(x, (0, 0, 0, 0, 7, 0))[:, :20], False),
        (lambda x: x.flip(1), False),
        (lambda x: x.flip(2, 3).clamp(max=200), False),
        (lambda x: x.flip(1)[:, :16], False),
        (lambda x: x.transpose(1, 3), False),
        (lambda x: F.interpolate(x[None], scale_factor=1.5)[0][:, :22], False),
        (lambda x: x[:, 2:-2, 2:-2, 2:-2], False),
        (lambda x: F.pad(x, (2, 2, 2, 2)), False),
        (lambda x: F.interpolate(x[None], (18, 22, 16), mode="trilinear")[0], False),
        (lambda x: F.interpolate(x[None], (40, 48, 36))[0], False),
        (lambda x: torch.zeros(1, 9, 9, 9), False),
        (lambda x: x[:, :, :, 3], False),
    ],
)
def test_only_what_was_cut_or_padded_at_its_end_stands_alike(change: Any, alike: bool) -> None:
    assert stand_alike(smooth(), change(smooth())) is alike


FILTERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "noise": lambda x: x + 0.5 * x.std() * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)),
    "noise and a bias field": lambda x: FILTERS["noise"](FILTERS["bias field"](x)),
    "noise and blur": lambda x: FILTERS["blur"](FILTERS["noise"](FILTERS["noise"](x))),
    "bias field": lambda x: x * torch.linspace(0.8, 1.3, x.shape[2])[:, None],
    "blur": lambda x: F.avg_pool3d(x[None], 5, 1, 2)[0],
    "sharper": lambda x: 2 * x - F.avg_pool3d(x[None], 5, 1, 2)[0],
    "without the outside": lambda x: x * (F.avg_pool3d(x[None], 5, 1, 2)[0] > x.mean()),
    "half a voxel": lambda x: F.avg_pool3d(F.pad(x, (0, 1, 0, 1, 0, 1))[None], 2, 1)[0],
}


@pytest.mark.parametrize("name", FILTERS)
def test_what_was_filtered_too_is_seen_to_have_moved(name: str) -> None:
    scan, changed = smooth(), FILTERS[name]
    assert stand_alike(scan, changed(scan))
    for moved in (scan.flip(1), scan.flip(2), scan.flip(3), scan.flip(1, 2), scan.roll(4, 2)):
        assert not stand_alike(scan, changed(moved))


def test_a_cube_that_is_turned_has_moved() -> None:
    cube = torch.rand(1, 18, 18, 18, generator=torch.Generator().manual_seed(0))
    for turned in (cube.transpose(1, 3), cube.transpose(1, 2), cube.rot90(1, (2, 3))):
        assert not stand_alike(cube, turned)


@pytest.mark.parametrize("ndim", [2, 3])
def test_few_bright_voxels_and_empty_images_do_not_mislead(ndim: int) -> None:
    scan = torch.rand(2, *(40,) * ndim, generator=torch.Generator().manual_seed(0))
    scan[1].view(-1)[123] = 1e6
    for image in (scan, scan[1:], scan * 0):
        padded = F.pad(image, (0, 3) * ndim)
        assert stand_alike(image, padded)
        assert stand_alike(image, 2 * padded)
        assert stand_alike(image, padded[-1:])
    assert not stand_alike(scan, F.pad(scan, (3, 0) * ndim))
    assert not stand_alike(scan, scan.flip(1))
    assert not stand_alike(scan, scan[:1, :20] * 0)


def test_a_large_scan_is_not_copied() -> None:
    """One large axis would take thousands of steps, were all voxels looked at."""
    scan = torch.rand(1, 4, 5, 400_000, generator=torch.Generator().manual_seed(0))
    assert stand_alike(scan, 2 * scan[..., :-50])
    assert not stand_alike(scan, scan[..., 7:])


@pytest.mark.parametrize("way", ["cut_the_front", "cut_a_copy", "mirror_in_place"])
def test_a_preprocessing_that_moves_the_image_is_refused_unless_it_is_trusted(folder: Path, way: str) -> None:
    arguments = (*MODEL, "--preprocess", f"nets_for_cli:{way}", "--explainer", "vanillagrad", *MAP)
    refused(explain(*arguments), "--trust-affine says that it is right")
    done = explain(*arguments, "--trust-affine")
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize("option", ["--model", "--preprocess"])
def test_code_that_ends_the_program_is_named(folder: Path, option: str) -> None:
    (folder / "script_for_cli.py").write_text("import sys\n\nsys.exit(3)\n")
    arguments = {"--model": "nets_for_cli:Net", option: "script_for_cli:main"}
    done = explain(*itertools.chain(*arguments.items()), "--explainer", "vanillagrad", *MAP)
    refused(done, f"`{option}` 'script_for_cli:main' ended the program by sys.exit(3)")
    refused(explain(*MODEL, "--preprocess", "nets_for_cli:leave_it", "--explainer", "vanillagrad", *MAP), "sys.exit(4)")


def test_a_preprocessing_that_pads_the_end_keeps_the_affine(folder: Path) -> None:
    done = explain(*MODEL, "--preprocess", "nets_for_cli:pad_the_end", "--explainer", "vanillagrad", *MAP)
    assert done.exit_code == 0, done.stderr
    scan, written = nib.load("scan.nii.gz"), nib.load("map.nii.gz")
    assert np.allclose(written.affine, scan.affine)
    assert written.shape == (scan.shape[0] + 5, scan.shape[1], scan.shape[2] + 3)


def test_a_preprocessing_that_changes_the_size_gives_the_affine_too(folder: Path) -> None:
    done = explain(*MODEL, "--preprocess", "nets_for_cli:shrink_and_say_so", "--explainer", "vanillagrad", *MAP)
    assert done.exit_code == 0, done.stderr
    scan, written = nib.load("scan.nii.gz"), nib.load("map.nii.gz")
    assert np.allclose(written.affine, scan.affine @ np.diag([2, 1, 1, 1]))


def test_a_preprocessing_may_change_the_affine_in_place(folder: Path) -> None:
    done = explain(*MODEL, "--preprocess", "nets_for_cli:cut_and_move_in_place", "--explainer", "vanillagrad", *MAP)
    assert done.exit_code == 0, done.stderr
    scan, written = nib.load("scan.nii.gz"), nib.load("map.nii.gz")
    assert np.allclose(written.affine[:, 3], scan.affine @ [0, 1, 0, 1])


def test_the_reader_that_is_named_reads_for_a_preprocessing_too(folder: Path) -> None:
    scan = nib.load("scan.nii.gz")
    data = scan.get_fdata()
    data[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(data, scan.affine), "hole.nii.gz")
    read = ("--image", "hole.nii.gz", "--preprocess", "nets_for_cli:halve", "--reader", "nifti:nan=0")
    done = invoke("explain", *MODEL, *read, "--explainer", "vanillagrad", *MAP)
    assert done.exit_code == 0, done.stderr


def test_an_image_that_is_not_there_is_refused(folder: Path) -> None:
    result = invoke("explain", "--model", "nets_for_cli:Net", "--image", "no.nii.gz", "--explainer", "gradcam", *MAP)
    refused(result, "there is no file 'no.nii.gz'")


@pytest.mark.parametrize(
    ("sinks", "message"),
    [
        (("--sink", "npz:path={explainer}.npz"), "two results would be written to 'gradcam.npz'"),
        (("--sink", "npz:path={target}.npz", "--sink", "npz:path=./{target}.npz"), "two results would be written"),
        (("--sink", "npz:path=there.npz,overwrite=false"), "two results"),
        (("--sink", "npz:path=there-{target}.npz"), "'there-class-0.npz' exists already"),
    ],
)
def test_collisions_are_refused_before_the_network_runs(folder: Path, sinks: tuple[str, ...], message: str) -> None:
    (folder / "there-class-0.npz").write_text("mine")
    result = explain(
        "--model", "nets_for_cli:Fails", "--explainer", "gradcam", "--target", "0", "--target", "1", *sinks
    )
    refused(result, message)
    assert (folder / "there-class-0.npz").read_text() == "mine"


@pytest.mark.parametrize(
    ("sink", "message"),
    [
        ("npz:path=a.npz,overwrite=true", "two results"),
        ("npz:path=there-{index}.npz", "'there-1.npz' exists already"),
        ("npz:path=there-{index}{step}.npz", "'there-17.npz' exists already"),
    ],
)
def test_every_image_of_several_has_a_file_of_its_own(folder: Path, sink: str, message: str) -> None:
    there = [folder / "there-1.npz", folder / "there-17.npz"]
    for path in there:
        path.write_text("mine")
    more = ("--image", "scan.nii.gz", "--model", "nets_for_cli:Fails", "--explainer", "gradcam", "--step", "7")
    refused(explain(*more, "--sink", sink), message)
    assert [path.read_text() for path in there] == ["mine", "mine"]


@pytest.mark.parametrize("path", ["nifti:path=scan.nii.gz", "nifti:path=./{explainer}/../link.nii.gz"])
def test_no_map_replaces_what_is_read(folder: Path, path: str) -> None:
    (folder / "link.nii.gz").symlink_to("scan.nii.gz")
    before = Path("scan.nii.gz").read_bytes()
    (folder / "gradcam").mkdir()
    refused(explain(*MODEL, "--explainer", "gradcam", "--sink", f"{path},overwrite=true"), "is read, and would be")
    assert Path("scan.nii.gz").read_bytes() == before


def test_no_map_replaces_the_weights(folder: Path) -> None:
    weights = folder / "weights.npz"
    weights.write_bytes(Path("good.pt").read_bytes())
    model = ("--model", "nets_for_cli:Net", "--weights", "weights.npz", "--explainer", "gradcam")
    refused(explain(*model, "--sink", "npz:path=weights.npz,overwrite=true"), "is read, and would be")
    assert weights.read_bytes() == Path("good.pt").read_bytes()


def test_overwriting_is_asked_for_at_the_sink(folder: Path) -> None:
    (folder / "map.nii.gz").write_text("old")
    done = explain(*MODEL, "--explainer", "gradcam", "--sink", "nifti:path=map.nii.gz,overwrite=true")
    assert done.exit_code == 0, done.stderr
    assert nib.load("map.nii.gz").shape == (12, 14, 10)


def test_several_renderers_need_a_name_in_the_path(folder: Path) -> None:
    two = ("--explainer", "gradcam", "--renderer", "planes", "--renderer", "planes:contour=true,dpi=40")
    refused(
        explain("--model", "nets_for_cli:Fails", *two, "--sink", "png:path=a.png"), "write {renderer} into its path"
    )
    own = ("--sink", "png:path=own.png,renderer=planes(contour=true,dpi=40)")
    done = explain(*MODEL, *two, "--sink", "png:path={renderer}.png", *own, *MAP)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.split() == ["planes.png", "planes-2.png", "own.png", "map.nii.gz"]
    assert (folder / "planes.png").read_bytes() != (folder / "own.png").read_bytes()
    assert (folder / "planes-2.png").read_bytes() == (folder / "own.png").read_bytes()


def test_one_tag_does_not_hide_several_results_in_tensorboard(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = explain(
        *MODEL,
        *("--explainer", "gradcam", "--target", "0", "--target", "1", "--tag", "t"),
        "--sink",
        "tensorboard:path=runs",
    )
    assert done.exit_code == 0, done.stderr
    found: set[str] = set()
    for file in (folder / "runs").iterdir():
        log = EventAccumulator(str(file))
        log.Reload()
        found |= set(log.Tags()["images"])
    assert len(found) == 2


def test_debug_shows_the_traceback(folder: Path) -> None:
    result = explain("--debug", "--model", "nets_for_cli:Fails", "--explainer", "gradcam", *MAP)
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("medviz: error: RuntimeError")


def test_an_interrupt_ends_with_its_own_status(folder: Path) -> None:
    result = explain("--model", "nets_for_cli:Stops", "--explainer", "gradcam", *MAP)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


@pytest.mark.parametrize(("device", "reason"), [("cuda:97", "cannot be used here"), ("gpu", "none that PyTorch knows")])
def test_a_device_that_is_not_there_is_refused(folder: Path, device: str, reason: str) -> None:
    refused(explain("--model", "nets_for_cli:Net", "--device", device, "--explainer", "gradcam", *MAP), reason)


def test_layers_are_listed_with_shapes_and_the_choice_is_marked(folder: Path) -> None:
    done = invoke("layers", *MODEL, "--input-size", "1x1x8x8x8", "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.split() == ["*", "1x4x4x4x4", "Sequential", "features"] for line in lines)
    assert sum(line.startswith("*") for line in lines) == 1
    assert any(line.split() == ["1x3", "Linear", "head"] for line in lines)


@pytest.mark.parametrize("text", ["", "8", "1x1", "1x1x8", "1x1x0x8", "1x1x-1x8", "axbxcxd", "1x1x1x1x1x1"])
def test_input_sizes_that_cannot_be_read(folder: Path, text: str) -> None:
    refused(invoke("layers", *MODEL, "--input-size", text), f"`--input-size` {text!r} cannot be read")


def test_input_sizes() -> None:
    assert parse_size("1x3x224x224") == parse_size("1,3,224, 224") == (1, 3, 224, 224)
    assert parse_size("2X1X9x8x7") == (2, 1, 9, 8, 7)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("predicted", "predicted"),
        ("3", "class 3"),
        ("positive", "positive"),
        ("negative", "negative"),
        ("value:2", "value 2"),
        ("segmentation:1", "segmentation 1"),
        ("segmentation:1:predicted", "segmentation 1 predicted"),
        ("segmentation:1:positive", "segmentation 1 positive"),
        ("operator:itemgetter", "itemgetter"),
    ],
)
def test_targets_are_read(text: str, label: str) -> None:
    from medviz.targets import as_target

    assert as_target(parse(text)).label == label


@pytest.mark.parametrize(
    "text",
    ["", "-1", "1.5", "²", "value", "value:x", "segmentation", "segmentation:1:all", "positive:1", "a b:c", ":x"],
)
def test_targets_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be read; write predicted"):
        parse(text)
