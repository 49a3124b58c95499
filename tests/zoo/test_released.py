"""Released latents: the files, what they are held to, and the zoo of a profile that reads them."""

import errno
import json

import numpy as np
import pytest

from une_utils.images import CELEBA_ATTRIBUTES
from une_utils.settings import ProfileError, load_profile
from une_utils.stored import StoredRows
from une_utils.zoo import ZooError, released
from une_utils.zoo.build import build
from une_utils.zoo.released import check_attributes, export, open_released, released_file, write_rows
from une_utils.zoo.store import Zoo, views

N, D = 22, 12
NAMES = {"sd15": D, "vitB16": 5}


def latents(d=D, n=N, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float16)


def write_celeba_lists(folder, n=N):
    """The two text files of CelebA, no pictures: the training part has n of n + 4 rows."""
    folder.mkdir(parents=True, exist_ok=True)
    table = np.random.default_rng(7).integers(0, 2, (n + 4, 40)) * 2 - 1
    files = [f"{i:06d}.jpg" for i in range(1, n + 5)]
    lines = [f"{name} " + " ".join(map(str, row)) for name, row in zip(files, table, strict=True)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(n + 4), " ".join(CELEBA_ATTRIBUTES), *lines]) + "\n")
    (folder / "list_eval_partition.txt").write_text("".join(f"{f} {int(i >= n)}\n" for i, f in enumerate(files)))
    return table[:n] == 1


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Released files of a noise and an encoder, and the lists of CelebA; the profile's variables name both."""
    data = tmp_path / "zoo" / "data"
    data.mkdir(parents=True)
    for name, d in NAMES.items():
        np.save(data / f"noises_{name}.npy", latents(d))
    write_celeba_lists(tmp_path / "celeba")
    monkeypatch.setenv("UNE_NOISEZOO", str(tmp_path / "zoo"))
    monkeypatch.setenv("UNE_CELEBA", str(tmp_path / "celeba"))
    monkeypatch.setenv("UNE_CACHE", str(tmp_path / "cache"))
    return data


def profile(**overrides):
    one = {name: [load_profile("noisezoo").model_dump()[name][0]] for name in ("generators", "encoders")}
    return load_profile("noisezoo", one | {k.replace("__", "."): v for k, v in overrides.items()})


# The zoo of a profile


def test_views_of_the_shipped_profile():
    found = views(load_profile("noisezoo"))
    assert [v.name for v in found] == ["sd15", "sd21", "lcmv7", "vitb16", "vitl14", "ocb16", "ocl14", "dinov3"]
    assert [v.kind for v in found] == ["noise"] * 3 + ["encoder"] * 5


def test_a_zoo_of_released_files(folder):
    built = build(profile())
    for zoo in (built, Zoo(profile())):  # as it is made, and as a notebook opens it
        assert len(zoo) == N and zoo.names == ["sd15", "vitb16"] and zoo.attribute_names == CELEBA_ATTRIBUTES
        assert zoo.train.sum() == int(0.8 * N) and zoo.view_info("sd15")["shape"] == [D]
        assert (zoo.latents("sd15") == latents().astype(np.float32)).all() and zoo.latents("sd15").dtype == np.float32
        assert (zoo.latents("vitb16", zoo.train) == latents(5)[zoo.train]).all()
        assert (zoo.latents("sd15", [20, 3, 3]) == latents()[[20, 3, 3]]).all()
        assert (zoo.read("sd15", np.array([5, 1])) == latents()[[5, 1]]).all()
    assert (built.attributes == write_celeba_lists(folder / "again")).all()
    assert not list(built.path.rglob("latents.zarr"))  # the latents stay where they are
    build(profile())  # again: the same files are welcome


def test_large_files_are_not_loaded(folder):
    build(profile())
    small = profile(zoo__loaded_gib=(4 * (N - 1) * D - 1) / 2**30)
    found = Zoo(small).latents("sd15")
    assert isinstance(found, StoredRows) and isinstance(found.array, np.memmap) and found.shape == (N, D)
    assert (found.read() == latents()).all() and found.place == small.zoo_path / "sd15"
    assert Zoo(small).latents("sd15", slice(0, N - 1)).place is None
    assert isinstance(Zoo(small).latents("vitb16"), np.ndarray)  # this one is small
    assert isinstance(Zoo(small).latents("sd15", slice(0, 5)), np.ndarray)
    assert isinstance(Zoo(profile()).latents("sd15"), np.ndarray)  # a gigabyte is, too


def test_some_of_the_images(folder):
    zoo = build(profile(images__count=10))
    rows = np.sort(np.random.RandomState(42).permutation(N)[:10])
    assert zoo.ids.tolist() == [f"{i + 1:06d}.jpg" for i in rows]
    assert (zoo.latents("sd15") == latents()[rows]).all() and (zoo.latents("sd15", [9, 0]) == latents()[rows[[9, 0]]]).all()
    stored = Zoo(profile(images__count=10, zoo__loaded_gib=0))
    assert (stored.latents("sd15", slice(2, 4)).read() == latents()[rows[2:4]]).all()


def test_float32_files(folder):
    np.save(folder / "noises_sd15.npy", latents().astype(np.float32) * 1e6)
    assert build(profile()).latents("sd15").max() > 65504


# What is refused


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


BAD = {
    "missing": (lambda p: p.unlink(), r"no released latents at .*noises_sd15.npy; `hf download chentasker/NoiseZoo"),
    "rows": (lambda p: np.save(p, latents(n=N - 1)), f"has {N - 1} rows and the data set {N} pictures; .*images.partition"),
    "truncated": (truncate, "is not a whole .npy file: .*; fetch it again"),
    "no header": (lambda p: p.write_bytes(p.read_bytes()[:20]), "is not a whole .npy file"),
    "empty": (lambda p: p.write_bytes(b""), r"\(0 bytes\) is not a whole .npy file"),
    "pickle": (lambda p: np.save(p, np.array([[{}]]), allow_pickle=True), "is not a whole .npy file"),
    "integers": (lambda p: np.save(p, np.zeros((N, D), int)), "holds int64 .*; expected float16 or float32"),
    "one dimension": (lambda p: np.save(p, np.zeros(N, np.float32)), r"of shape \(22,\)"),
    "columns first": (lambda p: np.save(p, np.asfortranarray(latents())), "in Fortran order"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_leave_no_zoo(folder, case):
    damage, message = BAD[case]
    damage(folder / "noises_sd15.npy")
    with pytest.raises(ZooError, match=message):
        build(profile())
    assert not profile().zoo_path.exists()


def test_other_dimension(folder):
    build(profile())
    with pytest.raises(ZooError, match="has 12 dimensions, expected 16,384; is it the file of another model"):
        open_released(folder / "noises_sd15.npy", N, 16384)
    np.save(folder / "noises_sd15.npy", latents(D + 1))
    with pytest.raises(ZooError, match=r"shape: on disk \[12\], now \[13\]"):
        build(profile())


def test_file_that_changed_after_the_zoo_was_opened(folder):
    build(profile())
    np.save(folder / "noises_sd15.npy", latents(seed=1))
    with pytest.raises(ZooError, match="(?s)made from something else.*file: on disk"):
        build(profile())
    truncate(folder / "noises_sd15.npy")
    with pytest.raises(ZooError, match="not a whole .npy file"):
        Zoo(profile()).latents("sd15")


def test_folder_that_is_not_named(folder, monkeypatch):
    monkeypatch.delenv("UNE_NOISEZOO")
    with pytest.raises(ProfileError, match="UNE_NOISEZOO names, which is not set; `hf download chentasker/NoiseZoo"):
        build(profile())


def card(zoo, **changes):
    return {**released.attribute_card(zoo), **changes}


@pytest.mark.parametrize(
    "changes, message",
    [
        (lambda z: card(z, rows=5), "it has 5 rows, the data set 22"),
        (lambda z: card(z, attribute_names=["Male", *CELEBA_ATTRIBUTES[1:]]), "its column 1 is 'Male', the data set's '5_o_Clock_Shadow'"),
        (lambda z: card(z, attribute_names=list(CELEBA_ATTRIBUTES[:-1])), "it has 39 attributes, the data set 40"),
        (lambda z: card(z, sha256="0" * 64), "the rows are other pictures or in another order"),
    ],
)
def test_attribute_table_of_something_else(folder, changes, message):
    zoo = build(profile())
    (folder / "attributes.json").write_text(json.dumps(card(zoo)))
    build(profile())
    (folder / "attributes.json").write_text(json.dumps(changes(zoo)))
    with pytest.raises(ZooError, match=message):
        build(profile())


# Export and subsets


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_export_and_import_are_inverse(folder, tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(released, "EXPORT_ROWS", 5)
    zoo, out = build(profile()), tmp_path / "out"
    files = export(zoo, out, dtype=dtype)
    assert [f.name for f in files] == ["noises_sd15.npy", "noises_vitb16.npy"]
    assert np.load(files[0]).dtype == dtype and (np.load(files[0]) == latents()).all()
    assert sorted(p.name for p in out.iterdir()) == ["attributes.json", "noises_sd15.npy", "noises_vitb16.npy"]
    check_attributes(out, zoo)
    monkeypatch.setenv("UNE_NOISEZOO", str(out))
    monkeypatch.setenv("UNE_CACHE", str(tmp_path / "second"))
    again = build(profile())
    assert all((again.latents(n) == zoo.latents(n)).all() for n in zoo.names)


def test_export_of_our_own_zoo(tiny_profile, tmp_path):
    """A zoo in Zarr: some rows in an order of their own, read shard by shard."""
    from une_utils.images import open_images
    from une_utils.zoo.store import View

    zoo = Zoo(tiny_profile, open_images(tiny_profile))
    view = View("pixels", "pixels")
    zoo.open_view(view, (D,))
    for number, rows in enumerate(zoo.shards):
        zoo.write_shard(view, number, latents()[rows.start : rows.stop])
    rows = np.array([21, 0, 7, 7])
    (file,) = export(zoo, tmp_path / "out", ["pixels"], rows)
    assert (np.load(file) == latents()[rows]).all()
    with pytest.raises(ZooError, match="it has 4 rows, the data set 22"):  # files of two tables never lie in one folder
        export(zoo, tmp_path / "out", ["pixels"])
    with pytest.raises(ZooError, match="'tiny-vit' is not complete"):
        export(zoo, tmp_path / "other", ["tiny-vit"])
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_leaves_nothing_half_written(folder, tmp_path, monkeypatch, code):
    zoo, out = build(profile()), tmp_path / "out"
    out.mkdir()
    (out / "noises_sd15.npy").write_bytes(b"from before")
    monkeypatch.setattr(released, "EXPORT_ROWS", 5)
    read, calls = zoo.read, []

    def full(name, rows):
        calls.append(name)
        if len(calls) == 3:
            raise OSError(code, "No space left on device")
        return read(name, rows)

    monkeypatch.setattr(zoo, "read", full)
    with pytest.raises(ZooError, match="no space left for .*noises_sd15.npy: it needs .* GB, .* are free; free some space.*nothing half-written"):
        export(zoo, out)
    assert [p.name for p in out.iterdir()] == ["noises_sd15.npy"] and (out / "noises_sd15.npy").read_bytes() == b"from before"


def test_other_errors_are_not_called_a_full_disk(folder, tmp_path, monkeypatch):
    zoo = build(profile())
    monkeypatch.setattr(zoo, "read", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        export(zoo, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_write_some_rows(folder):
    file = folder / "noises_sd15.npy"
    write_rows(file, np.array([3, 20]), np.full((2, D), 1.5))
    expected = latents()
    expected[[3, 20]] = 1.5
    assert (np.load(file) == expected).all()
    too_large, two = (np.full((1, D), 1e6), "exceed float16; nothing was written"), (np.ones((2, D)), "expected latents of shape")
    for bad, message in (too_large, two):
        with pytest.raises(ZooError, match=message):
            write_rows(file, np.array([1]), bad)
    with pytest.raises(IndexError):
        write_rows(file, np.array([N]), np.ones((1, D)))
    assert (np.load(file) == expected).all()


def test_file_names_whatever_the_case(folder):
    assert released_file(folder, "vitb16").name == "noises_vitB16.npy" == released_file(folder.parent, "VITB16").name
    assert released_file(folder, "dinov3") == folder / "noises_dinov3.npy"
