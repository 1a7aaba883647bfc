"""Readers: values, axes, affine; and what each says of a file that it cannot read."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers_distributions import build_wheel, install
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as PilImage

from medviz import registry, relay
from medviz.errors import PluginError
from medviz.readers.image import ImageFile
from medviz.readers.nifti import Nifti
from medviz.readers.npy import Npy

AFFINE = np.array([[-2.0, 0.1, 0, 90], [0, 0.2, 3, -12], [0, -1.5, 0, 7], [0, 0, 0, 1]])


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def saved(path, values, affine=AFFINE, change=None, kind=nib.Nifti1Image):
    image = kind(values, affine)
    if change:
        change(image)
    nib.save(image, path)
    return path


# NIfTI


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_values_axes_and_affine(tmp_path, name, kind):
    values = ramp(4, 5, 6)
    image = Nifti()(saved(tmp_path / name, values, kind=kind))
    assert torch.equal(image.data, torch.from_numpy(values)[None])
    assert image.data.is_contiguous()
    assert np.allclose(image.affine, AFFINE)
    assert image.spacing == pytest.approx(np.linalg.norm(AFFINE[:3, :3], axis=0))
    assert image.path == tmp_path / name


types = st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])


@settings(derandomize=True, deadline=None, max_examples=40)
@given(types, st.sampled_from("<>"), hnp.array_shapes(min_dims=2, max_dims=3, max_side=5), st.booleans())
def test_nifti_of_any_type_and_byte_order_is_scaled(tmp_path_factory, dtype, order, shape, scaled):
    values = (ramp(*shape) % 100).astype(np.dtype(dtype).newbyteorder(order))
    header = nib.Nifti1Header(endianness=order)
    image = nib.Nifti1Image(values, AFFINE, header, dtype=dtype)
    path = tmp_path_factory.mktemp("nifti") / "a.nii"
    nib.save(image, path)
    if scaled:  # the slope and the intercept stand at bytes 112 to 119
        content = bytearray(path.read_bytes())
        content[112:120] = struct.pack(f"{order}ff", 0.5, -1024)
        path.write_bytes(content)
    data = Nifti()(path).data
    expected = values.astype(np.float32) * 0.5 - 1024 if scaled else values.astype(np.float32)
    assert data.dtype == torch.float32
    assert np.array_equal(data.numpy(), expected[None])


def test_nifti_without_form_codes_has_no_affine(tmp_path, caplog):
    def unknown(image):
        image.set_sform(None, code=0)
        image.set_qform(None, code=0)

    with caplog.at_level(logging.WARNING):
        assert Nifti()(saved(tmp_path / "a.nii", ramp(4, 5, 6), change=unknown)).affine is None
    assert "says nothing about patient space" in caplog.text


@pytest.mark.parametrize("codes", [{"sform_code": 1, "qform_code": 0}, {"sform_code": 0, "qform_code": 1}])
def test_one_form_code_is_enough_for_an_affine(tmp_path: Path, codes: dict[str, int]) -> None:
    def known(image: nib.Nifti1Image) -> None:
        for name, code in codes.items():
            image.header[name] = code

    affine = np.diag([2.0, 3, 4, 1])
    assert np.allclose(Nifti()(saved(tmp_path / "a.nii", ramp(4, 5, 6), affine, change=known)).affine, affine)


@pytest.mark.parametrize("shift", [0.0, 0.05, 7.0])
def test_two_places_in_one_file_are_said(tmp_path, caplog, shift):
    def two(image):
        moved = image.affine.copy()
        moved[0, 3] += shift
        image.set_qform(image.affine, code=1)
        image.set_sform(moved, code=2)

    with caplog.at_level(logging.WARNING):
        image = Nifti()(saved(tmp_path / "a.nii", ramp(4, 5, 6), np.diag([2.0, 2, 3, 1]), change=two))
    assert image.affine[0, 3] == pytest.approx(shift)
    assert ("has two places in space, up to 7.0 mm apart: the sform is taken" in caplog.text) is (shift == 7)


@pytest.mark.parametrize(("unit", "length"), [("meter", 1e-3), ("mm", 1.0), ("micron", 1e3)])
@pytest.mark.parametrize(("shift", "said"), [(0.05, False), (7.0, True)])
def test_how_far_two_places_are_apart_is_said_in_millimetres(tmp_path, caplog, unit, length, shift, said):
    def two(image):
        moved = image.affine.copy()
        moved[0, 3] += shift * length
        image.set_qform(image.affine, code=1)
        image.set_sform(moved, code=2)
        image.header.set_xyzt_units(unit)

    affine = np.diag([2 * length, 2 * length, 3 * length, 1])
    with caplog.at_level(logging.WARNING):
        image = Nifti()(saved(tmp_path / "a.nii", ramp(4, 5, 6), affine, change=two))
    assert image.affine[0, 3] == pytest.approx(shift)
    assert ("has two places in space, up to 7.0 mm apart" in caplog.text) is said


def test_two_places_that_part_from_the_first_voxel_on_are_said(tmp_path, caplog):
    def two(image):
        image.set_qform(nib.affines.from_matvec(nib.eulerangles.euler2mat(0.02)), code=1)
        image.set_sform(np.eye(4), code=2)

    with caplog.at_level(logging.WARNING):
        Nifti()(saved(tmp_path / "a.nii", ramp(101, 2, 2), change=two))
    assert "has two places in space, up to 2.0 mm apart" in caplog.text


def test_what_looks_like_a_scan_and_is_none(tmp_path):
    import gzip

    import nibabel

    values = ramp(4, 5, 6)
    nibabel.save(nibabel.Nifti1Pair(values, AFFINE), tmp_path / "pair.hdr")
    with pytest.raises(ValueError, match=r"one half of a \.hdr/\.img pair"):
        Nifti()(tmp_path / "pair.hdr")
    whole = saved(tmp_path / "a.nii", values).read_bytes()
    (tmp_path / "packed.nii").write_bytes(gzip.compress(whole))
    with pytest.raises(ValueError, match=r"packed by gzip; name it \.nii\.gz"):
        Nifti()(tmp_path / "packed.nii")

    def surfaces(image):
        image.header["intent_code"] = 3006

    with pytest.raises(ValueError, match="CIFTI-2"):
        Nifti()(saved(tmp_path / "c.nii", values, change=surfaces))


def test_unknown_units_are_taken_for_millimetres(tmp_path):
    def damaged(image):
        image.header["xyzt_units"] = 5

    assert np.allclose(Nifti()(saved(tmp_path / "a.nii", ramp(4, 5, 6), change=damaged)).affine, AFFINE)


@pytest.mark.parametrize("name", ["a.Nii", "a.nII.Gz", "a.NII"])
def test_the_file_is_opened_whose_name_it_is(tmp_path, name):
    import shutil

    saved(tmp_path / name.lower(), ramp(4, 5, 6))
    other = saved(tmp_path / f"other{'.nii.gz' if 'z' in name else '.nii'}", ramp(4, 5, 6) + 1)
    shutil.copy(other, tmp_path / name)
    assert float(Nifti()(tmp_path / name).data.min()) == 1


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("micron", 1e-3), ("meter", 1e3), ("unknown", 1)])
@pytest.mark.parametrize("time", ["unknown", "sec"])
def test_nifti_affines_are_in_millimetres(tmp_path: Path, unit: str, factor: float, time: str) -> None:
    path = saved(tmp_path / "a.nii", ramp(4, 5, 6), change=lambda image: image.header.set_xyzt_units(unit, time))
    affine = Nifti()(path).affine
    assert np.allclose(affine[:3], AFFINE[:3] * factor)
    assert affine[3].tolist() == [0, 0, 0, 1]


def test_a_series_needs_a_choice(tmp_path):
    values = ramp(3, 4, 5, 6)
    path = saved(tmp_path / "a.nii.gz", values)
    with pytest.raises(ValueError, match=r"holds 6 volumes, its shape is \(3, 4, 5, 6\); choose one with volume=0"):
        Nifti()(path)
    assert np.array_equal(Nifti(volume=2)(path).data.numpy(), values[None, ..., 2])
    assert np.array_equal(Nifti(volume=-1)(path).data.numpy(), values[None, ..., 5])
    assert np.array_equal(Nifti(volume="all")(path).data.numpy(), np.moveaxis(values, -1, 0))
    for volume in (6, -7):
        with pytest.raises(ValueError, match=rf"`volume` is {volume}, but .* holds 6: 0 to 5"):
            Nifti(volume=volume)(path)


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 1), (3, 4, 5, 1, 1)])
@pytest.mark.parametrize("volume", [None, 0, -1, "all"])
def test_a_series_of_one_is_one_scan(tmp_path, shape, volume):
    assert Nifti(volume=volume)(saved(tmp_path / "a.nii", ramp(*shape))).data.shape == (1, 3, 4, 5)


def test_vectors_along_the_fifth_axis(tmp_path):
    values = ramp(3, 4, 5, 1, 2)
    path = saved(tmp_path / "a.nii", values)
    assert np.array_equal(Nifti(volume=1)(path).data.numpy(), values[None, :, :, :, 0, 1])
    assert np.array_equal(Nifti(volume="all")(path).data[1].numpy(), values[..., 0, 1])
    with pytest.raises(ValueError, match="one scan or one series"):
        Nifti(volume=0)(saved(tmp_path / "b.nii", ramp(2, 2, 2, 3, 2)))


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
def test_flat_nifti_stays_as_it_is(tmp_path, shape):
    assert Nifti()(saved(tmp_path / "a.nii", ramp(*shape))).data.shape == (1, *shape)


def test_nan_is_an_error_or_is_replaced(tmp_path):
    values = ramp(3, 4, 5)
    values[0, 0, :2] = np.nan
    values[1, 1, 1] = -np.inf
    path = saved(tmp_path / "a.nii", values)
    with pytest.raises(ValueError, match=r"a\.nii.* 3 of its 60 values are NaN, infinite .* nan=0"):
        Nifti()(path)
    data = Nifti(nan=-5)(path).data.numpy()[0]
    bad = ~np.isfinite(values)
    assert (data[bad] == -5).all()
    assert np.array_equal(data[~bad], values[~bad])


def test_values_too_large_for_float32_are_said(tmp_path):
    with pytest.raises(ValueError, match="1 of its 8 values"):
        Nifti()(saved(tmp_path / "a.nii", np.pad([[[1e300]]], ((0, 1),) * 3)))


@pytest.mark.parametrize(
    "dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])], ids=["complex", "colour"]
)
@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 2)])
def test_nifti_that_holds_no_real_numbers(tmp_path, dtype, shape):
    path = saved(tmp_path / "a.nii", np.zeros(shape, dtype))
    with pytest.raises(ValueError, match="expected real numbers"):
        Nifti(volume="all")(path)


def test_an_affine_without_an_inverse_names_the_file(tmp_path):
    path = saved(tmp_path / "a.nii", ramp(2, 2, 2))
    content = bytearray(path.read_bytes())
    content[280:328] = bytes(48)  # the sform
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.nii.* `affine` must be finite"):
        Nifti()(path)


def damages(content: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "header only": content[:200],
        "cut": content[:-10],
        "text": b"hello" * 200,
        "type": content[:70] + b"\x63\x00" + content[72:],
        "shape": content[:42] + b"\xff\xff" + content[44:],
    }


@pytest.mark.parametrize("damage", damages(b""))
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_nifti_is_named(tmp_path, damage, packed, caplog):
    import gzip

    values = np.random.default_rng(0).random((9, 9, 9)).astype(np.float32)
    content = damages(saved(tmp_path / "a.nii", values).read_bytes())[damage]
    path = tmp_path / ("b.nii.gz" if packed else "b.nii")
    path.write_bytes(gzip.compress(content) if packed else content)
    with caplog.at_level(logging.CRITICAL), pytest.raises(ValueError, match=r"b\.nii.*cannot be read as NIfTI"):
        Nifti()(path)


def test_a_cut_gzip_and_another_format_are_named(tmp_path):
    values = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)
    whole = saved(tmp_path / "a.nii.gz", values).read_bytes()
    for content in (whole[: len(whole) // 2], whole[:5000] + b"\0" * 200 + whole[5200:], b"hello"):
        (tmp_path / "b.nii.gz").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as NIfTI"):
            Nifti()(tmp_path / "b.nii.gz")


def test_a_size_that_no_memory_holds_is_an_error_of_the_file(tmp_path):
    content = bytearray(saved(tmp_path / "a.nii", np.zeros((9, 9, 9), np.float32)).read_bytes())
    content[42:48] = b"\xff\x7f" * 3  # 32,767 voxels along each axis
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.nii' (does not fit into memory|cannot be read as NIfTI)"):
        Nifti()(tmp_path / "a.nii")
    header = {"descr": "<f4", "fortran_order": False, "shape": (32767, 32767, 32767)}
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(ValueError, match=r"a\.npy' (does not fit into memory|cannot be read as one)"):
        Npy()(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "field", [{"volume": "first"}, {"volume": 1.5}, {"volume": True}, {"nan": float("nan")}, {"nan": 1e300}]
)
def test_wrong_nifti_fields(field):
    with pytest.raises(ValueError, match=f"`{next(iter(field))}`"):
        Nifti(**field)


@pytest.mark.parametrize("nan", ["0", True])
@pytest.mark.parametrize("reader", [Nifti, Npy])
def test_wrong_nan(reader, nan):
    with pytest.raises(TypeError, match="`nan`"):
        reader(nan=nan)


def nibabel_file(name: str):
    from importlib.metadata import files

    (found,) = [file for file in files("nibabel") or [] if str(file) == f"nibabel/tests/data/{name}"]
    return found.locate()


@pytest.mark.realdata
def test_a_real_series_and_a_real_big_endian_scan():
    series = nib.load(nibabel_file("example4d.nii.gz"))
    image = Nifti(volume=1)(nibabel_file("example4d.nii.gz"))
    assert image.data.shape == (1, 128, 96, 24)
    assert np.array_equal(image.data[0].numpy(), series.get_fdata(dtype=np.float32)[..., 1])
    assert np.array_equal(image.affine, series.affine)
    assert image.spacing == pytest.approx((2, 2, 2.2), rel=1e-3)
    scan = nib.load(nibabel_file("anatomical.nii"))
    image = Nifti()(nibabel_file("anatomical.nii"))
    assert scan.header.endianness == ">"
    assert image.data.shape == (1, 33, 41, 25)
    assert np.array_equal(image.data[0].numpy(), scan.get_fdata(dtype=np.float32))
    assert nib.aff2axcodes(image.affine) == ("L", "A", "S")


# pictures


def png(bits: int, colour: int, rows: list[bytes], width: int) -> bytes:
    """Write a PNG by hand, for the kinds that Pillow cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6).flatmap(lambda s: st.sampled_from([s, (*s, 3)]))
    ),
    st.sampled_from(["png", "bmp"]),
)
def test_pictures_are_exact(tmp_path_factory, pixels, suffix):
    path = tmp_path_factory.mktemp("pictures") / f"a.{suffix}"
    PilImage.fromarray(pixels).save(path)
    expected = torch.from_numpy(np.atleast_3d(pixels).transpose(2, 0, 1).copy()).float()
    assert torch.equal(ImageFile(scale="stored")(path).data, expected)
    assert torch.equal(ImageFile()(path).data, expected / 255)
    assert ImageFile()(path).affine is None


def test_a_jpeg_is_close(tmp_path):
    y, x = np.mgrid[:32, :48]
    pixels = np.stack([x * 5, y * 7, x + y], -1).astype(np.uint8)
    PilImage.fromarray(pixels).save(tmp_path / "a.JPG", "JPEG", quality=95)
    data = ImageFile(scale="stored")(tmp_path / "a.JPG").data.numpy()
    assert data.shape == (3, 32, 48)
    assert np.abs(data - pixels.transpose(2, 0, 1)).mean() < 3


def test_grey_of_sixteen_bits_keeps_its_depth(tmp_path):
    pixels = np.array([[0, 1, 256], [257, 65534, 65535]], np.uint16)
    PilImage.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(ImageFile(scale="stored")(tmp_path / "a.png").data[0].numpy(), pixels)
    assert np.allclose(ImageFile()(tmp_path / "a.png").data[0].numpy(), pixels / 65535)


def test_colour_of_sixteen_bits_says_that_it_loses_depth(tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(png(16, 2, [bytes(range(12))], 2))
    with caplog.at_level(logging.WARNING):
        data = ImageFile(scale="stored")(tmp_path / "a.png").data
    assert data[:, 0].T.tolist() == [[0, 2, 4], [6, 8, 10]]
    assert "the upper 8 are read" in caplog.text


def test_colour_of_eight_bits_says_nothing(tmp_path, caplog):
    for suffix in ("png", "bmp", "jpg"):
        PilImage.new("RGB", (16, 16)).save(tmp_path / f"a.{suffix}")
        ImageFile()(tmp_path / f"a.{suffix}")
    assert not caplog.records


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparent_pixels_are_laid_over_black(tmp_path, mode):
    picture = PilImage.new("RGBA", (3, 1))
    for x, alpha in enumerate((255, 51, 0)):
        picture.putpixel((x, 0), (200, 200, 200, alpha))
    if mode == "P":
        picture = PilImage.new("P", (2, 1))
        picture.putpalette([200, 200, 200, 10, 20, 30])
        picture.putpixel((1, 0), 1)
        picture.save(tmp_path / "a.png", transparency=1)
        expected = [[[200, 0]]] * 3
    else:
        picture.convert(mode).save(tmp_path / "a.png")
        expected = [[[200, 40, 0]]] * (1 if mode == "LA" else 3)
    assert ImageFile(scale="stored")(tmp_path / "a.png").data.tolist() == expected


def test_grey_with_transparency_of_sixteen_bits_is_grey(tmp_path):
    (tmp_path / "a.png").write_bytes(png(16, 4, [bytes([200, 0, 255, 255, 100, 0, 0, 0])], 2))
    assert ImageFile(scale="stored")(tmp_path / "a.png").data.tolist() == [[[200, 0]]]


def test_one_bit_and_palettes(tmp_path):
    PilImage.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert ImageFile()(tmp_path / "a.png").data.tolist() == [[[1, 0]]]
    PilImage.new("RGB", (2, 1), (1, 2, 3)).quantize(4).save(tmp_path / "b.png")
    assert ImageFile(scale="stored")(tmp_path / "b.png").data[:, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_is_turned_upright(tmp_path, suffix):
    picture = PilImage.new("RGB", (16, 8))
    picture.paste((255, 255, 255), (0, 0, 8, 8))  # the left half is white
    exif = PilImage.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    picture.save(tmp_path / f"a.{suffix}", exif=exif)
    data = ImageFile()(tmp_path / f"a.{suffix}").data
    assert data.shape == (3, 16, 8)
    assert data[:, :7].min() > 0.9
    assert data[:, 9:].max() < 0.1


def test_a_moving_png_is_refused(tmp_path):
    frames = [PilImage.new("RGB", (4, 4), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="holds 2 pictures"):
        ImageFile()(tmp_path / "a.png")


def test_damaged_pictures_are_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "bmp"):
        PilImage.fromarray(noise).save(tmp_path / f"a.{suffix}")
        whole = (tmp_path / f"a.{suffix}").read_bytes()
        for content in (b"", whole[:20], whole[: len(whole) // 2], b"hello"):
            (tmp_path / f"b.{suffix}").write_bytes(content)
            with pytest.raises(ValueError, match=rf"b\.{suffix}.*cannot be read as a PNG, JPEG or BMP"):
                ImageFile()(tmp_path / f"b.{suffix}")


def test_another_format_under_a_pictures_name_is_refused(tmp_path):
    PilImage.new("RGB", (4, 4)).save(tmp_path / "a.png", "TIFF")
    with pytest.raises(ValueError, match="cannot be read as a PNG"):
        ImageFile()(tmp_path / "a.png")


def test_wrong_scale():
    with pytest.raises(ValueError, match="`scale`"):
        ImageFile(scale="percent")


# NumPy


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    hnp.arrays(
        st.sampled_from([bool, np.uint8, np.int64, ">i2", np.float16, np.float32, ">f8"]),
        hnp.array_shapes(min_dims=2, max_dims=4, max_side=4),
    ).filter(lambda a: np.isfinite(a).all() and (np.abs(a.astype(float)) < 1e30).all()),
    st.sampled_from(["C", "F"]),
)
def test_npy_values_and_axes(tmp_path_factory, array, order):
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    np.save(path, np.asarray(array, order=order))
    expected = torch.from_numpy(array.astype(np.float32))
    assert torch.equal(Npy()(path).data, expected if array.ndim > 2 else expected[None])
    if array.ndim < 4:
        assert torch.equal(Npy(channels="none")(path).data, expected[None])
    else:
        with pytest.raises(ValueError, match="channels='none' takes 2 or 3 axes"):
            Npy(channels="none")(path)


@pytest.mark.parametrize(
    "array",
    [
        np.array([[{}]], dtype=object),
        np.zeros((2, 2), complex),
        np.array([["a"]]),
        np.zeros((2, 2), [("a", "f4")]),
        np.zeros((2, 2), "M8[s]"),
        np.zeros(3),
        np.zeros(()),
        np.zeros((1, 1, 1, 1, 1)),
        np.zeros((0, 3)),
        np.full((2, 2), np.nan),
        np.full((2, 2), 1e300),
    ],
    ids=lambda a: f"{a.dtype.kind}{a.shape}",
)
def test_npy_that_is_no_image(tmp_path, array):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy.*cannot be read as one \.npy array"):
        Npy()(tmp_path / "a.npy")


def test_npy_never_unpickles(tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    np.save(tmp_path / "a.npy", np.array([[Trap()]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        Npy()(tmp_path / "a.npy")


def test_damaged_npy_is_named(tmp_path):
    np.save(tmp_path / "a.npy", ramp(4, 5))
    np.savez(tmp_path / "a.npz", ramp(4, 5))
    whole = (tmp_path / "a.npy").read_bytes()
    for content in (
        whole.replace(b"}", b"{"),
        whole.replace(b"descr", b"des\nr"),
        b"",
        whole[:5],
        whole[:50],
        whole[:-4],
        b"hello",
        (tmp_path / "a.npz").read_bytes(),
    ):
        (tmp_path / "b.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.npy.*cannot be read as one \.npy array"):
            Npy()(tmp_path / "b.npy")


def test_npy_replaces_nan(tmp_path):
    np.save(tmp_path / "a.npy", [[1, np.nan]])
    assert Npy(nan=0)(tmp_path / "a.npy").data.tolist() == [[[1, 0]]]


def test_wrong_channels():
    with pytest.raises(ValueError, match="`channels` is 'first' or 'none'; got 'last'"):
        Npy(channels="last")


# by suffix


@pytest.mark.parametrize("name", ["a.nii", "a.NII.GZ", "a.png", "a.JPEG", "a.npy"])
def test_the_suffix_chooses_the_reader(tmp_path, name):
    path = tmp_path / name
    if "ni" in name.lower():
        (tmp_path / "x").mkdir()
        saved(tmp_path / "x" / name.lower(), ramp(4, 5, 6)).rename(path)
    elif name == "a.npy":
        np.save(path, ramp(4, 5))
    else:
        PilImage.new("L", (5, 4)).save(path)
    assert relay.read(path).data.shape in ((1, 4, 5, 6), (1, 4, 5))
    assert relay.read(str(path)).path == path


_OTHERS = """
import attrs, medviz, torch

@attrs.frozen(eq=False)
class Dicom(medviz.Reader):
    suffixes = (".dcm",)

    @medviz.hookimpl
    def read(self, path):
        return medviz.Image(torch.full((1, 2, 2), 7.0), path=path)

class Mine(Dicom):
    suffixes = (".nii.gz",)
"""


def test_a_builtin_reader_is_replaced_on_purpose_only(tmp_path, monkeypatch):
    """A package may take its name, or its suffix; each file has one reader, or the user is asked."""
    monkeypatch.setattr(registry, "_preferred", None)
    monkeypatch.delenv("MEDVIZ_PREFER", raising=False)
    lines = [("readers", "nifti", "mv_others:Dicom"), ("readers", "mine", "mv_others:Mine")]
    scan, picture = saved(tmp_path / "s.nii.gz", ramp(4, 5, 6)), tmp_path / "a.dcm"
    picture.touch()
    with monkeypatch.context() as installed:
        wheel = build_wheel(tmp_path, "medviz-named", {"mv_others.py": _OTHERS}, lines[:1])
        installed.syspath_prepend(str(install(tmp_path / "named", wheel)))
        for packages in ((), ("medviz-named",)):
            registry.prefer(*packages)
            assert relay.read(scan).data.shape == (1, 4, 5, 6)
            assert relay.read(picture).data.shape == (1, 2, 2)
    with monkeypatch.context() as installed:
        wheel = build_wheel(tmp_path, "medviz-both", {"mv_others.py": _OTHERS}, lines)
        installed.syspath_prepend(str(install(tmp_path / "both", wheel)))
        registry.prefer()
        with pytest.raises(PluginError, match=r"several readers take 's\.nii\.gz': mine, medviz-xai/nifti; choose"):
            relay.read(scan)
        registry.prefer("medviz-xai")
        assert relay.read(scan).data.shape == (1, 4, 5, 6)
        registry.prefer("medviz-both")
        assert relay.read(scan).data.shape == (1, 2, 2)


def test_a_missing_file_and_an_unknown_suffix(tmp_path):
    for reader in (Nifti(), ImageFile(), Npy()):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            reader(tmp_path / "a.nii")
    (tmp_path / "a.xyz").write_text("")
    with pytest.raises(PluginError, match="no reader takes"):
        relay.read(tmp_path / "a.xyz")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; name one file in it"):
        relay.read(tmp_path)
