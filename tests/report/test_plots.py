import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from une_utils.report import plots
from une_utils.report.figures import check_figure
from une_utils.report.style import ROLES, role

ROLE_OF = {"noise": "noise", "CLIP": "encoder"}


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def lines(fig):
    return {line.get_label(): line for line in fig.axes[0].lines if not line.get_label().startswith("_")}


def pictures(*shape):
    return np.random.default_rng(0).integers(0, 255, (*shape, 4, 6, 3), dtype=np.uint8)


def test_contact_sheet_puts_every_picture_in_its_place():
    images = pictures(5)
    fig = plots.contact_sheet(images, 3, "five")
    shown = fig.axes[0].images[0]
    assert shown.get_interpolation() == "nearest" and shown.get_array().shape == (2 * 6 + 2, 3 * 8 + 2, 3)
    assert (shown.get_array()[8:12, 10:16] == images[4]).all() and (shown.get_array()[8:12, 18:24] == 255).all()
    check_figure(fig)


def test_contact_sheet_labels_stand_above_their_pictures():
    fig = plots.contact_sheet(pictures(2), 2, "two", ["a", "b"])
    texts = fig.axes[0].texts
    assert [t.get_text() for t in texts] == ["a", "b"] and texts[0].get_position()[0] < texts[1].get_position()[0]


def test_strip_grid_keeps_the_order():
    images = pictures(2, 3)
    fig = plots.strip_grid(images, ["top", "bottom"], ["1", "2", "3"], "strips")
    canvas = fig.axes[0].images[0].get_array()
    assert (canvas[2:6, 18:24] == images[0, 2]).all() and (canvas[8:12, 2:8] == images[1, 0]).all()
    assert [t.get_text() for t in fig.axes[0].texts] == ["top", "bottom", "1", "2", "3"]
    check_figure(fig)


@pytest.mark.parametrize("images", [pictures(2).astype(float), pictures(2)[..., :1], pictures(0), pictures(2)[0]])
def test_pictures_of_another_kind_are_refused(images):
    with pytest.raises(ValueError, match="expected uint8"):
        plots.contact_sheet(images, 2, "t")


def test_label_counts_are_checked():
    with pytest.raises(ValueError, match="1 labels for 2"):
        plots.contact_sheet(pictures(2), 2, "t", ["a"])
    with pytest.raises(ValueError, match="1 row and 1 column"):
        plots.strip_grid(pictures(1, 2), ["a"], ["b"], "t")


def accuracies(n):
    return pd.DataFrame({"noise": np.linspace(0.6, 0.9, n), "CLIP": 0.95, "unused": 0.1}, index=[f"a_{i}" for i in range(n)])


def test_radar_closes_each_line_and_starts_at_0_4():
    fig = plots.radar(accuracies(5), ROLE_OF, "probes")
    ax = fig.axes[0]
    assert set(lines(fig)) == {"noise", "CLIP"} and ax.get_ylim() == (0.4, 1.0)
    assert lines(fig)["noise"].get_ydata().tolist() == [*np.linspace(0.6, 0.9, 5), 0.6]
    assert lines(fig)["noise"].get_color() == ROLES["noise"].color
    check_figure(fig)


def test_radar_moves_its_centre_for_low_values_and_is_straight_below_three_attributes():
    assert plots.radar(accuracies(4), ROLE_OF | {"unused": "control"}, "t").axes[0].get_ylim()[0] == pytest.approx(0.1)
    fig = plots.radar(accuracies(2), ROLE_OF, "t")
    assert fig.axes[0].name == "rectilinear" and lines(fig)["noise"].get_ydata().tolist() == [0.6, 0.9]
    check_figure(fig)


def test_interval_dots_are_sorted_by_the_first_method():
    frame = pd.DataFrame(
        {"name": ["u", "v", "u", "v"], "space": ["noise", "noise", "CLIP", "CLIP"], "auc": [0.9, 0.6, 0.5, 0.7]}
    ).assign(low=lambda f: f.auc - 0.1, high=lambda f: f.auc + 0.1)
    fig = plots.interval_dots(frame, "auc", "low", "high", "name", "space", ROLE_OF, "t", "AUC", reference=0.5)
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["v", "u"]
    assert dict(zip(lines(fig)["noise"].get_xdata(), np.round(lines(fig)["noise"].get_ydata()), strict=True)) == {0.9: 1, 0.6: 0}
    bars = fig.axes[0].collections[0].get_segments()
    assert np.allclose([(s[0, 0], s[1, 0]) for s in bars], [(0.8, 1.0), (0.5, 0.7)])
    check_figure(fig)


def test_interval_dots_without_rows():
    frame = pd.DataFrame({"m": ["a"], "k": ["p"], "v": [0.5], "lo": [0.4], "hi": [0.6]})
    some = plots.interval_dots(frame, "v", "lo", "hi", "m", "k", {"p": "noise", "q": "encoder"}, "Title", "value")
    assert [line.get_label() for line in some.axes[0].get_lines()] == ["p", "q"] and len(some.axes[0].get_lines()[1].get_xdata()) == 0
    none = plots.interval_dots(frame[:0], "v", "lo", "hi", "m", "k", {"p": "noise", "q": "encoder"}, "Title", "value")
    assert [text.get_text() for text in none.axes[0].texts] == ["no values"]


def test_heatmap_shows_the_matrix():
    matrix = np.array([[1.0, -0.5, 0.0], [0.2, 0.3, 0.4]])
    fig = plots.heatmap(matrix, ["a", "b"], "t", value_label="r", axis_labels=("x", "y"), column_names=["u", "v", "w"])
    assert (fig.axes[0].images[0].get_array() == matrix).all() and fig.axes[0].images[0].get_clim() == (-1, 1)
    assert [t.get_text() for t in fig.axes[0].texts] == ["1.00", "-0.50", "0.00", "0.20", "0.30", "0.40"]
    check_figure(fig)
    with pytest.raises(ValueError, match="2 row and 2 column"):
        plots.heatmap(matrix, ["a", "b"], "t", value_label="r", axis_labels=("x", "y"))


def test_qq_plot_of_a_normal_sample_is_the_diagonal():
    rng = np.random.default_rng(0)
    fig = plots.qq_plot({"noise": 5 + 3 * rng.normal(size=20_000), "CLIP": rng.exponential(size=20_000)}, ROLE_OF, "t")
    normal, skewed = lines(fig)["noise"], lines(fig)["CLIP"]
    assert len(normal.get_xdata()) == 200 and np.abs(normal.get_xdata() - normal.get_ydata())[5:-5].max() < 0.06
    assert np.abs(skewed.get_xdata() - skewed.get_ydata()).max() > 0.5
    check_figure(fig)


def test_spectrum_plot_sorts_and_leaves_out_zeros():
    spectra = {"noise": np.array([0.0, 1.0, 3.0, 2.0])}
    fig = plots.spectrum_plot(spectra, {"noise": "noise"}, np.full(4, 0.9), np.full(4, 1.1), "t")
    assert lines(fig)["noise"].get_ydata().tolist() == [3, 2, 1] and lines(fig)["noise"].get_xdata().tolist() == [1, 2, 3]
    check_figure(fig)


def test_roles_that_name_nothing_are_refused():
    with pytest.raises(ValueError, match="unknown: nois"):
        plots.radar(accuracies(3), {"nois": "noise"}, "t")
    assert role("noise") is ROLES["noise"]


def test_interval_lines_draw_values_bands_and_reference():
    frame = pd.DataFrame({"steps": [20, 10, 50], "db": [2.0, 1.0, 3.0], "low": [1.5, 0.5, 2.5], "high": [2.5, 1.5, 3.5], "m": "noise"})
    fig = plots.interval_lines(frame, "steps", "db", "low", "high", "m", {"noise": "noise"}, "t", "x", "y", reference=4, reference_label="floor")
    assert lines(fig)["noise"].get_xdata().tolist() == [10, 20, 50] and lines(fig)["noise"].get_ydata().tolist() == [1, 2, 3]
    assert set(lines(fig)["floor"].get_ydata()) == {4}
    band = fig.axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == 0.5 and band[:, 1].max() == 3.5
    check_figure(fig)


def test_interval_lines_on_a_logarithmic_axis():
    frame = pd.DataFrame({"d": [1, 1024], "v": [1.0, 2.0], "low": 0.0, "high": 3.0, "m": "noise"})
    fig = plots.interval_lines(frame, "d", "v", "low", "high", "m", {"noise": "noise"}, "t", "x", "y", log_x=True)
    assert fig.axes[0].get_xscale() == "log" and [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["1", "1,024"]


def test_scatter_keeps_every_point():
    clouds = {"noise": np.arange(6.0).reshape(3, 2), "CLIP": np.zeros((2, 2))}
    fig = plots.scatter(clouds, ROLE_OF, "t", "x", "y")
    drawn = [np.asarray(c.get_offsets()).tolist() for c in fig.axes[0].collections]
    assert drawn == [clouds["noise"].tolist(), clouds["CLIP"].tolist()]
    check_figure(fig)


def test_interval_dots_with_one_dot_a_line_sorts_all_of_them():
    frame = pd.DataFrame({"v": [0.2, 0.9, 0.5], "low": 0.1, "high": 1.0, "s": ["noise", "CLIP", "pixels"]})
    roles = {"noise": "noise", "CLIP": "encoder", "pixels": "pixels"}
    fig = plots.interval_dots(frame, "v", "low", "high", "s", "s", roles, "t", "x")
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["noise", "pixels", "CLIP"]
    assert {label: line.get_ydata()[0] for label, line in lines(fig).items()} == {"noise": 0, "CLIP": 2, "pixels": 1}
    assert fig.axes[0].get_legend() is None
