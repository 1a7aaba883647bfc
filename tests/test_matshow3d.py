"""`matshow3d`: the sheet's arithmetic, figures, wrong input, and parity where the peer is right."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from medviz.renderers.matshow3d import matshow3d

VOLUME = np.arange(5 * 3 * 4, dtype=np.float32).reshape(5, 3, 4)


def open_figures():
    from matplotlib import pyplot

    return pyplot.get_fignums()


def test_a_sheet_by_hand():
    figure, sheet = matshow3d(np.arange(12.0).reshape(3, 2, 2), margin=1, fill_value=-1)
    rows = [
        [-1, -1, -1, -1, -1, -1, -1, -1],
        [-1, 0, 1, -1, -1, 4, 5, -1],
        [-1, 2, 3, -1, -1, 6, 7, -1],
        [-1, -1, -1, -1, -1, -1, -1, -1],
        [-1, -1, -1, -1, -1, -1, -1, -1],
        [-1, 8, 9, -1, -1, -1, -1, -1],
        [-1, 10, 11, -1, -1, -1, -1, -1],
        [-1, -1, -1, -1, -1, -1, -1, -1],
    ]
    np.testing.assert_array_equal(sheet, rows)
    assert sheet.dtype == np.float32
    assert isinstance(figure, Figure)
    assert tuple(figure.get_size_inches()) == (10, 10)


def test_no_pyplot_figure_is_left_open_and_the_figure_can_draw_itself():
    before = open_figures()
    for _ in range(3):
        figure, _ = matshow3d(VOLUME, title="costs $5 and \\frac")
        figure.canvas.draw()
    assert open_figures() == before
    assert figure.axes[0].get_title() == "costs $5 and \\frac"


def test_a_given_figure_or_axes_is_drawn_on():
    figure = Figure()
    returned, _ = matshow3d(VOLUME, figure, figsize=(4, 3))
    assert returned is figure
    assert tuple(figure.get_size_inches()) == (4, 3)
    axes = Figure().add_subplot()
    returned, sheet = matshow3d(VOLUME, axes, figsize=None, vmin=2, vmax=9, cmap="gray")
    assert returned is axes
    (drawn,) = axes.images
    assert drawn.get_clim() == (2, 9)
    assert drawn.get_cmap().name == "gray"
    np.testing.assert_array_equal(np.isnan(sheet), np.ma.getmaskarray(drawn.get_array()))


def test_show_opens_a_window(monkeypatch):
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("Agg")
    shown = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(True))
    figure, _ = matshow3d(VOLUME, show=True)
    assert shown == [True]
    assert figure.number in open_figures()
    pyplot.close(figure)


def test_colours_are_drawn_without_warnings_whatever_their_range():
    for scale in (1, 255):
        figure, sheet = matshow3d(np.random.default_rng(0).random((3, 4, 5, 2)) * scale, channel_dim=0)
        figure.canvas.draw()
        assert sheet.shape == (14, 8, 3)
        assert np.nanmax(sheet) > 0.9 * scale
        drawn = figure.axes[0].images[0].get_array()
        assert drawn.min() >= 0
        assert drawn.max() <= 1
        np.testing.assert_array_equal(drawn[..., 3] == 0, np.isnan(sheet).any(-1))


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.5), (-3.0, 1.0), (0.0, 9.0), (-2.0, -2.0)])
def test_colours_beyond_0_and_1_are_scaled_by_their_range(low, high):
    colours = np.linspace(0, 1, 24).reshape(3, 2, 2, 2)
    figure, _ = matshow3d(low + colours * (high - low), channel_dim=0, margin=0, frames_per_row=2)
    drawn = figure.axes[0].images[0].get_array()
    expected = np.moveaxis(colours[:, 0], 0, -1) * (high > low)
    np.testing.assert_allclose(drawn[:, :2, :3], expected, atol=1e-6)


def test_nan_does_not_count_in_the_range():
    volume = VOLUME.copy()
    volume[2, 1, 1] = np.nan
    (drawn,) = matshow3d(volume)[0].axes[0].images
    assert drawn.get_clim() == (0, 59)


def test_one_channel_has_the_range_of_its_values():
    figure, sheet = matshow3d(VOLUME[None] - 9, channel_dim=0)
    (drawn,) = figure.axes[0].images
    assert drawn.get_clim() == (-9, 50)
    np.testing.assert_array_equal(drawn.get_array().filled(np.nan), sheet[..., 0])


@pytest.mark.parametrize("channel_dim", [0, 1])
def test_a_list_of_colour_volumes(channel_dim):
    rng = np.random.default_rng(0)
    small, large = rng.random((3, 2, 4, 5)), rng.random((3, 2, 6, 5))
    _, sheet = matshow3d([small, large], channel_dim=channel_dim, frames_per_row=1, margin=0)
    assert sheet.shape == (4 * 6, 5, 3)
    np.testing.assert_allclose(sheet[1:5], np.moveaxis(small[:, 0], 0, -1), rtol=1e-6)
    np.testing.assert_allclose(sheet[12:18], np.moveaxis(large[:, 0], 0, -1), rtol=1e-6)


def test_a_list_of_colour_pictures():
    pictures = [torch.rand(3, 4, 5) for _ in range(3)]
    _, sheet = matshow3d(pictures, channel_dim=0, frames_per_row=3, margin=0)
    np.testing.assert_allclose(sheet[:, 5:10], pictures[1].numpy().transpose(1, 2, 0))


@pytest.mark.parametrize("frame_dim", [-3, -2, -1])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_picture_in_colours_is_one_slice_along_any_axis(channels, frame_dim):
    picture = np.random.default_rng(0).random((channels, 4, 5))
    _, sheet = matshow3d(picture, channel_dim=0, frame_dim=frame_dim, margin=0)
    np.testing.assert_allclose(sheet, picture.transpose(1, 2, 0), rtol=1e-6)


def test_a_flat_picture_and_a_line():
    assert matshow3d(np.ones((3, 4)), margin=0)[1].shape == (3, 4)
    assert matshow3d(np.ones(4), margin=0)[1].shape == (1, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n": 0}, "`every_n`"),
        ({"every_n": 1.5}, "`every_n`"),
        ({"margin": -1}, "`margin`"),
        ({"frames_per_row": -2}, "`frames_per_row`"),
        ({"frame_dim": -4}, "`frame_dim` is -4"),
        ({"channel_dim": 2}, "`channel_dim`"),
        ({"channel_dim": 0}, "1, 3 or 4 channels"),
        ({"volume": np.zeros((3, 4, 5, 6)), "channel_dim": 0, "frame_dim": 0}, "channel axis"),
        ({"volume": np.zeros((0, 3, 4))}, "empty"),
        ({"volume": np.full((2, 3, 4), np.nan)}, "nothing but NaN"),
        ({"volume": []}, "channel-first"),
        ({"volume": [np.zeros((1, 3)), np.zeros((1, 3, 4))]}, "channel-first"),
        ({"volume": [np.zeros((3, 2, 3, 4)), np.zeros((1, 2, 3, 4))], "channel_dim": 0}, "as many channels"),
        ({"dtype": np.uint8}, "fill_value=0"),
    ],
)
def test_wrong_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        matshow3d(**{"volume": VOLUME, **arguments})


@pytest.mark.parametrize("arguments", [{"volume": "brain"}, {"volume": [None]}, {"fig": 3}])
def test_wrong_types(arguments):
    with pytest.raises(TypeError, match="`"):
        matshow3d(**{"volume": VOLUME, **arguments})


CASES = [
    ((5, 3, 4), {}),
    ((5, 3, 4), {"frame_dim": -1}),
    ((5, 3, 4), {"frame_dim": -2, "every_n": 2}),
    ((5, 3, 4), {"frame_dim": 1}),
    ((7, 3, 4), {"every_n": 3, "margin": 0}),
    ((7, 3, 4), {"frames_per_row": 2, "margin": 3, "fill_value": 0}),
    ((7, 3, 4), {"frames_per_row": 20, "dtype": np.float64}),
    ((7, 3, 4), {"frames_per_row": 0, "dtype": np.int16, "fill_value": -3}),
    ((1, 1, 1), {}),
    ((3, 4), {}),
    ((2, 5, 3, 4), {"every_n": 2}),
    ((2, 2, 5, 3, 4), {"frame_dim": -1}),
    ((3, 5, 3, 4), {"channel_dim": 0}),
    ((1, 5, 3, 4), {"channel_dim": 0, "frame_dim": -1}),
    ((4, 5, 3, 4), {"channel_dim": 0, "frame_dim": -2, "margin": 2}),
    ((2, 3, 5, 3, 4), {"channel_dim": 1, "every_n": 3}),
    ((2, 3, 5, 3, 4), {"channel_dim": 1, "frame_dim": -1, "frames_per_row": 5}),
    ([(1, 5, 3, 4), (2, 4, 6, 4)], {}),
    ([(1, 5, 3, 4), (1, 2, 2, 7)], {"frame_dim": -1}),
    ([(1, 3, 4), (3, 6, 7)], {"every_n": 2}),
]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("shape", "arguments"), CASES)
@pytest.mark.parametrize("make", [np.asarray, torch.tensor])
def test_parity_with_monai_where_it_is_right(shape, arguments, make):
    from matplotlib import pyplot
    from monai.visualize import matshow3d as peer

    rng = np.random.default_rng(0)
    shapes = shape if isinstance(shape, list) else [shape]
    volumes = [make(rng.random(s) * 9) for s in shapes]
    volume = volumes if isinstance(shape, list) else volumes[0]
    _, sheet = matshow3d(volume, **arguments)
    figure, expected = peer(volume, **arguments)
    pyplot.close(figure)
    assert sheet.dtype == expected.dtype
    np.testing.assert_array_equal(sheet, expected)
