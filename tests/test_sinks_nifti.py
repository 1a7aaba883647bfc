"""NIfTI maps: raw values, the image's grid, the image's place in the world."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers_results import attribution
from hypothesis import given, settings
from hypothesis import strategies as st

from medviz.readers.nifti import Nifti as NiftiReader
from medviz.sinks.nifti import Nifti

OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, -0.2, 0.5) @ np.diag([0.7, 2.0, 3.5]), [-90, 40.5, 12])
FLIPPED = np.array([[-2.0, 0, 0, 90], [0, 0, 3, -12], [0, -1.5, 0, 7], [0, 0, 0, 1]])
SHEARED = np.array([[1.0, 0.4, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def written(folder, result, name="a.nii.gz"):
    return nib.load(Nifti(folder / name, overwrite=True)(result))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("affine", [np.diag([1, 2, 3, 1.0]), OBLIQUE, FLIPPED])
def test_values_and_affine_come_back(tmp_path, affine, name):
    result = attribution(affine=affine[None])
    image = written(tmp_path, result, name)
    assert np.array_equal(np.asarray(image.dataobj), result.values[0, 0].numpy())
    assert image.get_data_dtype() == np.float32
    assert np.allclose(image.get_sform(), affine, rtol=1e-6, atol=1e-5)
    assert np.allclose(image.get_qform(), affine, rtol=1e-5, atol=1e-4)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (2, 2)
    assert image.header.get_xyzt_units() == ("mm", "unknown")
    assert nib.aff2axcodes(image.affine) == nib.aff2axcodes(affine)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    st.tuples(*[st.integers(1, 5)] * 3),
    st.integers(1, 3),
    st.tuples(*[st.floats(-3, 3)] * 3),
    st.tuples(*[st.floats(0.01, 20)] * 3),
    st.booleans(),
)
def test_any_grid_and_rotation(tmp_path_factory, grid, maps, angles, spacing, flip):
    rotation = nib.eulerangles.euler2mat(*angles) @ np.diag(spacing) @ np.diag([-1 if flip else 1, 1, 1])
    affine = nib.affines.from_matvec(rotation, [10, -20, 30])
    result = attribution(maps=maps, grid=grid, affine=affine[None])
    image = written(tmp_path_factory.mktemp("nifti"), result)
    values = np.asarray(image.dataobj).reshape(*grid, maps)
    assert np.array_equal(np.moveaxis(values, -1, 0), result.values[0].numpy())
    assert np.abs(image.affine - affine).max() < 1e-4
    assert int(image.header["qform_code"]) == 2


def test_a_shear_is_kept_in_the_sform_alone(tmp_path):
    image = written(tmp_path, attribution(affine=SHEARED[None]))
    assert np.allclose(image.affine, SHEARED)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (2, 0)


def test_a_small_shear_of_small_voxels_is_seen(tmp_path):
    scale = np.diag([1e-3, 1e-3, 1e-3, 1])
    assert int(written(tmp_path, attribution(affine=(scale @ SHEARED)[None])).header["qform_code"]) == 0


def test_small_voxels_far_from_the_origin_have_both_forms(tmp_path):
    affine = nib.affines.from_matvec(np.diag([1e-3] * 3), [123.4567, -98.7654, 55.5555])
    assert int(written(tmp_path, attribution(affine=affine[None])).header["qform_code"]) == 2


def test_without_an_affine_no_space_is_claimed(tmp_path):
    image = written(tmp_path, attribution())
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (0, 0)
    assert image.header.get_zooms() == (1, 1, 1)
    assert image.header.get_xyzt_units() == ("unknown", "unknown")


def test_float64_is_kept(tmp_path):
    values = torch.rand(1, 1, 3, 4, 5, dtype=torch.float64)
    image = written(tmp_path, attribution(values=values, image=values))
    assert image.get_data_dtype() == np.float64
    assert np.array_equal(np.asarray(image.dataobj), values[0, 0].numpy())


def test_maps_of_each_channel_are_a_fourth_axis(tmp_path):
    result = attribution(maps=2)
    image = written(tmp_path, result)
    assert image.shape == (4, 5, 6, 2)
    assert np.array_equal(image.dataobj[..., 1], result.values[0, 1].numpy())


@pytest.mark.parametrize(("maps", "shape"), [(1, (4, 5, 1)), (3, (4, 5, 1, 3))])
def test_a_flat_image_gets_a_third_axis(tmp_path, maps, shape):
    assert written(tmp_path, attribution(maps=maps, grid=(4, 5))).shape == shape


def test_viewers_are_told_what_to_show(tmp_path):
    plain = written(tmp_path, attribution(3)[2]).header
    assert (plain["cal_min"], plain["cal_max"]) == (0, 3)
    values = -attribution(2).values
    signed = written(tmp_path, attribution(2, values=values, signed=True)[1]).header
    assert (signed["cal_min"], signed["cal_max"]) == (-2, 2)
    assert plain["descrip"].item() == b"medviz gradcam class 2"


def test_a_long_foreign_description_fits(tmp_path):
    header = written(tmp_path, attribution(target="é" * 200)).header
    assert header["descrip"].item() == b"medviz gradcam " + b"?" * 64


def test_what_was_written_is_read_back_by_the_reader(tmp_path):
    result = attribution(affine=OBLIQUE[None])
    image = NiftiReader()(Nifti(tmp_path / "a.nii.gz")(result))
    assert torch.equal(image.data, result.values[0])
    assert np.allclose(image.affine, OBLIQUE, atol=1e-5)
    assert NiftiReader()(Nifti(tmp_path / "b.nii")(attribution())).affine is None


def test_a_side_beyond_the_first_version_of_the_format(tmp_path):
    image = written(tmp_path, attribution(grid=(1, 1, 2**15)), "a.nii")
    assert image.shape == (1, 1, 2**15)


@pytest.mark.parametrize("name", ["map.Nii.Gz", "map.Nii", "map.nii.GZ", "map.NII"])
def test_the_case_of_a_suffix_does_not_matter(tmp_path, name):
    assert Nifti(tmp_path / name)(attribution()) == tmp_path / name
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert torch.equal(NiftiReader()(tmp_path / name).data, attribution().values[0])


@pytest.mark.parametrize("name", ["a.nii.bz2", "a.gz", "a.hdr", "a"])
def test_other_suffixes_are_refused(name):
    with pytest.raises(ValueError, match=r"must end in \.nii or \.nii\.gz"):
        Nifti(name)


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(nib.Nifti1Image, "to_filename", fail)
    with pytest.raises(OSError, match="disk full"):
        Nifti(tmp_path / "a.nii")(attribution())
    assert list(tmp_path.iterdir()) == []


def test_a_batch_gives_one_file_each_with_its_own_affine(tmp_path):
    paths = Nifti(tmp_path / "{index}.nii")(attribution(2, affine=np.stack([OBLIQUE, FLIPPED])))
    assert np.allclose(nib.load(paths[0]).affine, OBLIQUE, atol=1e-5)
    assert np.allclose(nib.load(paths[1]).affine, FLIPPED, atol=1e-5)
