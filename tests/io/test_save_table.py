"""A table on disk is replaced whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import cytonym as cy
from cytonym.io import _save_table


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    mask = np.zeros((32, 32), np.int32)
    mask[2:8, 2:8], mask[20:28, 10:20] = 3, 11
    sdata = cy.io.from_arrays(np.ones((2, 32, 32), np.uint8), mask, channels=["DNA", "CD8"])
    sdata["table"].obs["state"] = "old"
    path = tmp_path_factory.mktemp("template") / "tissue.zarr"
    sdata.write(path)
    return path


@pytest.fixture
def store(template, tmp_path):
    return Path(shutil.copytree(template, tmp_path / "tissue.zarr"))


def annotate(path):
    sdata = sd.read_zarr(path)
    table = sdata["table"]
    table.obs["state"] = "new"
    table.obsm["X_model"] = np.arange(6, dtype=np.float32).reshape(2, 3)
    table.obsm["model_attributions"] = pd.DataFrame(
        {"DNA": [1.0, 2.0], "Granzyme B": [0.0, 1.0]}, index=table.obs_names
    )
    return sdata


def states(path):
    return set(sd.read_zarr(path, selection=("tables",))["table"].obs["state"])


def test_replaces_the_table_and_leaves_nothing_else(store):
    sdata = annotate(store)
    before = sorted(p.name for p in store.iterdir())
    cy.io.save_table(sdata)
    read = sd.read_zarr(store)
    assert states(store) == {"new"}
    np.testing.assert_array_equal(read["table"].obsm["X_model"], sdata["table"].obsm["X_model"])
    pd.testing.assert_frame_equal(
        read["table"].obsm["model_attributions"], sdata["table"].obsm["model_attributions"], check_names=False
    )
    assert sorted(p.name for p in store.iterdir()) == before
    assert read.has_consolidated_metadata()


def test_a_new_table_is_added(store):
    sdata = sd.read_zarr(store)
    sdata["other"] = sdata["table"].copy()
    cy.io.save_table(sdata, "other")
    assert set(sd.read_zarr(store).tables) == {"table", "other"}


def test_twice_in_a_row(store):
    sdata = annotate(store)
    cy.io.save_table(sdata)
    sdata["table"].obs["state"] = "newer"
    cy.io.save_table(sdata)
    assert states(store) == {"newer"}


STEPS = ["_write", "_flush", "_forget_consolidated", "_put_in_place", "_exchange"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failure_at_any_step_leaves_a_whole_table(store, monkeypatch, step, when):
    full = (STEPS.index(step) + (when == "after")) % 2  # a full disk and an interrupt take turns
    failure = OSError(errno.ENOSPC, "No space left on device") if full else KeyboardInterrupt()
    sdata = annotate(store)
    original = getattr(_save_table, step)

    def fail(*args):
        if when == "after":
            original(*args)
        raise failure

    monkeypatch.setattr(_save_table, step, fail)
    with pytest.raises(type(failure)):
        cy.io.save_table(sdata)
    expected = "new" if when == "after" and step in {"_put_in_place", "_exchange"} else "old"
    assert states(store) == {expected}
    monkeypatch.undo()
    cy.io.save_table(sdata)  # and the next call succeeds
    assert states(store) == {"new"}


def test_a_killed_process_leaves_a_whole_table(store):
    """`os._exit` runs no clean-up at all."""
    for step in STEPS:
        child = os.fork()
        if child == 0:
            sdata = annotate(store)
            setattr(_save_table, step, lambda *_: os._exit(9))
            cy.io.save_table(sdata)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 9
        assert states(store) == {"old"}
    cy.io.save_table(annotate(store))
    assert states(store) == {"new"}
    assert not list(Path(store).glob(".cytonym-*"))


def test_a_file_system_that_takes_no_more_leaves_the_old_table(store):
    """Writes fail for real: the process may not write files of more than a few kilobytes."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        sdata = annotate(store)
        sdata["table"].obsm["X_large"] = np.random.default_rng(0).random((2, 50_000))
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            cy.io.save_table(sdata)
        except OSError:
            os._exit(7)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert states(store) == {"old"}
    assert not list(Path(store).glob(".cytonym-*"))


def test_without_an_exchange_a_whole_table_is_always_there(store, monkeypatch):
    sdata = annotate(store)
    monkeypatch.setattr(_save_table, "_exchange", lambda *_: False)
    rename, seen = Path.rename, []

    def watched(self, target):
        result = rename(self, target)
        seen.append({t.obs["state"].iloc[0] for t in sd.read_zarr(store).tables.values()})
        return result

    monkeypatch.setattr(Path, "rename", watched)
    cy.io.save_table(sdata)
    monkeypatch.undo()
    assert len(seen) == 3
    assert all(seen)
    assert states(store) == {"new"}


def test_whoever_saves_meanwhile_waits(store, monkeypatch):
    """Else the second one takes the folder away in which the first one builds its table."""
    first, second = annotate(store), annotate(store)
    second["table"].obs["state"] = "newer"
    other = threading.Thread(target=cy.io.save_table, args=(second,))
    put = _save_table._put_in_place

    def interrupted(new, place):
        if not other.ident:
            other.start()
            other.join(1)
            assert other.is_alive()
            assert states(store) == {"old"}
        put(new, place)

    monkeypatch.setattr(_save_table, "_put_in_place", interrupted)
    cy.io.save_table(first)
    other.join()
    assert states(store) == {"newer"}
    assert not list(store.glob(".cytonym-*"))
    assert not list(store.parent.glob("*.lock"))


def test_without_locks_the_folder_of_somebody_else_stays(store, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    other = store / ".cytonym-other"
    other.mkdir()
    cy.io.save_table(annotate(store))
    assert states(store) == {"new"}
    assert other.exists()


def test_says_what_is_missing(store):
    sdata = sd.read_zarr(store)
    with pytest.raises(KeyError, match=r"No table 'cells' in `sdata.tables`. Available: \['table'\]"):
        cy.io.save_table(sdata, "cells")
    with pytest.raises(ValueError, match="no store on disk"):
        cy.io.save_table(cy.io.from_arrays(np.ones((1, 8, 8)), channels=["a"], centers=[[4, 4]]))
