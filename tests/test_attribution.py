"""The result: normalising only divides, one image stays a batch, and what is saved comes back."""

from __future__ import annotations

import io
import json
import zipfile

import attrs
import numpy as np
import pytest
import torch
from helpers_results import Tiny, attribution
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as PilImage

from medviz.attribution import Attribution

floats = st.floats(-1e6, 1e6, width=32)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 4), st.integers(1, 4))
arrays = shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=floats))


def of(values: list | np.ndarray | torch.Tensor, **changes: object) -> Attribution:
    """Return an attribution of B flat images with the given values; a list is B rows."""
    tensor = torch.as_tensor(values, dtype=torch.float32)
    tensor = tensor[:, None, None] if tensor.ndim == 2 else tensor
    return Attribution(tensor, torch.zeros_like(tensor), **changes)


# normalized


def test_the_largest_becomes_one_and_zero_stays_zero():
    assert of([[0, 1, 4], [0, 5, 10]]).normalized()[:, 0, 0].tolist() == [[0, 0.25, 1], [0, 0.5, 1]]


def test_a_small_value_is_not_moved_to_zero():
    assert of([[3, 4]]).normalized()[0, 0, 0].tolist() == [0.75, 1]


def test_signed_maps_lie_between_minus_one_and_one():
    assert of([[-8, 0, 4]], signed=True).normalized()[0, 0, 0].tolist() == [-1, 0, 0.5]


def test_maps_without_a_sign_lie_between_zero_and_one():
    assert of([[-8, 0, 4]]).normalized()[0, 0, 0].tolist() == [0, 0, 0.5]


def test_a_map_of_zeros_stays_one():
    for options in ({}, {"scale": "percentile"}, {"per": "batch"}, {"vmax": 2.0}):
        assert not of([[0, 0]]).normalized(**options).any()


def test_one_divisor_for_the_whole_batch():
    assert of([[1, 2], [3, 4]]).normalized(per="batch")[:, 0, 0].tolist() == [[0.25, 0.5], [0.75, 1]]


def test_a_map_of_zeros_in_a_batch():
    assert of([[0, 0], [3, 4]]).normalized()[:, 0, 0].tolist() == [[0, 0], [0.75, 1]]


def test_channels_share_a_divisor():
    values = torch.tensor([[[[1.0, 2.0]], [[4.0, 0.0]]]])
    assert of(values).normalized().flatten().tolist() == [0.25, 0.5, 1, 0]


def test_the_percentile_counts_what_is_not_zero_and_clips():
    row = [0.0] * 900 + [float(i) for i in range(1, 100)] + [1000.0]
    normal = of([row]).normalized(scale="percentile")[0, 0, 0]
    assert normal[-1] == 1
    assert normal[-2] == 1
    assert normal[-3] == pytest.approx(98 / 99)
    signed = of([[-v for v in row]], signed=True).normalized(scale="percentile")[0, 0, 0]
    assert torch.equal(signed, -normal)


def test_the_percentile_of_a_volume_with_more_values_than_quantile_takes():
    values = torch.linspace(0, 1, 17_000_000).reshape(1, 1, 1, -1)
    top = Attribution(values, values).normalized(scale="percentile")
    assert float(top.flatten()[8_500_000]) == pytest.approx(0.5 / 0.99, abs=1e-4)


def test_vmax_is_the_magnitude_that_becomes_one():
    assert of([[0, 1, 4, 9]]).normalized(vmax=4)[0, 0, 0].tolist() == [0, 0.25, 1, 1]
    assert of([[-9, 2]], signed=True).normalized(vmax=4)[0, 0, 0].tolist() == [-1, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "min"}, "`scale` is 'max' or 'percentile'"),
        ({"per": "channel"}, "`per` 'image' or 'batch'"),
        ({"vmax": 0}, "`vmax` must be positive"),
        ({"vmax": -1.0}, "`vmax`"),
        ({"vmax": float("nan")}, "`vmax`"),
        ({"vmax": float("inf")}, "`vmax`"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        of([[1, 2]]).normalized(**options)


@settings(derandomize=True, deadline=None)
@given(arrays, st.sampled_from(["max", "percentile"]), st.sampled_from(["image", "batch"]))
def test_normalising_only_divides(array, scale, per):
    values = torch.from_numpy(array)
    result = Attribution(values, values, signed=True)
    normal = result.normalized(scale, per)
    assert normal.shape == values.shape
    assert normal.abs().max() <= 1
    assert torch.equal(torch.sign(normal)[values.abs() > 1e-3], torch.sign(values)[values.abs() > 1e-3])
    assert not normal[values == 0].any()
    for before, after in zip(values, normal, strict=True):
        order = before.flatten().argsort()
        assert (after.flatten()[order].diff() >= 0).all()
    if per == "image":
        for i in range(len(result)):
            assert torch.equal(result[i].normalized(scale, per), normal[i : i + 1])
    assert torch.equal(result.values, values)


# indexing


def test_one_image_stays_a_batch_and_keeps_what_is_its_own():
    affine = np.stack([np.diag([i, i, i, 1.0]) for i in (1, 2, 3)])
    whole = attribution(3, classes=(4, 5, 6), scores=(0.1, 0.2, 0.3), raw=torch.rand(3, 1, 2, 2, 2), affine=affine)
    one = whole[1]
    assert len(one) == 1
    assert torch.equal(one.values, whole.values[1:2])
    assert torch.equal(one.raw, whole.raw[1:2])
    assert (one.classes, one.scores, one.index) == ((5,), (0.2,), (1,))
    assert np.array_equal(one.affine, affine[1:2])
    assert one.spacing == ((2, 2, 2),)
    assert (one.target, one.provenance) == (whole.target, whole.provenance)
    assert whole[-1].index == (2,)
    assert whole[2][0].index == (2,)


def test_numpys_integers_are_integers():
    assert attribution(3)[np.int64(1)].index == (1,)


@pytest.mark.parametrize("index", [3, -4, 1.0, "0", slice(2), None, np.array([0, 0]), torch.tensor(0.5)])
def test_there_is_no_such_image(index):
    with pytest.raises(IndexError, match=r"there is no image .* among 3"):
        attribution(3)[index]


def test_iterating_gives_each_image():
    assert [one.index for one in attribution(3)] == [(0,), (1,), (2,)]


def test_small_facts():
    flat = attribution(grid=(4, 5))
    assert (flat.ndim, attribution().ndim) == (2, 3)
    assert flat.method == "gradcam"
    assert flat.spacing is None
    assert of([[1]]).method == ""


# what does not fit together


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 1, 3, 4), "do not share one grid"),
        (torch.zeros(1, 1, 2, 2, 2), "do not share one grid"),
        (torch.zeros(2, 1, 2, 2), "1 maps for 2 images"),
    ],
)
def test_values_and_image_fit(image, message):
    with pytest.raises(ValueError, match=message):
        Attribution(torch.zeros(1, 1, 2, 2), image)


@pytest.mark.parametrize("shape", [(0, 1, 1, 1), (2, 1, 1, 1), (1, 1, 1), (1, 1, 1, 1, 1)])
def test_raw_is_the_same_maps_on_another_grid(shape):
    values = torch.zeros(1, 1, 2, 2)
    assert Attribution(values, values, raw=torch.zeros(1, 1, 3, 1)).raw.shape == (1, 1, 3, 1)
    with pytest.raises(ValueError, match="not the same maps on two grids"):
        Attribution(values, values, raw=torch.zeros(shape))


def test_a_map_has_axes_of_space():
    with pytest.raises(ValueError, match=r"expected \(B, K, \*S\)"):
        Attribution(torch.zeros(1, 1), torch.zeros(1, 1))


def test_arrays_are_maps_too():
    made = Attribution(np.ones((1, 1, 2, 2), np.float16), np.zeros((1, 3, 2, 2)), raw=np.ones((1, 1, 1, 1)))
    assert (made.values.dtype, made.image.dtype, made.raw.dtype) == (torch.float32, torch.float64, torch.float64)
    assert made.values.tolist() == [[[[1, 1], [1, 1]]]]


@pytest.mark.parametrize("name", ["values", "raw"])
def test_a_map_holds_real_numbers(name):
    maps = {"values": torch.zeros(1, 1, 2, 2), "raw": torch.zeros(1, 1, 2, 2)}
    maps[name] = maps[name].to(torch.cfloat)
    with pytest.raises(TypeError, match="real numbers; got"):
        Attribution(image=torch.zeros(1, 1, 2, 2), **maps)


def test_there_is_an_affine_for_each_image():
    with pytest.raises(ValueError, match="`affine` must be"):
        attribution(2, affine=np.eye(4)[None])


# save and load


def same(a: Attribution, b: Attribution) -> bool:
    tensors = all(
        (x is None and y is None) or (x.dtype == y.dtype and torch.equal(x, y))
        for x, y in [(getattr(a, n), getattr(b, n)) for n in ("values", "image", "raw")]
    )
    plain = all(
        getattr(a, n) == getattr(b, n) for n in ("signed", "target", "classes", "scores", "index", "provenance")
    )
    affine = np.array_equal(a.affine, b.affine) if a.affine is not None else b.affine is None
    return tensors and plain and affine


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    arrays,
    st.booleans(),
    st.booleans(),
    st.text(),
    st.dictionaries(st.text(), st.lists(st.integers()) | st.none() | floats),
)
def test_what_is_saved_comes_back(tmp_path_factory, array, double, full, target, provenance):
    values = torch.from_numpy(array).to(torch.float64 if double else torch.float32)
    count = len(values)
    more = {"classes": (1,) * count, "scores": (0.1,) * count, "affine": np.stack([np.eye(4)] * count)} if full else {}
    before = Attribution(values, values, signed=True, target=target, provenance=provenance, **more)
    path = tmp_path_factory.mktemp("saved") / "a.npz"
    assert before.save(path) == path
    assert same(before, Attribution.load(path))


def test_an_array_that_does_not_belong_to_it_is_left_alone(tmp_path):
    """Such as `allow_pickle`, which NumPy before 2.1 took for the name of one."""
    before = attribution()
    path = before.save(tmp_path / "a.npz")
    with np.load(path) as file:
        np.savez(path, **file, allow_pickled=np.array(False))
    assert same(before, Attribution.load(path))


def test_bfloat16_comes_back(tmp_path):
    before = attribution(image=torch.rand(1, 1, 4, 5, 6).bfloat16())
    assert same(before, Attribution.load(before.save(tmp_path / "a.npz")))


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert attribution().save("~/a.npz") == tmp_path / "a.npz"
    assert len(Attribution.load("~/a.npz")) == 1


def test_saving_replaces_only_on_demand(tmp_path):
    attribution().save(tmp_path / "a.npz")
    with pytest.raises(FileExistsError, match="overwrite"):
        attribution(2).save(tmp_path / "a.npz")
    attribution(2).save(str(tmp_path / "a.npz"), overwrite=True)
    assert len(Attribution.load(tmp_path / "a.npz")) == 2


def test_nothing_is_pickled(tmp_path):
    attribution().save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
    with pytest.raises(TypeError, match="JSON"):
        attribution(provenance={"model": object()}).save(tmp_path / "b.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_what_is_no_saved_attribution(tmp_path):
    attribution().save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    array, other = io.BytesIO(), io.BytesIO()
    np.save(array, np.zeros(3))
    np.savez(other, values=np.zeros(3))
    for content in (b"", b"hello", whole[:-30], whole[:100], array.getvalue(), other.getvalue()):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.npz' is not a saved attribution \(\.npz\), or is damaged"):
            Attribution.load(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError):
        Attribution.load(tmp_path / "missing.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "another version of medviz: format 2, not 1"),
        ({"colour": 1}, "damaged"),
        ({"index": 5}, "damaged"),
    ],
)
def test_other_metadata(tmp_path, change, message):
    meta = {"format": 1, "signed": False, "target": "", "classes": None, "scores": None, "index": [0], "provenance": {}}
    np.savez(tmp_path / "a.npz", values=np.zeros((1, 1, 2, 2)), image=np.zeros((1, 1, 2, 2)), meta=json.dumps(meta))
    assert len(Attribution.load(tmp_path / "a.npz")) == 1
    np.savez(
        tmp_path / "a.npz",
        values=np.zeros((1, 1, 2, 2)),
        image=np.zeros((1, 1, 2, 2)),
        meta=json.dumps({**meta, **change}),
    )
    with pytest.raises(ValueError, match=message):
        Attribution.load(tmp_path / "a.npz")


def test_a_changed_byte_is_noticed(tmp_path):
    attribution(grid=(20, 20, 20), image=torch.rand(1, 1, 20, 20, 20)).save(tmp_path / "a.npz")
    content = bytearray((tmp_path / "a.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        start = archive.getinfo("image.npy").header_offset
    content[start + 500] ^= 255
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        Attribution.load(tmp_path / "a.npz")


# in a notebook


def test_it_shows_itself(monkeypatch):
    monkeypatch.setattr("medviz.rendering.default_renderer", Tiny)
    with PilImage.open(io.BytesIO(attribution(2)._repr_png_())) as picture:
        assert np.asarray(picture)[0, 0].tolist() == [10, 0, 0]


def test_it_shows_all_images_up_to_four(monkeypatch):
    monkeypatch.setattr("medviz.rendering.default_renderer", Tiny)
    shown = []
    for images in (1, 3, 9):
        with PilImage.open(io.BytesIO(attribution(images)._repr_png_())) as picture:
            shown.append(set(np.asarray(picture)[..., 0].ravel().tolist()) - {0})
    assert shown == [{10}, {10, 20, 30}, {10, 20, 30, 40}]


def test_pictures_of_other_sizes_are_shown_too():
    spacings = [np.diag([1.0, 1, 1, 1]), np.diag([1.0, 3, 1, 1])]
    several = attrs.evolve(attribution(2), affine=np.stack(spacings))
    with PilImage.open(io.BytesIO(several._repr_png_())) as picture:
        assert min(picture.size) > 100


def test_one_of_several_images_is_of_its_own_class():
    several = attrs.evolve(attribution(3), target="classes 7 2 0", classes=(7, 2, 0))
    assert [several[i].target for i in range(3)] == ["class 7", "class 2", "class 0"]
    assert several[1][0].target == "class 2"
    assert attrs.evolve(several, target="predicted")[1].target == "predicted"


def test_it_shows_itself_in_one_line() -> None:
    values = torch.rand(2, 1, 8, 8)
    text = repr(Attribution(values, values, target="class 1", provenance={"method": "gradcam"}))
    assert text == "<Attribution: gradcam, class 1, (2, 1, 8, 8)>"


@pytest.mark.parametrize("name", ["classes", "scores", "index"])
def test_something_for_each_image(name):
    with pytest.raises(ValueError, match=f"`{name}` holds 1 values for 2 images"):
        Attribution(torch.rand(2, 1, 3, 4), torch.rand(2, 1, 3, 4), **{name: (1,)})
