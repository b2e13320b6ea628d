"""Files that take the place of others as a whole."""

import errno

import pytest

from cytonym.data.files import replaced, require_place


def test_a_file_that_is_there_and_a_folder_that_is_not(tmp_path):
    (tmp_path / "there.csv").touch()
    require_place(tmp_path / "new.csv", overwrite=False)
    require_place(tmp_path / "there.csv", overwrite=True)
    with pytest.raises(FileExistsError, match="exists. Choose another name"):
        require_place(tmp_path / "there.csv", overwrite=False)
    with pytest.raises(FileNotFoundError, match="Make it first"):
        require_place(tmp_path / "no" / "new.csv", overwrite=True)


def test_what_was_there_stays_until_all_is_written(tmp_path):
    target = tmp_path / "labels.csv"
    target.write_text("old")
    with replaced(target) as beside:
        assert beside.suffix == ".csv"
        beside.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    with pytest.raises(OSError, match="disk full"):
        fill_the_disk(target)
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def fill_the_disk(target):
    with replaced(target) as beside:
        beside.write_text("half")
        raise OSError(errno.ENOSPC, "disk full")
