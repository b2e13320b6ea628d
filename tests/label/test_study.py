"""What a session makes when it is first asked for."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import cytonym as cy
from cytonym.label import features
from cytonym.label.session import Session

if TYPE_CHECKING:
    import pytest


def test_labelling_does_not_wait_while_a_learner_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    sdata = cy.datasets.tissue_phantom(n_cells=30, size_px=64, rng=0)
    cy.pp.measure_cells(sdata)
    session = Session(sdata, classes=["T", "B"], annotator="maria")
    go, made = threading.Event(), []
    true = features.features_of

    def slow(*given: Any) -> Any:
        made.append(1)
        assert go.wait(20)
        return true(*given)

    monkeypatch.setattr(features, "features_of", slow)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(lambda: session.learner) for _ in range(2)]
        try:
            pool.submit(session.assign, [3], "T").result(timeout=10)
        finally:
            go.set()
        assert asked[0].result() is asked[1].result()
    assert made == [1]
