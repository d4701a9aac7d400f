"""Figures for scripts: what is drawn where."""

import matplotlib
import numpy as np
import pytest
import torch

from halfmap.errors import InputError
from halfmap.plots.panels import Slider, draw_directions, show_images
from halfmap.so3 import direction_pixels, euler_to_matrix

matplotlib.use("agg")
import matplotlib.pyplot as plt


def test_images_keep_their_place_and_grey() -> None:
    ramp = np.arange(16.0).reshape(4, 4)
    figure = show_images([ramp, 2 * ramp, None, ramp], ["a", "b"], columns=2, same_grey=True)
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["a", "b", ""]
    assert len({axes.images[0].get_clim() for axes in shown}) == 1
    assert shown[0].images[0].origin == "lower"
    own = show_images([ramp, 2 * ramp])
    assert len({axes.images[0].get_clim() for axes in own.axes}) == 2
    with pytest.raises(InputError, match="titles"):
        show_images([ramp], ["a", "b"])
    plt.close("all")


def test_the_bar_is_as_long_as_it_says() -> None:
    for box, pixel, expected in ((40, 4.8, 50.0), (96, 2.0, 50.0), (25, 1.0, 5.0)):
        figure = show_images([np.eye(box), np.eye(box)], pixel_size_angstrom=pixel)
        (bar,) = figure.axes[0].lines
        assert not figure.axes[1].lines
        assert figure.axes[0].texts[0].get_text() == f"{expected:g} Å"
        assert np.ptp(bar.get_xdata()) * pixel == pytest.approx(expected)
        plt.close(figure)


def test_a_direction_is_drawn_where_it_is() -> None:
    order, tilt, rot = 2, 60.0, 40.0  # latitude 30 degrees, longitude 40
    probability = np.zeros(12 * 4**order)
    view = euler_to_matrix(torch.tensor([rot, tilt, 0.0]))
    probability[int(direction_pixels(view, order))] = 1
    figure, axes = plt.subplots(subplot_kw={"projection": "mollweide"})
    draw_directions(axes, probability, order=order)
    drawn = np.asarray(axes.collections[0].get_array()).reshape(180, 360)
    y, x = np.nonzero(drawn)
    assert abs(y.mean() - 90 - (90 - tilt)) < 8
    assert abs(x.mean() - 180 - rot) < 8
    with pytest.raises(InputError, match="192 directions"):
        draw_directions(axes, probability[1:], order=order)
    plt.close(figure)


def test_a_slider_holds_its_pictures_and_fetches_nothing() -> None:
    figures = [show_images([np.eye(3) * n]) for n in (1, 2, 3)]
    html = Slider(figures, ["a", "b", "c"])._repr_html_()
    assert html.count("data:image/png;base64,") == html.count("<img") == 3
    assert html.count("display:none") == 2
    assert 'max="2"' in html
    assert "http" not in html
    with pytest.raises(InputError, match="labels"):
        Slider(figures, ["a"])
    plt.close("all")
