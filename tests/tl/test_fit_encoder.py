"""What a training of an encoder sees, by which recipe, and what its state belongs to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import cytonym as cy
from cytonym.learning.views import ViewConfig

torch.set_num_threads(1)

FAST = {"steps": 3, "batch_size": 16, "rng": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def trained():
    return cy.tl.fit_encoder(field(), **FAST)


def field(seed=0, order=(0, 1, 2), centers=None):
    """Three channels of different brightness, in whatever order."""
    rng = np.random.default_rng(seed)
    image = rng.poisson(np.array([2, 20, 200])[:, None, None], (3, 48, 48)).astype(np.float32)
    where = rng.uniform(8, 40, (40, 2)) if centers is None else centers
    names = ["A", "B", "C"]
    return cy.io.from_arrays(image[list(order)], centers=where, channels=[names[i] for i in order])


def same(a, b):
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def test_a_model_is_trained_further_on_its_own_channels(trained):
    further = cy.tl.fit_encoder(field(), trained, **FAST)
    assert not same(further, trained)
    flipped = cy.tl.fit_encoder(field(order=(2, 1, 0)), trained, **FAST)
    assert flipped.markers == trained.markers
    assert same(flipped, further)
    both = [cy.tl.fit_encoder([field(), field(1, order)], trained, **FAST) for order in ((0, 1, 2), (1, 2, 0))]
    assert same(*both)


def test_a_model_is_trained_further_on_its_own_panel_only(trained):
    with pytest.raises(ValueError, match=r"Only in the model: \['B'\]; only in the images: \[\]\. `channels` selects"):
        cy.tl.fit_encoder(field(), trained, channels=["C", "A"], **FAST)


CLEARIT = cy.models.ClearITConfig(window_px=16, scale=0.01)


@pytest.mark.parametrize("kind", ["further", "scale"])
def test_a_state_belongs_to_its_cells_and_images(trained, tmp_path, kind):
    model = trained if kind == "further" else CLEARIT
    options = FAST | {"steps": 2, "checkpoint_dir": tmp_path}
    first = cy.tl.fit_encoder(field(), model, **options)
    assert same(cy.tl.fit_encoder(field(), model, **options), first)
    elsewhere = field(centers=np.random.default_rng(9).uniform(8, 40, (40, 2)))
    for other in (field(1), elsewhere, [field(), field(1)]):
        with pytest.raises(ValueError, match="it learned from other images or cells"):
            cy.tl.fit_encoder(other, model, **options)


PAPER = replace(cy.models.PAPER_RECIPE, steps=2, batch_size=16)
SMALL = ViewConfig(window_px=(9,), views_per_size=2)


def test_a_recipe_keeps_its_sizes_of_views(trained, caplog):
    options = {"recipe": PAPER, "rng": 0, "device": "cpu"}
    model = cy.tl.fit_encoder(field(), **options)
    assert model.provenance["views"]["window_px"] == (10, 8, 6)
    assert model.config.window_px == 10
    assert "The views are of" not in caplog.text
    for kept, arguments in ((trained, {}), ("nextmarker", {"size_px": 11})):
        caplog.clear()
        model = cy.tl.fit_encoder(field(), kept, **arguments, **options)
        assert model.provenance["views"]["window_px"] == (10, 8, 6)
        assert model.config.window_px == 11
        assert "The views are of 10 px, the model's windows of 11 px" in caplog.text


def test_views_of_one_size_are_of_the_windows(caplog):
    model = cy.tl.fit_encoder(field(), recipe=replace(PAPER, views=SMALL), rng=0, device="cpu")
    assert model.provenance["views"]["window_px"] == (model.config.window_px,) == (11,)
    assert model.provenance["views"]["views_per_size"] == 2
    assert "The views are of" not in caplog.text
    cy.tl.fit_encoder(field(), views=SMALL, **FAST)
    assert "The views are of 9 px, the model's windows of 11 px" in caplog.text
