"""Results as NetCDF files: what is written comes back, and a file that was changed or made to harm is refused."""

import os

import h5py
import numpy as np
import pytest
import xarray as xr

from periodic_jax.core.errors import PeriodicJaxError
from periodic_jax.storage import datasets
from periodic_jax.storage.datasets import read_store, write_store


@pytest.fixture
def results():
    return xr.Dataset(
        {
            "loss": (
                ("config", "minimum"),
                [[0.5, np.nan], [np.inf, -0.0]],
                {"long_name": "Verlust ρ", "units": "nats"},
            ),
            "barrier": (("config", "pair"), np.zeros((2, 0))),
            "held": ("config", [True, False]),
            "count": ("config", [3, -1]),
            "reason": (("config", "minimum"), [["", "weights are not finite"], ["ρ, η", "a\nb"]]),
            "nothing": ("config", ["", ""]),
            "total": ((), 2.5),
        },
        {"seed": ("config", [0, 1]), "path": ["straight", "layers"], "point": ("point", [0.0, 1.0])},
        {"run": "", "images": 128, "burn_in": 0.1},
    )


def test_everything_comes_back(results, tmp_path):
    for _ in range(2):  # over an earlier one too
        assert write_store(results, tmp_path / "a.nc") == tmp_path / "a.nc"
    stored = read_store(tmp_path / "a.nc")
    xr.testing.assert_identical(stored, results)
    for name, array in results.variables.items():
        assert stored[name].dtype.kind == array.dtype.kind, name
    with xr.open_dataset(tmp_path / "a.nc") as plain:
        xr.testing.assert_equal(plain, results)
    assert os.listdir(tmp_path) == ["a.nc"]


def test_every_changed_byte_is_found_or_changes_nothing(results, tmp_path):
    write_store(results, tmp_path / "a.nc")
    content = (tmp_path / "a.nc").read_bytes()
    errors = []
    for at in np.random.default_rng(0).choice(len(content), 150, replace=False):
        (tmp_path / "b.nc").write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        try:
            xr.testing.assert_equal(read_store(tmp_path / "b.nc"), results)
        except PeriodicJaxError as error:
            errors.append(str(error))
    assert errors
    assert not any("\n" in error for error in errors)
    (tmp_path / "b.nc").write_bytes(content[: len(content) // 2])
    with pytest.raises(PeriodicJaxError):
        read_store(tmp_path / "b.nc")


def external_link(file, path):
    file["more"] = h5py.ExternalLink(str(path), "/loss")


def soft_link(file, path):
    file["more"] = h5py.SoftLink("/loss")


def external_array(file, path):
    file.create_dataset("more", (4,), "u1", external=[(str(path), 0, 4)])


def virtual_array(file, path):
    layout = h5py.VirtualLayout((2,), "i8")
    layout[:] = h5py.VirtualSource(str(path), "count", (2,))
    file.create_virtual_dataset("more", layout)


def group(file, path):
    file.create_group("more")


def text_in_a_heap(file, path):
    file["more"] = ["a", "b"]


def filtered(file, path):
    file.create_dataset("more", data=np.zeros(1000), compression="gzip")


def larger_than_the_file(file, path):
    file.create_dataset("more", (10**9,), "f8")


@pytest.mark.parametrize(
    "do",
    [external_link, soft_link, external_array, virtual_array, group, text_in_a_heap, filtered, larger_than_the_file],
)
def test_what_leads_elsewhere_or_takes_memory_is_refused(results, tmp_path, do):
    write_store(results, tmp_path / "a.nc")
    write_store(results, tmp_path / "other.nc")
    with h5py.File(tmp_path / "a.nc", "r+") as file:
        do(file, tmp_path / "other.nc")
    with pytest.raises(PeriodicJaxError, match="more than plain arrays"):
        read_store(tmp_path / "a.nc")


def test_foreign_files_are_refused(results, tmp_path, monkeypatch):
    results.to_netcdf(
        tmp_path / "foreign.nc", engine="h5netcdf", encoding={n: {"dtype": "S1"} for n in ("reason", "nothing", "path")}
    )
    with pytest.raises(PeriodicJaxError, match="checksum"):
        read_store(tmp_path / "foreign.nc")
    write_store(results, tmp_path / "a.nc")
    (tmp_path / "link.nc").symlink_to(tmp_path / "a.nc")
    (tmp_path / "folder.nc").mkdir()
    os.mkfifo(tmp_path / "pipe.nc")
    for name in ("link", "folder", "pipe", "none"):
        with pytest.raises(PeriodicJaxError, match=name):
            read_store(tmp_path / f"{name}.nc")
    monkeypatch.setattr(datasets, "MOST_BYTES", 100)
    with pytest.raises(PeriodicJaxError, match="bytes long"):
        read_store(tmp_path / "a.nc")


def test_nothing_is_written_through_a_link_or_into_no_folder(results, tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "a.nc.partial").symlink_to(tmp_path / "precious")
    write_store(results, tmp_path / "a.nc")
    assert (tmp_path / "precious").read_text() == "mine"
    with pytest.raises(PeriodicJaxError, match="No such file or directory"):
        write_store(results, tmp_path / "none" / "a.nc")
