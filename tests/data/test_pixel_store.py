"""Arrays in folders, and work that goes on there."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from cytonym.data.pixel_store import PixelFolder, Pixels, new_folder, new_pixels

ARRAYS = {"a": Pixels((2, 8, 8), np.uint8), "b": Pixels((8, 8), np.float32)}


def test_what_is_there_is_left_alone(tmp_path):
    pixels = new_pixels((4, 4), np.uint8, tmp_path / "a.zarr")
    pixels[:] = 7
    with pytest.raises(zarr.errors.ContainsArrayError):
        new_pixels((4, 4), np.uint8, tmp_path / "a.zarr")
    with new_folder(tmp_path, "a", ".zarr") as folder:
        assert folder == tmp_path / "a_2.zarr"
        new_pixels((4, 4), np.uint8, folder)
    with pytest.raises(OSError, match="full"), new_folder(tmp_path, "a", ".zarr"):
        raise OSError("full")  # noqa: EM101
    assert {path.name for path in tmp_path.iterdir()} == {"a.zarr", "a_2.zarr"}
    assert (zarr.open_array(tmp_path / "a.zarr")[:] == 7).all()


def test_goes_on_where_it_stopped(tmp_path):
    first = PixelFolder(tmp_path / "out", "job", {"x": 1}, ARRAYS)
    first.arrays["a"][:, :4] = 3
    first.add((0, 0, 4, 8))
    with (first.folder / "progress.txt").open("a") as file:
        file.write("\n10")  # cut off
    first.add((4, 0, 8, 4))
    again = PixelFolder(tmp_path / "out", "job", {"x": 1}, ARRAYS)
    assert again.folder == first.folder
    assert again.done == {(0, 0, 4, 8), (4, 0, 8, 4)}
    assert not again.complete
    assert again.arrays["a"][:].sum() == 3 * 64
    again.finish()
    assert PixelFolder(tmp_path / "out", "job", {"x": 1}, ARRAYS).complete


@pytest.mark.parametrize(
    ("settings", "arrays"),
    [
        ({"x": 2}, ARRAYS),
        ({"x": 1}, {"a": ARRAYS["a"]}),
        ({"x": 1}, ARRAYS | {"a": Pixels((2, 8, 9), np.uint8)}),
        ({"x": 1}, ARRAYS | {"b": Pixels((8, 8), np.float64)}),
    ],
)
def test_other_work_gets_a_folder_of_its_own(tmp_path, settings, arrays):
    first = PixelFolder(tmp_path, "job", {"x": 1}, ARRAYS)
    first.arrays["a"][:] = 3
    first.finish()
    other = PixelFolder(tmp_path, "job", settings, arrays)
    assert other.folder.name == "job_2"
    assert not other.complete
    assert (first.arrays["a"][:] == 3).all()


def test_what_somebody_has_deleted_is_made_again(tmp_path):
    first = PixelFolder(tmp_path, "job", {}, ARRAYS)
    first.finish()
    (tmp_path / "job" / "b.zarr" / "zarr.json").unlink()
    assert not PixelFolder(tmp_path, "job", {}, ARRAYS).complete
