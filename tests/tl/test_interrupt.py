"""A training that is interrupted goes on where it stopped and ends at the same weights."""

from __future__ import annotations

import pytest
import torch

import cytonym as cy

torch.set_num_threads(1)


def test_interrupt_during_training_resumes(tissue, tmp_path, monkeypatch):
    arguments = {"steps": 6, "batch_size": 8, "rng": 1}
    expected = cy.tl.fit_encoder(tissue(), **arguments)

    loss, calls = cy.models.NeXtMarker.loss, []

    def interrupted(self, views):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return loss(self, views)

    monkeypatch.setattr(cy.models.NeXtMarker, "loss", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        cy.tl.fit_encoder(tissue(), checkpoint_dir=tmp_path, **arguments)
    monkeypatch.undo()

    resumed = cy.tl.fit_encoder(tissue(), checkpoint_dir=tmp_path, **arguments)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    assert [row["step"] for row in resumed.history] == [row["step"] for row in expected.history]
