"""A trained model as the verbs are given it."""

import pytest

import cytonym as cy
from cytonym.models import Nimbus, NimbusConfig
from cytonym.tl._loading import trained


def asked(model, **settings):
    return trained(model, Nimbus, "scorer", **{"advice": "Pass one.", "shipped": "compact", **settings})


@pytest.fixture
def scorer():
    return Nimbus(config=NimbusConfig(filters=2, depth=2))


def test_an_object_is_taken_as_it_is_and_a_checkpoint_is_loaded(scorer, tmp_path):
    assert asked(scorer) is scorer
    cy.models.save(scorer, tmp_path / "scorer")
    found = asked(str(tmp_path / "scorer"))
    assert found.config == scorer.config


@pytest.mark.parametrize(
    ("model", "error", "said"),
    [
        (3, TypeError, "`model` must be 'compact', a scorer or the folder of a checkpoint, got int."),
        ("nimbus", ValueError, "'nimbus' names a method. Pass one."),
        ("compct", ValueError, "'compct' is neither 'compact' nor the folder of a checkpoint."),
        ("no/folder", FileNotFoundError, "no/folder"),
    ],
)
def test_what_is_no_model_is_said(model, error, said):
    with pytest.raises(error) as caught:
        asked(model)
    assert said in str(caught.value)


def test_models_of_another_kind_are_refused(scorer, tmp_path):
    cy.models.save(scorer, tmp_path / "scorer")
    with pytest.raises(ValueError, match=r"holds a nimbus, but an encoder is needed here \(`tl.fit_encoder`\)\."):
        trained(tmp_path / "scorer", cy.models.NeXtMarker, "encoder", advice="", makers="`tl.fit_encoder`")
