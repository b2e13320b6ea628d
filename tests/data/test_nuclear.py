"""Nuclear channels by their names."""

from __future__ import annotations

import pytest

from cytonym.data.nuclear import is_nuclear, nuclear_channels


@pytest.mark.parametrize(
    "name",
    ["DNA", "DNA1", "dsDNA", "DAPI", "Hoechst 33342", "HH3", "H3", "Histone H3", "Nuc", "Nuclei", "Ir191", "DRAQ5"]
    + ["Nucleus10", "Nucleus 10", "hematoxylin"],
)
def test_nuclear(name):
    assert is_nuclear(name)


@pytest.mark.parametrize(
    "name",
    ["CD3", "CD8", "panCK", "Nucleolin", "pH2AX", "H3K27me3", "Ki67", "BCL6", "IR", "pH3", "phospho-H3"]
    + ["DNAM1", "DNASE1L3", "DNA-PKcs", "Histone H3K27me3", "H3 K27me3", "H3 pS10", "H3-pS10", "Histone H3 phospho"]
    + ["phospho(Ser10)-Histone H3", "Nuclear pore", "FoxP3 (nuclear)", "CD45_nuc"],
)
def test_not_nuclear(name):
    assert not is_nuclear(name)


@pytest.mark.parametrize(
    ("channels", "chosen"),
    [
        (["CD8", "HH3", "dsDNA"], ["HH3"]),
        (["DNA1", "DNA2", "HH3"], ["DNA1", "DNA2"]),
        (["DAPI 1", "DAPI 2", "DAPI 3"], ["DAPI 1"]),
        (["CD8", "pH3"], []),
    ],
)
def test_the_kinds_have_an_order(channels, chosen):
    assert nuclear_channels(channels) == chosen
