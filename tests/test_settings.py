"""Profiles: what loads, what is refused, and whether the message names the thing that is wrong."""

import pytest

from une_utils import settings
from une_utils.hub import HubError
from une_utils.report.figures import profile_hash
from une_utils.settings import ProfileError, load_profile

FOLDER = {"images.source": "folder", "images.attributes_csv": "labels.csv"}


@pytest.fixture
def write(tmp_path):
    """Write a profile below tmp_path and return its path."""

    def write(name, text):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", settings.profile_names())
def test_every_profile_loads_under_its_own_name(name):
    profile = load_profile(name)
    assert profile.name == name
    assert profile.generators and profile.encoders


def test_the_documented_profiles_are_there():
    assert {"mini", "lfw", "ci"} <= set(settings.profile_names())


def test_extends_overrides_single_keys_and_keeps_the_others():
    mini, ci = load_profile("mini"), load_profile("ci")
    assert (ci.images.count, mini.images.count) == (400, 4000)
    assert ci.images.size == mini.images.size and ci.oracle == mini.oracle
    assert ci.zoo.steps < mini.zoo.steps


def test_extends_can_name_a_profile_of_the_project(write):
    path = write("mine", "extends: mini\nname: mine\ntitle: mine\nseed: 7\n")
    profile = load_profile(path)
    assert (profile.name, profile.seed, profile.images.count) == ("mine", 7, 4000)


def test_lists_are_replaced_not_merged(write):
    path = write("mine", "extends: mini\nname: mine\nencoders: [{name: other, path: other}]\n")
    assert [m.name for m in load_profile(path).encoders] == ["other"]


def test_unknown_profile_is_named_with_the_known_ones():
    with pytest.raises(ProfileError, match=r"'mimi'.*ci.*lfw.*mini"):
        load_profile("mimi")


def test_unknown_base_is_named(write):
    with pytest.raises(ProfileError, match="unknown profile 'nothing'"):
        load_profile(write("mine", "extends: nothing\nname: mine\n"))


@pytest.mark.parametrize("key", ["colour", "zoo.stepz", "images.sise", "analysis.rowz"])
def test_unknown_key_is_named(key):
    with pytest.raises(ProfileError, match=rf"(?m)^  {key}: "):
        load_profile("mini", {key: 1})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("zoo.steps", 1), ("zoo.batch", 0), ("images.count", 3), ("images.size", "large"), ("images.source", "disk"),
        ("train_fraction", 1.0), ("train_fraction", 0), ("analysis.rows", -1), ("seed", "first"),
    ],
)  # fmt: skip
def test_bad_value_is_named_with_its_key(key, value):
    with pytest.raises(ProfileError) as caught:
        load_profile("mini", {key: value})
    message = str(caught.value)
    assert f"\n  {key}: " in message and f"got {value!r}" in message and "'mini'" in message


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(ProfileError) as caught:
        load_profile("mini", {"zoo.steps": 1, "images.size": 1})
    assert "zoo.steps" in str(caught.value) and "images.size" in str(caught.value)


@pytest.mark.parametrize("name", ["Has Space", "../up", ""])
def test_model_names_are_fit_for_a_folder(name):
    with pytest.raises(ProfileError, match=r"encoders\.0\.name"):
        load_profile("mini", {"encoders": [{"name": name, "path": "x"}]})


def test_model_name_used_twice_is_named():
    twice = [{"name": "faces-ldm", "path": "faces-dino"}]
    with pytest.raises(ProfileError, match="found twice: faces-ldm"):
        load_profile("mini", {"encoders": twice})


def test_profile_that_extends_itself_is_refused(write, tmp_path):
    with pytest.raises(ProfileError, match=r"loop\.yaml' extends itself"):
        load_profile(write("loop", f"extends: {tmp_path / 'loop.yaml'}\nname: loop\n"))


def test_loop_of_two_profiles_is_refused(write, tmp_path):
    write("b", f"extends: {tmp_path / 'a.yaml'}\nname: b\n")
    with pytest.raises(ProfileError, match=r"a\.yaml' extends itself"):
        load_profile(write("a", f"extends: {tmp_path / 'b.yaml'}\nname: a\n"))


@pytest.mark.parametrize(("text", "why"), [("a: [1", "not valid YAML"), ("- a\n- b\n", "mapping"), ("", "mapping")])
def test_file_that_is_no_profile_is_named(write, text, why):
    with pytest.raises(ProfileError, match=rf"broken\.yaml.*{why}"):
        load_profile(write("broken", text))


def test_override_reaches_nested_values_and_is_validated():
    profile = load_profile("mini", {"images.count": 200, "seed": 7})
    assert (profile.images.count, profile.seed) == (200, 7)
    assert load_profile("mini").images.count == 4000  # nothing of an override stays behind


def test_override_below_a_plain_value_is_refused():
    with pytest.raises(ProfileError, match="cannot override 'images.size.large': 'size' is not a section"):
        load_profile("mini", {"images.size.large": 1})


def test_profiles_do_not_change_after_loading():
    profile = load_profile("mini")
    with pytest.raises(ValueError, match="frozen"):
        profile.images.count = 5
    assert profile.images.count == 4000


@pytest.mark.parametrize("overrides", [{"images.source": "parquet"}, {"images.source": "folder", "images.path": "pictures"}])
def test_source_on_disk_needs_its_place(overrides):
    with pytest.raises(ProfileError, match="images: .*needs '(path|attributes_csv)"):
        load_profile("mini", overrides)


def test_unset_environment_variable_is_named(monkeypatch):
    monkeypatch.delenv("UNE_LFW_PARQUET", raising=False)
    with pytest.raises(ProfileError, match="UNE_LFW_PARQUET, which is not set.*export UNE_LFW_PARQUET="):
        load_profile("lfw").images.resolved_path()


def test_missing_file_of_an_environment_variable_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("UNE_LFW_PARQUET", str(tmp_path / "gone.parquet"))
    with pytest.raises(ProfileError, match=r"gone\.parquet.*environment variable UNE_LFW_PARQUET"):
        load_profile("lfw").images.resolved_path()


def test_environment_variable_wins_over_the_path(monkeypatch, tmp_path):
    monkeypatch.setenv("UNE_HERE", str(tmp_path))
    images = load_profile("mini", FOLDER | {"images.path": "profiles", "images.path_env": "UNE_HERE"}).images
    assert images.resolved_path() == tmp_path
    monkeypatch.delenv("UNE_HERE")
    assert images.resolved_path() == settings.PROFILES


def test_missing_folder_of_a_profile_is_named():
    images = load_profile("mini", FOLDER | {"images.path": "no-such-folder"}).images
    with pytest.raises(ProfileError, match=r"no-such-folder \(named by the profile; source 'folder'\)"):
        images.resolved_path()


def test_missing_weights_are_named_with_the_way_to_make_them():
    profile = load_profile("mini", {"encoders": [{"name": "none", "path": "no-such-model"}]})
    with pytest.raises(ProfileError, match="'none'.*no-such-model.*make train"):
        profile.encoders[0].resolved_path()


SHIFT = {"name": "smile", "path": "smile", "attribute": "Smiling"}


def test_shifts_are_models_that_name_their_attribute():
    profile = load_profile("mini", {"shifts": [SHIFT]})
    assert profile.shifts[0].attribute == "Smiling" and profile.shifts[0].title == "smile"
    assert profile.shifts[0] in profile.models
    assert load_profile("mini", {"shifts": []}).models == [m for m in profile.models if m != profile.shifts[0]]


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        ({"name": "smile", "path": "smile"}, r"shifts\.0\.attribute: Field required"),
        (SHIFT | {"attribute": "a smile"}, r"shifts\.0\.attribute"), (SHIFT | {"path": ""}, "needs either 'path' or 'hub'"),
        (SHIFT | {"name": "faces-ldm"}, "found twice: faces-ldm"), (SHIFT | {"strength": 1}, r"shifts\.0\.strength"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_shift_is_named(shift, message):
    with pytest.raises(ProfileError, match=message):
        load_profile("mini", {"shifts": [shift]})


def test_a_notebook_is_left_out_where_what_it_needs_is_not_there():
    without = load_profile("mini", {"shifts": [], "skip": {"05": "no edits"}})
    assert without.left_out == {"05": "no edits", "11": "no shift of h-space is trained for its generator"}
    assert load_profile("mini", {"shifts": [], "skip": {"11": "another reason"}}).left_out == {"11": "another reason", "11b": "another reason"}
    assert load_profile("mini", {"rivals": []}).left_out == {"11b": "no other editing method is trained for its generator"}
    assert load_profile("mini").left_out == load_profile("ci").left_out == {}


def test_a_skipped_number_takes_its_parts_along():
    assert load_profile("mini", {"skip": {"06": "no"}}).left_out == {"06": "no", "06b": "no"}
    assert load_profile("mini", {"skip": {"06b": "no"}}).left_out == {"06b": "no"}
    assert load_profile("mini", {"skip": {"08": "no", "08b": "neither"}}).left_out == {"08": "no", "08b": "neither"}


def test_a_rival_names_a_known_method():
    rival = {"name": "copy", "path": "copy", "method": "DiffusionCLIP", "attribute": "Male"}
    profile = load_profile("mini", {"rivals": [rival]})
    assert profile.rivals[0].attribute == "Male" and profile.rivals[0] in profile.models
    with pytest.raises(ProfileError, match=r"rivals\.0\.method"):
        load_profile("mini", {"rivals": [rival | {"method": "by hand"}]})


def test_profiles_without_shifts_keep_their_hash():
    """Their figures were made before there were shifts, from data that not everybody has."""
    lfw = load_profile("lfw")
    assert not lfw.shifts and "11" in lfw.left_out and "11" not in lfw.skip
    assert profile_hash(lfw) == profile_hash(lfw.model_copy(update={"shifts": None})) != profile_hash(load_profile("lfw", {"shifts": [SHIFT]}))


HUB = {"name": "sd15", "hub": "owner/sd15", "revision": "a" * 40}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "none"}, "needs either 'path' or 'hub'"), (HUB | {"path": "faces-ldm"}, "needs either 'path' or 'hub'"),
        ({"name": "open", "hub": "owner/sd15"}, "'hub' and 'revision' go together"), (HUB | {"hub": "sd15"}, "hub"),
        ({"name": "odd", "path": "faces-ldm", "revision": "main"}, "'hub' and 'revision' go together"),
    ],
)  # fmt: skip
def test_a_model_is_in_one_place_and_pinned(model, message):
    with pytest.raises(ProfileError, match=f"(?s)encoders.0.*{message}"):
        load_profile("mini", {"encoders": [model]})


def test_a_model_of_the_hub_is_downloaded_when_asked_for(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(settings, "snapshot", lambda *place: asked.append(place) or tmp_path)
    model = load_profile("mini", {"encoders": [HUB]}).encoders[0]
    assert model.weights_hash == "owner/sd15@" + "a" * 40 and not asked  # no download for a hash
    assert model.resolved_path() == tmp_path and asked == [("owner/sd15", "a" * 40)]


def test_what_the_hub_refuses_is_an_error_of_the_profile(monkeypatch):
    def refuse(repository, revision):
        raise HubError(f"{repository} is gated")

    monkeypatch.setattr(settings, "snapshot", refuse)
    with pytest.raises(ProfileError, match="model 'sd15': owner/sd15 is gated"):
        load_profile("mini", {"encoders": [HUB]}).encoders[0].resolved_path()


def test_models_that_do_not_ship_lie_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("UNE_CACHE", str(tmp_path))
    model = load_profile("paper-tiny").encoders[0]
    with pytest.raises(ProfileError, match="make train"):
        model.resolved_path()
    (tmp_path / "models" / model.path).mkdir(parents=True)
    assert model.resolved_path() == tmp_path / "models" / model.path
    assert load_profile("mini").encoders[0].resolved_path() == settings.MODELS / "faces-clip"


def test_new_settings_leave_the_hash_of_a_profile_alone():
    """Figures of profiles without models of the hub do not go out of date: what is empty does not count."""
    profile = load_profile("mini")
    assert profile.encoders[0].hub is None and profile.encoders[0].revision is None
    bare = [m.model_copy(update={"hub": "", "revision": ""}) for m in profile.encoders]
    assert profile_hash(profile.model_copy(update={"encoders": bare})) == profile_hash(profile)


def test_paths_do_not_depend_on_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("UNE_CACHE", raising=False)
    monkeypatch.delenv("UNE_FIGURES", raising=False)

    def paths():
        profile = load_profile("mini", FOLDER | {"images.path": "profiles"})
        return profile.images.resolved_path(), profile.generators[0].resolved_path(), profile.zoo_path, profile.figures_path

    before = paths()
    monkeypatch.chdir(tmp_path)
    assert paths() == before
    assert all(p.is_absolute() and p.is_relative_to(settings.ROOT) for p in before)


def test_cache_and_figures_move_with_their_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("UNE_CACHE", str(tmp_path / "c"))
    monkeypatch.setenv("UNE_FIGURES", str(tmp_path / "f"))
    profile = load_profile("mini")
    assert (profile.zoo_path, profile.figures_path) == (tmp_path / "c" / "zoo" / "mini", tmp_path / "f" / "mini")
