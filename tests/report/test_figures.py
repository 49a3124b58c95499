import json
import os

import matplotlib.pyplot as plt
import numpy as np
import pytest

from une_utils import settings
from une_utils.report import figures
from une_utils.report.figures import check_figure, forget_outdated, publisher, read_manifest, save_figure, stale_figures


def line_figure(title="title", xlabel="x (px)", ylabel="y (px)"):
    fig, ax = plt.subplots()
    ax.plot([0, 1], [1, 0])
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return fig


def save(mini, name="line", **changes):
    arguments = {"notebook": "02", "profile": mini, "caption": "A line.", **changes}
    return save_figure(arguments.pop("fig", None) or line_figure(), name, **arguments)


def manifest(mini):
    return json.loads((mini.figures_path / "manifest.json").read_text())["figures"]


def test_writes_png_svg_and_a_sorted_manifest(mini):
    save(mini, "b")
    path = save(mini, "a", caption=" The caption. ")
    assert path == mini.figures_path / "a.png" and path.with_suffix(".svg").is_file()
    rows = manifest(mini)
    assert [r["figure"] for r in rows] == ["a", "b"]
    assert rows[0]["caption"] == "The caption." and rows[0]["notebook"] == "02" and rows[0]["profile"] == "mini"
    assert set(rows[0]["made_from"]) == {"notebook", "profile", "weights"}
    assert stale_figures("mini") == []


def test_same_figure_gives_the_same_bytes(mini):
    path = save(mini)
    first = path.read_bytes(), path.with_suffix(".svg").read_bytes(), (mini.figures_path / "manifest.json").read_bytes()
    save(mini)
    assert first == (path.read_bytes(), path.with_suffix(".svg").read_bytes(), (mini.figures_path / "manifest.json").read_bytes())
    assert b"<dc:date>" not in first[1]


def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(mini, monkeypatch):
    path = save(mini)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(mini, fig=line_figure(title="another"))
    assert path.read_bytes() == before and not list(mini.figures_path.glob(".*"))


def test_large_svg_is_rasterised(mini, monkeypatch):
    rng = np.random.default_rng(0)
    fig, ax = plt.subplots()
    ax.scatter(*rng.normal(size=(2, 3000)))
    ax.set(title="t", xlabel="x", ylabel="y")
    monkeypatch.setattr(figures, "MAX_SVG_BYTES", 150_000)
    svg = save(mini, fig=fig).with_suffix(".svg").read_text()
    assert len(svg) < 150_000 and "data:image/png" in svg
    assert not ax.collections[0].get_rasterized()


@pytest.mark.parametrize("missing", ["title", "xlabel", "ylabel"])
def test_refuses_a_figure_without_title_or_labels(mini, missing):
    with pytest.raises(ValueError, match=missing.replace("label", " label")):
        save(mini, fig=line_figure(**{missing: ""}))
    assert not mini.figures_path.exists()


def test_shared_axes_need_one_label():
    fig, axes = plt.subplots(1, 2, sharey=True)
    for ax in axes:
        ax.plot([0, 1])
        ax.set(title="t", xlabel="x")
    with pytest.raises(ValueError, match="y label"):
        check_figure(fig)
    axes[0].set_ylabel("y")
    check_figure(fig)


def test_pictures_need_a_title_only():
    fig, axes = plt.subplots(1, 2)
    for ax in axes:
        ax.imshow(np.zeros((4, 4)))
        ax.set_axis_off()
    with pytest.raises(ValueError, match="title"):
        check_figure(fig)
    fig.suptitle("pictures")
    check_figure(fig)


def test_colour_bar_needs_a_label():
    fig = line_figure()
    bar = fig.colorbar(plt.cm.ScalarMappable(), ax=fig.axes[0])
    with pytest.raises(ValueError, match="colour bar"):
        check_figure(fig)
    bar.set_label("correlation")
    check_figure(fig)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"name": "Bad name"}, "small letters"), ({"caption": " "}, "caption"), ({"notebook": "07"}, "found 0"),
     ({"fig": plt.Figure()}, "no data"), ({"inputs": ["/etc/hosts"]}, "outside"), ({"inputs": ["nothing.csv"]}, "not a file")],
)  # fmt: skip
def test_refuses(mini, changes, message):
    with pytest.raises(ValueError, match=message):
        save(mini, **changes)


def test_a_name_belongs_to_one_notebook(mini, write_notebook):
    save(mini)
    write_notebook(settings.NOTEBOOKS / "03_probes.ipynb")
    with pytest.raises(ValueError, match="belongs to notebook 02"):
        save(mini, notebook="03")


def test_stale_when_missing_changed_or_unlisted(mini):
    for name in ("gone", "painted", "fresh"):
        save(mini, name)
    (mini.figures_path / "gone.svg").unlink()
    (mini.figures_path / "painted.png").write_bytes(b"paint")
    (mini.figures_path / "stray.png").write_bytes(b"")
    reasons = dict(stale_figures("mini"))
    assert set(reasons) == {"gone", "painted", "stray"}
    assert "missing: gone.svg" in reasons["gone"] and "changed" in reasons["painted"] and "not listed" in reasons["stray"]


def test_stale_when_code_weights_or_inputs_change_but_not_with_prose(mini, project):
    (project / "table.csv").write_text("1")
    save(mini, inputs=[project / "table.csv"])
    notebook = settings.NOTEBOOKS / "02_gauss.ipynb"
    original = notebook.read_text()
    notebook.write_text(original.replace("A test", "Other prose"))
    assert stale_figures("mini") == []
    notebook.write_text(original.replace("1 + 1", "1 + 2"))
    assert "other notebook" in dict(stale_figures("mini"))["line"]
    notebook.write_text(original)
    (settings.MODELS / "faces-ldm/unet/diffusion_pytorch_model.safetensors").write_bytes(b"other weights")
    (project / "table.csv").write_text("2")
    assert "other weights, inputs" in dict(stale_figures("mini"))["line"]


def test_overrides_make_a_figure_of_another_profile(mini):
    save(mini)
    save(settings.load_profile("mini", {"images.count": 200}), "overridden")
    assert [name for name, _ in stale_figures("mini")] == ["overridden"]


def test_forget_outdated_removes_what_the_notebook_no_longer_draws(mini):
    save(mini, "old")
    notebook = settings.NOTEBOOKS / "02_gauss.ipynb"
    notebook.write_text(notebook.read_text().replace("1 + 1", "2 + 2"))
    save(mini, "new")
    assert forget_outdated(mini, "02") == ["old"]
    assert stale_figures("mini") == [] and not (mini.figures_path / "old.png").exists()


def test_publisher_saves_shows_and_closes(mini, capsys):
    fig, ax = plt.subplots()
    ax.plot([1, 2])
    ax.set(title="t", xlabel="x", ylabel="y")
    publisher("02", mini)(fig, "shown", "What to see.")
    assert read_manifest(mini)["shown"]["caption"] == "What to see."
    assert "Figure shown: What to see." in capsys.readouterr().out and not plt.fignum_exists(fig.number)


def test_empty_settings_do_not_outdate_results(mini):
    """A setting that a later version adds, and that this profile leaves off, changes no hash; one that is on does."""

    class Later(settings.Profile):
        judges: list[str] = []
        note: str | None = None

    later, before = Later.model_validate(mini.model_dump()), figures.profile_hash(mini)
    assert figures.profile_hash(later) == before
    assert figures.profile_hash(later.model_copy(update={"judges": ["oracle"]})) != before
    assert figures.profile_hash(later.model_copy(update={"seed": 0})) != before
