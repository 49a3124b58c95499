import matplotlib as mpl
import pytest

from une_utils.report.style import ROLES, role, use_style


def test_every_role_has_its_own_colour_and_marker():
    assert len({r.color for r in ROLES.values()}) == len({r.marker for r in ROLES.values()}) == len(ROLES)


def test_unknown_role_names_the_known_ones():
    with pytest.raises(KeyError, match="noise, encoder"):
        role("nois")


def test_use_style_fixes_the_salt_of_svg_ids():
    use_style()
    assert mpl.rcParams["svg.hashsalt"] and mpl.rcParams["image.interpolation"] == "nearest"
