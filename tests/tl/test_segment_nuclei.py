"""Nuclei of class maps: labels and a table."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import Scale

import cytonym as cy
from cytonym.data.class_map import default_size
from cytonym.data.source import resolve
from cytonym.data.stains import separate_stains, summed_density

CHANNELS = ("positive", "border", "negative")


def mapped(pixels, *, channels=CHANNELS, pixel_size=None, name="map_image", **more):
    place = None if pixel_size is None else {"global": Scale([pixel_size, pixel_size], axes=("x", "y"))}
    images = {
        key: Image2DModel.parse(
            planes, dims=("c", "y", "x"), c_coords=list(names), transformations=None if place is None else dict(place)
        )
        for key, (planes, names) in {name: (pixels, channels), **more}.items()
    }
    return SpatialData(images=images)


def squares():
    """Red of 12, blue of 10, and blue of 3 pixels a side."""
    pixels = np.zeros((3, 200, 240), np.uint8)
    pixels[0, 55:67, 60:72] = 255
    pixels[2, 120:130, 180:190] = 255
    pixels[2, 190:193, 5:8] = 255
    return pixels


def test_writes_labels_and_a_table():
    sdata = mapped(squares(), pixel_size=0.25)
    cy.tl.segment_nuclei(sdata)
    table = sdata["table"]
    assert table.obs["region"].tolist() == ["nuclei"] * 2
    assert table.obs["ihc_class"].tolist() == ["positive", "negative"]
    assert table.obs["area"].tolist() == [144, 100]
    assert table.obs["area_um2"].tolist() == [9, 6.25]
    assert set(table.obs) == {"region", "instance_id", "ihc_class", "area", "area_um2"}
    np.testing.assert_allclose(table.obsm["spatial"], [[16.5, 15.25], [46.25, 31.25]])
    labels = sdata["nuclei"].values
    assert set(np.unique(labels)) == {0, *table.obs["instance_id"]}
    assert (labels > 0).sum() == 244
    params = table.uns["segment_nuclei"]["params"]["nuclei"]
    assert params["resolution"] == "40x"
    assert params["size_thresh"] == default_size(np.array([144, 100, 9]))


@pytest.mark.parametrize("tile_px", [64, 65, 100])
def test_nuclei_across_tiles_are_whole(tile_px):
    rng = np.random.default_rng(0)
    pixels = squares()
    pixels[0, 30:170, 90:98] = 200  # across many tiles, with holes
    pixels[0, 63:66, 92:95] = 0
    pixels[2, 60:68, 20:230] = 180
    pixels[1, 100:140, 60:80] = 200
    marker = rng.integers(0, 256, (1, 200, 240)).astype(np.uint8)
    rgb = rng.integers(50, 256, (3, 200, 240)).astype(np.uint8)
    more = {"rgb_image": (rgb, ("r", "g", "b")), "marker_image": (marker, ("Ki67",))}
    tables = []
    for side in (tile_px, 1024):
        sdata = mapped(pixels, **more)
        cy.tl.segment_nuclei(
            sdata, tile_px=side, image_key="rgb_image", marker_key="marker_image", marker_thresh="default"
        )
        tables.append((sdata["table"].obs, sdata["nuclei"].values))
    assert tables[0][0].equals(tables[1][0])
    np.testing.assert_array_equal(tables[0][1], tables[1][1])


def test_measures_what_the_pixels_say():
    rng = np.random.default_rng(1)
    pixels = squares()
    marker = rng.integers(0, 200, (2, 200, 240)).astype(np.uint16)
    rgb = rng.integers(50, 256, (3, 200, 240)).astype(np.uint8)
    sdata = mapped(pixels, rgb_image=(rgb, ("r", "g", "b")), marker_image=(marker, ("Ki67", "other")))
    cy.tl.segment_nuclei(sdata, image_key="rgb_image", marker_key="marker_image", marker_channel="Ki67")
    obs = sdata["table"].obs
    white = np.quantile(rgb, 0.95, axis=(1, 2), method="inverted_cdf")
    dab, density = separate_stains(rgb, white)[1], summed_density(rgb)
    for row in obs.itertuples():
        inside = sdata["nuclei"].values == row.instance_id
        assert row.marker_max == marker[0][inside].max()
        assert row.optical_density == pytest.approx(density[inside].mean() / 100)
        assert row.dab_density == pytest.approx(dab[inside].mean(), abs=1e-4)


def test_published_counts_through_the_verb(parity):
    import runpy
    from pathlib import Path

    parity("deepliif_postprocess")
    folder = runpy.run_path(str(Path(__file__).parents[1] / "conftest.py"))["PARITY"] / "deepliif_postprocess"
    told = json.loads((folder / "scores.json").read_text())["synth_1"]
    seg, ihc, marker = (
        np.atleast_3d(np.asarray(Image.open(folder / f"synth_1_{name}.png"))).transpose(2, 0, 1)
        for name in ("seg", "ihc", "marker_max")
    )
    for setting in ("s120", "s150_marker_50_size20", "marker_default", "od_60_250", "s120@10x", "large_default@20x"):
        sdata = mapped(seg, ihc_image=(ihc, ("r", "g", "b")), marker_image=(marker, ("marker",)))
        expected = told[setting]
        arguments = {"size_thresh": "default"} | expected["kwargs"]
        marked = {} if setting.startswith("od_") else {"marker_key": "marker_image"}
        cy.tl.segment_nuclei(
            sdata, image_key="ihc_image", resolution=expected["resolution"], tile_px=64, **arguments, **marked
        )
        obs = sdata["table"].obs
        assert len(obs) == expected["num_total"]
        assert (obs["ihc_class"] == "positive").sum() == expected["num_pos"]


# ------------------------------------------------------------------------------------------------------ touching nuclei
def dumbbells():
    """A single disc, and two that touch, one of them red for the most part."""
    pixels = np.zeros((3, 90, 160), np.uint8)
    y, x = np.mgrid[:90, :160]
    for cy_, cx, plane in ((30, 30, 2), (60, 90, 2), (60, 109, 0)):
        pixels[:, (y - cy_) ** 2 + (x - cx) ** 2 <= 100] = 0
        pixels[plane, (y - cy_) ** 2 + (x - cx) ** 2 <= 100] = 255
    return pixels


@pytest.mark.parametrize("tile_px", [64, 1024])
def test_watershed_splits_touching_nuclei(tile_px):
    pixels = dumbbells()
    rgb = np.random.default_rng(0).integers(60, 250, (3, 90, 160)).astype(np.uint8)
    marker = np.zeros((1, 90, 160), np.uint8)
    marker[0, 60, 90] = 77
    sdata = mapped(pixels, ihc_image=(rgb, ("r", "g", "b")), marker_image=(marker, ("marker",)))
    known = {"image_key": "ihc_image", "marker_key": "marker_image", "tile_px": tile_px}
    cy.tl.segment_nuclei(sdata, **known)
    assert len(sdata["table"]) == 2
    whole = sdata["nuclei"].values > 0
    cy.tl.segment_nuclei(sdata, watershed=True, **known)
    table, labels = sdata["table"], sdata["nuclei"].values
    np.testing.assert_array_equal(labels > 0, whole)
    assert len(table) == 3
    assert sorted(table.obs["ihc_class"]) == ["negative", "negative", "positive"]
    density = summed_density(rgb)
    for row in table.obs.itertuples():
        inside = labels == row.instance_id
        assert row.area == inside.sum() > 250
        assert row.optical_density == pytest.approx(density[inside].mean() / 100)
        assert row.marker_max == marker[0][inside].max()
    at = np.round(table.obsm["spatial"]).astype(int)
    assert {tuple(p) for p in at} >= {(30, 30)} or {tuple(p) for p in at} >= {(31, 31)}
    assert labels[60, 85] != labels[60, 114]


def test_watershed_leaves_single_nuclei_alone():
    sdata = mapped(squares())
    cy.tl.segment_nuclei(sdata)
    before = sdata["table"].obs.copy()
    cy.tl.segment_nuclei(sdata, watershed=True)
    assert sdata["table"].obs.equals(before)


# ---------------------------------------------------------------------------------------------------------- defaults
def test_magnification_follows_the_pixel_size(caplog):
    for size, expected in ((0.25, "40x"), (0.5, "20x"), (1.0, "10x")):
        sdata = mapped(squares(), pixel_size=size)
        cy.tl.segment_nuclei(sdata)
        assert sdata["table"].uns["segment_nuclei"]["params"]["nuclei"]["resolution"] == expected
    with caplog.at_level(logging.INFO, logger="cytonym"):
        cy.tl.segment_nuclei(mapped(squares()))
    assert "40x is assumed" in caplog.text


def test_small_nuclei_of_the_classical_model_are_kept(stained):
    sdata, centers, positive = stained(diameter=8, step=20)
    cy.tl.translate_stain(sdata, diameter_px=8)
    cy.tl.segment_nuclei(sdata)
    assert len(sdata["table"]) == len(centers)
    assert (sdata["table"].obs["ihc_class"] == "positive").sum() == positive.sum()
    assert {"optical_density", "dab_density"} <= set(sdata["table"].obs)
    with pytest.raises(ValueError, match="No nucleus found"):
        cy.tl.segment_nuclei(sdata, size_thresh=1000)
    assert len(sdata["table"]) == len(centers)


def test_a_map_that_somebody_else_drew_is_taken_by_name():
    sdata = mapped(squares(), channels=("r", "g", "b"))
    with pytest.raises(ValueError, match="No class map among the images"):
        cy.tl.segment_nuclei(sdata)
    cy.tl.segment_nuclei(sdata, class_map_key="map_image")
    assert len(sdata["table"]) == 2


def test_again_with_other_settings_replaces():
    sdata = mapped(squares())
    cy.tl.segment_nuclei(sdata)
    cy.tl.segment_nuclei(sdata, size_thresh=None)
    assert len(sdata["table"]) == 3
    assert len(np.unique(sdata["nuclei"].values)) == 4


def pyramid(section, pixel_size=None):
    """A section with a level of half its resolution, and its marker, brighter to the right."""
    rgb = section()[0].repeat(2, axis=1).repeat(2, axis=2)
    marker = np.broadcast_to(np.arange(400).astype(np.uint8), (1, 320, 400))
    place = None if pixel_size is None else {"global": Scale([pixel_size] * 2, axes=("x", "y"))}
    images = {
        name: Image2DModel.parse(
            pixels, dims=("c", "y", "x"), c_coords=names, transformations=place and dict(place), scale_factors=[2]
        )
        for name, pixels, names in (("ihc_image", rgb, ["r", "g", "b"]), ("ihc_marker", marker.copy(), ["Ki67"]))
    }
    return SpatialData(images=images)


@pytest.mark.parametrize(("pixel_size", "resolution"), [(None, "40x"), (0.25, "20x")])
def test_maps_of_a_coarse_level_are_measured_on_it(pixel_size, resolution, section):
    sdata = pyramid(section, pixel_size)
    cy.tl.translate_stain(sdata, scale="scale1", diameter_px=14)
    made = sdata.attrs["translate_stain"]["ihc_class_map"]
    known = None if pixel_size is None else 2 * pixel_size
    assert (made["level"], made["image_pixel_size"]) == ("scale1", known)
    cy.tl.segment_nuclei(sdata, marker_key="ihc_marker")
    table = sdata["table"]
    params = table.uns["segment_nuclei"]["params"]["nuclei"]
    assert (params["resolution"], params["image"]) == (resolution, "ihc_image")
    rgb = sdata["ihc_image"]["scale1"]["image"].values
    marker = sdata["ihc_marker"]["scale1"]["image"].values[0]
    dab = separate_stains(rgb, made["white"])[1]
    for row in table.obs.itertuples():
        inside = sdata["nuclei"].values == row.instance_id
        assert row.dab_density == pytest.approx(dab[inside].mean(), abs=1e-4)
        assert row.marker_max == marker[inside].max()
    if pixel_size is None:
        assert "area_um2" not in table.obs
    else:
        np.testing.assert_allclose(table.obs["area_um2"], table.obs["area"] * known**2)
    before = table.obs.copy()
    cy.tl.segment_nuclei(sdata, image_key="ihc_image", marker_key="ihc_marker")
    assert sdata["table"].obs.equals(before)
    del sdata.images["ihc_image"]
    cy.tl.segment_nuclei(sdata)
    assert sdata["table"].uns["segment_nuclei"]["params"]["nuclei"]["resolution"] == resolution
    assert ("area_um2" in sdata["table"].obs) == (pixel_size is not None)


def test_a_map_that_its_image_has_no_level_for_is_told(caplog, section):
    sdata = pyramid(section)
    cy.tl.translate_stain(sdata, scale="scale1", diameter_px=14)
    sdata["ihc_image"] = sdata.images.pop("ihc_image")["scale0"]["image"]
    cy.tl.segment_nuclei(sdata)
    assert "ihc_image lies on other pixels than ihc_class_map, so there are no optical densities" in caplog.text
    assert "dab_density" not in sdata["table"].obs


def two_maps():
    """A nucleus in each, that of the second paler."""
    drawn = np.zeros((3, 64, 64), np.uint8)
    drawn[0, 5:15, 5:15] = 255
    return mapped(drawn, name="a_class_map", b_class_map=(drawn // 2, CHANNELS))


def test_a_map_that_has_become_empty_keeps_no_labels():
    sdata = two_maps()
    cy.tl.segment_nuclei(sdata)
    assert set(sdata.labels) == {"a_nuclei", "b_nuclei"}
    cy.tl.segment_nuclei(sdata, seg_thresh=200)
    assert set(sdata.labels) == {"a_nuclei"}
    assert set(sdata["table"].obs["region"]) == {"a_nuclei"}


def test_an_interruption_leaves_what_was_there(monkeypatch):
    from cytonym.tl import _segment_nuclei

    sdata = mapped(squares())
    cy.tl.segment_nuclei(sdata)
    labels, table = sdata["nuclei"], sdata["table"]
    for name in ("find_cells_of_map", "open_table"):
        with monkeypatch.context() as patch:
            patch.setattr(_segment_nuclei, name, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                cy.tl.segment_nuclei(sdata, size_thresh=None)
        assert sdata["nuclei"] is labels
        assert sdata["table"] is table


def test_centres_are_those_of_the_labels():
    sdata = mapped(dumbbells(), pixel_size=0.3)
    cy.tl.segment_nuclei(sdata, watershed=True)
    [source] = resolve(sdata, image_key="map_image", labels_key="nuclei")
    assert sdata["table"].obs["instance_id"].tolist() == source.instance_ids.tolist()
    np.testing.assert_allclose(sdata["table"].obsm["spatial"], source.spatial)


# ----------------------------------------------------------------------------------------------------------- bad input
def test_labels_of_others_are_not_replaced():
    sdata = mapped(squares())
    sdata["nuclei"] = Labels2DModel.parse(np.ones((200, 240), np.int32), dims=("y", "x"))
    with pytest.raises(ValueError, match=r"Labels \['nuclei'\] are there already, and the table 'table' does not tell"):
        cy.tl.segment_nuclei(sdata)
    assert (sdata["nuclei"].values == 1).all()
    cy.tl.segment_nuclei(sdata, key_added="found")
    assert len(sdata["table"]) == 2


def test_a_table_of_others_is_not_replaced():
    sdata = mapped(squares())
    cy.tl.segment_nuclei(sdata, key_added="old")
    with pytest.raises(ValueError, match=r"annotates \['old'\].*`table_key`"):
        cy.tl.segment_nuclei(sdata)
    cy.tl.segment_nuclei(sdata, table_key="second")
    with pytest.raises(ValueError, match=r"annotated by the tables \['second'\]"):
        cy.tl.segment_nuclei(sdata, table_key="third")
    assert set(sdata.tables) == {"table", "second"}


def test_images_must_lie_on_the_map():
    small = (np.zeros((1, 50, 50), np.uint8), ("marker",))
    sdata = mapped(squares(), marker_image=small)
    with pytest.raises(ValueError, match="`marker_key` must lie on the pixels.*50 x 50"):
        cy.tl.segment_nuclei(sdata, marker_key="marker_image")
    with pytest.raises(ValueError, match="names 2 images for 1 class maps"):
        cy.tl.segment_nuclei(sdata, marker_key=["marker_image", "marker_image"])
    assert not sdata.tables


def test_nan_in_the_marker_is_told():
    marker = np.zeros((1, 200, 240), np.float32)
    marker[0, 60, 65] = np.nan
    sdata = mapped(squares(), marker_image=(marker, ("marker",)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        cy.tl.segment_nuclei(sdata, marker_key="marker_image")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": "63x"}, "must be one of"),
        ({"size_thresh": "automatic"}, "a number, None or 'default'"),
        ({"marker_thresh": "default"}, "needs a marker image"),
        ({"marker_thresh": 50}, "needs a marker image"),
        ({"seg_thresh": "default"}, "`seg_thresh` must be a number, got 'default'"),
        ({"seg_thresh": float("nan")}, "`seg_thresh` must be a number, got nan"),
        ({"noise_thresh": None}, "`noise_thresh` must be a number, got None"),
        ({"size_thresh_upper": "default"}, "`size_thresh_upper` must be a number or None, got 'default'"),
        ({"size_thresh": 50, "size_thresh_upper": 51}, "No size is above `size_thresh`, 50, and below"),
        ({"key_added": "a/b"}, "'a/b' cannot name an element of a store"),
        ({"table_key": "a b"}, "'a b' cannot name an element of a store"),
        ({"od_thresh_lower": 5}, "need the image that was stained"),
        ({"seg_thresh": 600}, "No nucleus found"),
        ({"tile_px": 3}, "at least 64"),
    ],
)
def test_settings_that_have_no_meaning(settings, message):
    sdata = mapped(squares())
    with pytest.raises(ValueError, match=message):
        cy.tl.segment_nuclei(sdata, **settings)
    assert not sdata.labels
    assert not sdata.tables


def test_an_image_of_a_section_is_no_class_map(stained):
    sdata, _, _ = stained()
    with pytest.raises(ValueError, match="'ihc_image' is no class map, which is red, green and blue on black"):
        cy.tl.segment_nuclei(sdata, class_map_key="ihc_image")
    assert not sdata.labels


def test_a_map_of_16_bits_is_refused():
    with pytest.raises(ValueError, match="must hold 8 bits"):
        cy.tl.segment_nuclei(mapped(squares().astype(np.uint16)))
