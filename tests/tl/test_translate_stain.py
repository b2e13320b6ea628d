"""Stains and class maps of brightfield images."""

from __future__ import annotations

import logging

import dask.array as da
import numpy as np
import pytest
import zarr
from skimage.data import immunohistochemistry
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel, get_channel_names
from spatialdata.transformations import Affine, Scale, Sequence, Translation, get_transformation

import cytonym as cy
from cytonym.data import pixel_store


def image(rgb, channels=("r", "g", "b"), place=None, **kwargs):
    transformations = None if place is None else {"global": place}
    element = Image2DModel.parse(
        rgb, dims=("c", "y", "x"), c_coords=list(channels), transformations=transformations, **kwargs
    )
    return SpatialData(images={"ihc_image": element})


def test_makes_named_images_where_the_image_is(stained):
    sdata, centers, positive = stained(pixel_size=0.5)
    cy.tl.translate_stain(sdata, diameter_um=7)
    stains, drawn = sdata["ihc_stains"], sdata["ihc_class_map"]
    assert list(get_channel_names(stains)) == ["hematoxylin", "DAB"]
    assert list(get_channel_names(drawn)) == ["positive", "border", "negative"]
    assert (stains.dtype, drawn.dtype) == (np.float32, np.uint8)
    for element in (stains, drawn):
        assert get_transformation(element) == get_transformation(sdata["ihc_image"])
    brown = drawn.values[0][tuple(centers.astype(int).T)] > 0
    blue = drawn.values[2][tuple(centers.astype(int).T)] > 0
    np.testing.assert_array_equal(brown, positive)
    np.testing.assert_array_equal(blue, ~positive)
    dab = stains.sel(c="DAB").values[tuple(centers.astype(int).T)]
    assert dab[positive].min() > 0.5
    assert dab[~positive].max() < 0.05
    told = sdata.attrs["translate_stain"]["ihc_class_map"]
    assert told["image"] == "ihc_image"
    assert told["diameter_px"] == 14
    assert np.abs(np.subtract(told["white"], [230, 226, 231])).max() <= 4


@pytest.mark.parametrize(
    "place",
    [
        Scale([0.3, 0.3], axes=("x", "y")),
        Sequence([Scale([-0.5, 0.5], axes=("x", "y")), Translation([100, 7], axes=("x", "y"))]),
        Affine([[0, 0.4, 3], [0.4, 0, 5], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y")),
    ],
    ids=["scale", "flip", "turn"],
)
def test_goes_wherever_the_image_goes(place, section):
    rgb, centers, _ = section()
    sdata = image(rgb, place=place)
    cy.tl.translate_stain(sdata, diameter_px=14)
    cy.tl.segment_nuclei(sdata)
    matrix = place.to_affine_matrix(("x", "y"), ("x", "y"))
    expected = centers[:, ::-1] @ matrix[:2, :2].T + matrix[:2, 2]
    found = sdata["table"].obsm["spatial"]
    assert len(found) == len(expected)
    nearest = np.hypot(*(expected[:, None] - found[None]).transpose(2, 0, 1)).min(axis=1)
    assert nearest.max() < 1 * np.sqrt(abs(np.linalg.det(matrix[:2, :2])))


@pytest.mark.parametrize("tile_px", [64, 97])
def test_tiles_leave_no_seam(tile_px):
    """On a real section, whose pixels are as they are."""
    made = []
    for side in (tile_px, 1024):
        sdata = image(immunohistochemistry()[:300, :330].transpose(2, 0, 1))
        cy.tl.translate_stain(sdata, tile_px=side, diameter_px=11)
        cy.tl.segment_nuclei(sdata, tile_px=side)
        made.append(sdata)
    for key in ("ihc_stains", "ihc_class_map", "nuclei"):
        np.testing.assert_array_equal(made[0][key].values, made[1][key].values)
    assert made[0]["table"].obs.equals(made[1]["table"].obs)
    assert made[0]["table"].n_obs > 100


def test_however_the_pixels_are_stored(tmp_path, section):
    rgb, _, _ = section()
    stored = zarr.create_array(tmp_path / "pixels.zarr", shape=rgb.shape, dtype="u1", chunks=(3, 50, 70))
    stored[:] = rgb
    expected = None
    for pixels in (rgb, da.from_zarr(stored), da.from_array(rgb, chunks=(1, 61, 200)) + np.uint8(0)):
        sdata = image(pixels)
        cy.tl.translate_stain(sdata, diameter_px=14, tile_px=64)
        found = sdata["ihc_class_map"].values
        expected = found if expected is None else expected
        np.testing.assert_array_equal(found, expected)


def test_large_results_are_compressed_or_go_to_a_folder(tmp_path, monkeypatch, stained):
    plain, _, _ = stained()
    cy.tl.translate_stain(plain, diameter_px=14)
    monkeypatch.setattr(pixel_store, "PLAIN_BYTES", 100)
    for out in (None, tmp_path / "out"):
        sdata, _, _ = stained()
        cy.tl.translate_stain(sdata, diameter_px=14, out=out)
        cy.tl.segment_nuclei(sdata, out=out)
        assert isinstance(sdata["ihc_stains"].data, da.Array)
        for key in ("ihc_stains", "ihc_class_map"):
            np.testing.assert_array_equal(sdata[key].values, plain[key].values)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["ihc_nuclei.zarr", "ihc_translation"]
    made = sorted(p.name for p in (tmp_path / "out" / "ihc_translation").iterdir())
    assert made == ["class_map.zarr", "progress.txt", "stains.zarr"]


def test_goes_on_after_an_interruption(tmp_path, monkeypatch, stained):
    from cytonym.tl import _translators

    whole, _, _ = stained()
    cy.tl.translate_stain(whole, diameter_px=14)
    made = []
    draw = _translators.class_map_of_stains

    def drawn(stains, rules):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(stains.shape)
        return draw(stains, rules)

    settings = {"diameter_px": 14, "tile_px": 64, "out": tmp_path}
    monkeypatch.setattr(_translators, "class_map_of_stains", drawn)
    sdata, _, _ = stained()
    with pytest.raises(KeyboardInterrupt):
        cy.tl.translate_stain(sdata, **settings)
    assert list(sdata.images) == ["ihc_image"]
    made.clear()
    monkeypatch.setattr(_translators, "class_map_of_stains", lambda *a: made.append(0) or draw(*a))
    cy.tl.translate_stain(sdata, **settings)
    assert len(made) == 12 - 5
    for key in ("ihc_stains", "ihc_class_map"):
        np.testing.assert_array_equal(sdata[key].values, whole[key].values)
    made.clear()
    again, _, _ = stained()
    cy.tl.translate_stain(again, **settings)  # complete: nothing is made
    assert not made
    np.testing.assert_array_equal(again["ihc_class_map"].values, whole["ihc_class_map"].values)


def test_goes_on_with_pixels_that_are_stored_in_another_way(tmp_path, monkeypatch, section):
    """Tiles follow the chunks of the image, and pieces the tiles."""
    from cytonym.tl import _translators

    rgb, _, _ = section()
    whole = image(rgb)
    cy.tl.translate_stain(whole, diameter_px=14)
    made = []
    draw = _translators.class_map_of_stains

    def drawn(stains, rules):
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(0)
        return draw(stains, rules)

    stored = zarr.create_array(tmp_path / "pixels.zarr", shape=rgb.shape, dtype="u1", chunks=(3, 64, 64))
    stored[:] = rgb
    settings = {"diameter_px": 14, "tile_px": 64, "out": tmp_path / "out"}
    monkeypatch.setattr(_translators, "class_map_of_stains", drawn)
    with pytest.raises(KeyboardInterrupt):
        cy.tl.translate_stain(image(da.from_zarr(stored)), **settings)
    monkeypatch.undo()
    sdata = image(rgb)
    cy.tl.translate_stain(sdata, **settings)
    for key in ("ihc_stains", "ihc_class_map"):
        np.testing.assert_array_equal(sdata[key].values, whole[key].values)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ihc_translation"]


def test_an_interrupted_run_with_other_settings_is_no_beginning(tmp_path, monkeypatch, stained):
    from cytonym.tl import _translators

    sdata, _, _ = stained()
    monkeypatch.setattr(_translators, "class_map_of_stains", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cy.tl.translate_stain(sdata, diameter_px=14, out=tmp_path)
    with (tmp_path / "ihc_translation" / "progress.txt").open("a") as file:
        file.write("\n0 0 160 200 done\n5 7 9 9 do")  # cut off while writing
    monkeypatch.undo()
    for other in ({"diameter_px": 13}, {"diameter_px": 14, "class_map": False}):
        cy.tl.translate_stain(sdata, **other, out=tmp_path)
        again, _, _ = stained()
        cy.tl.translate_stain(again, **other)
        np.testing.assert_array_equal(sdata["ihc_stains"].values, again["ihc_stains"].values)
        assert sdata["ihc_stains"].values.any()


def test_objects_that_share_a_folder_keep_their_pixels(tmp_path, section):
    """Of other images, of one name or not, or with other settings; and so do the stores of others."""
    cy.io.from_arrays(section()[0], channels=["r", "g", "b"]).write(tmp_path / "ihc_translation")
    cy.io.from_arrays(section()[0], channels=["r", "g", "b"]).write(tmp_path / "ihc_nuclei.zarr")
    first, _, _ = section()
    objects = []
    for rgb, threshold in ((first, 0.07), (first[:, ::-1].copy(), 0.07), (first, 0.3)):
        sdata = image(rgb)
        cy.tl.translate_stain(sdata, diameter_px=14, dab_threshold=threshold, out=tmp_path)
        cy.tl.segment_nuclei(sdata, out=tmp_path)
        objects.append((sdata, rgb, threshold))
    other = SpatialData(images={"b_image": objects[1][0]["ihc_image"]})
    cy.tl.translate_stain(other, diameter_px=14, out=tmp_path)
    cy.tl.segment_nuclei(other, out=tmp_path)
    for sdata, rgb, threshold in objects:
        alone = image(rgb)
        cy.tl.translate_stain(alone, diameter_px=14, dab_threshold=threshold)
        cy.tl.segment_nuclei(alone)
        for key in ("ihc_stains", "ihc_class_map", "nuclei"):
            np.testing.assert_array_equal(sdata[key].values, alone[key].values)
    names = {path.name for path in tmp_path.iterdir()}
    kinds = {f"ihc_translation{n}" for n in ("", "_2", "_3", "_4")}
    kinds |= {f"ihc_nuclei{n}.zarr" for n in ("", "_2", "_3", "_4")}
    assert names == {*kinds, "b_translation", "b_nuclei.zarr"}
    for store in ("ihc_translation", "ihc_nuclei.zarr"):
        np.testing.assert_array_equal(read_zarr(tmp_path / store)["image"].values, first)


def test_labels_that_are_not_finished_go(tmp_path, monkeypatch, stained):
    from cytonym.tl import _class_maps

    sdata, _, _ = stained()
    cy.tl.translate_stain(sdata, diameter_px=14)
    with pytest.raises(ValueError, match="No nucleus found"):
        cy.tl.segment_nuclei(sdata, seg_thresh=600, out=tmp_path)
    monkeypatch.setattr(_class_maps, "call_cells", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cy.tl.segment_nuclei(sdata, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_levels(monkeypatch, section):
    from cytonym.tl import _translate_stain

    rgb, _, _ = section()
    sdata = image(rgb, scale_factors=[2])
    cy.tl.translate_stain(sdata, diameter_px=14, scale_factors=[2, 2])
    assert list(sdata["ihc_stains"].children) == ["scale0", "scale1", "scale2"]
    cy.tl.translate_stain(sdata, scale="scale1", diameter_px=7)
    assert sdata["ihc_stains"].shape == (2, 80, 100)
    cy.tl.segment_nuclei(sdata)
    half = sdata["table"].obsm["spatial"]
    monkeypatch.setattr(_translate_stain, "LARGE_PX", 5_000)
    cy.tl.translate_stain(sdata, diameter_px=14)
    assert list(sdata["ihc_class_map"].children) == ["scale0", "scale1", "scale2"]
    cy.tl.segment_nuclei(sdata)
    assert len(sdata["table"].obsm["spatial"]) == len(half)
    apart = np.hypot(*(half[:, None] - sdata["table"].obsm["spatial"][None]).transpose(2, 0, 1))
    assert apart.min(axis=1).max() < 1.5


def test_survives_the_disk(tmp_path, stained):
    sdata, _, _ = stained(pixel_size=0.5)
    cy.tl.translate_stain(sdata)
    cy.tl.segment_nuclei(sdata)
    before = sdata["table"].obs.copy()
    sdata.write(tmp_path / "store.zarr")
    back = read_zarr(tmp_path / "store.zarr")
    assert dict(back.attrs["translate_stain"]["ihc_stains"])["image"] == "ihc_image"
    cy.tl.segment_nuclei(back)
    assert back["table"].obs.equals(before)
    cy.tl.translate_stain(back)  # again, in place of the old ones
    assert list(back.images) == ["ihc_class_map", "ihc_image", "ihc_stains"] or len(back.images) == 3


def test_several_images_and_one_without_its_pixel_size(caplog, section):
    first, _, _ = section()
    second, _, _ = section(seed=1)
    parts = {}
    for name, rgb in (("a", first), ("b", second)):
        parts[f"{name}_image"] = Image2DModel.parse(rgb, dims=("c", "y", "x"), c_coords=["r", "g", "b"])
    sdata = SpatialData(images=parts)
    with caplog.at_level(logging.INFO, logger="cytonym"):
        cy.tl.translate_stain(sdata)
    assert "a_image, b_image: pixel size unknown; nuclei look" in caplog.text
    diameters = {sdata.attrs["translate_stain"][f"{name}_stains"]["diameter_px"] for name in "ab"}
    assert len(diameters) == 1
    assert 9 < diameters.pop() < 22
    cy.tl.segment_nuclei(sdata)
    assert set(sdata["table"].obs["region"]) == {"a_nuclei", "b_nuclei"}


def test_class_map_may_be_left_out(stained):
    sdata, _, _ = stained()
    cy.tl.translate_stain(sdata, class_map=False)
    assert set(sdata.images) == {"ihc_image", "ihc_stains"}


# ----------------------------------------------------------------------------------------------------------- bad input
def test_names_of_channels_and_transparency(caplog, section):
    rgb, _, _ = section()
    expected = image(rgb)
    cy.tl.translate_stain(expected, diameter_px=14)
    alpha = np.concatenate([rgb, np.full((1, *rgb.shape[1:]), 255, np.uint8)])
    for pixels, names in ((rgb[::-1], ("Blue", "Green", "Red")), (alpha, ("r", "g", "b", "a")), (alpha, (0, 1, 2, 3))):
        sdata = image(pixels, names)
        with caplog.at_level(logging.INFO, logger="cytonym"):
            cy.tl.translate_stain(sdata, diameter_px=14)
        np.testing.assert_array_equal(sdata["ihc_stains"].values, expected["ihc_stains"].values)
    assert "what is transparent (channel 'a') is white" in caplog.text


def test_what_is_transparent_is_white(section):
    rgb, _, _ = section()
    opacity = np.full((1, *rgb.shape[1:]), 255, np.uint8)
    opacity[:, :, :60] = 0
    white = np.where(opacity == 0, 255, rgb).astype(np.uint8)
    tables = []
    for pixels, names in (
        (np.concatenate([np.where(opacity == 0, 0, rgb), opacity]).astype(np.uint8), ("r", "g", "b", "a")),
        (white, ("r", "g", "b")),
    ):
        sdata = image(pixels, names)
        cy.tl.translate_stain(sdata, diameter_px=14)
        cy.tl.segment_nuclei(sdata)
        tables.append((sdata["ihc_stains"].values, sdata["table"].obs))
    np.testing.assert_array_equal(tables[0][0], tables[1][0])
    assert tables[0][1].equals(tables[1][1])


def test_an_inverted_image_that_is_not_dark_is_told(caplog):
    pixels = immunohistochemistry().transpose(2, 0, 1)
    cy.tl.translate_stain(image(255 - pixels, ("r", "g", "b")), diameter_px=14, class_map=False)
    assert "looks inverted" in caplog.text
    caplog.clear()
    cy.tl.translate_stain(image(pixels, ("r", "g", "b")), diameter_px=14, class_map=False)
    assert "inverted" not in caplog.text


def test_black_that_a_scanner_filled_in_is_told(caplog):
    pixels = immunohistochemistry().transpose(2, 0, 1)
    cy.tl.translate_stain(image(pixels), diameter_px=14, class_map=False)
    assert not caplog.text
    filled = np.where(np.arange(512) < 50, 0, pixels).astype(np.uint8)
    cy.tl.translate_stain(image(filled), diameter_px=14, class_map=False)
    assert "ihc_image is black in 10 % of its pixels" in caplog.text


def test_pictures_of_a_translation_are_not_translated(section):
    sdata = image(section()[0], ("r", "g", "b"))
    cy.tl.translate_stain(sdata, diameter_px=14)
    sdata["ihc_DAPI"] = sdata["ihc_image"]
    sdata.attrs["translate_stain"]["ihc_DAPI"] = {"image": "ihc_image"}
    cy.tl.translate_stain(sdata, diameter_px=14)
    assert "ihc_DAPI_stains" not in sdata.images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rgb: (rgb[:2], ("r", "g")), "No RGB image"),
        (lambda rgb: (rgb, ("DNA", "CD3", "CD20")), "No RGB image.*CD20"),
        (lambda rgb: (rgb.astype(np.uint16) * 257, ("r", "g", "b")), "holds uint16.*image // 257"),
        (lambda rgb: ((rgb / 255).astype(np.float32), ("r", "g", "b")), "holds float32"),
        (lambda rgb: (255 - rgb, ("r", "g", "b")), "is dark.*fluorescence.*255 - image"),
        (lambda rgb: (rgb[:, :20], ("r", "g", "b")), "too small: 20 x 200 pixels"),
    ],
    ids=["two channels", "markers", "16 bits", "floats", "inverted", "tiny"],
)
def test_images_that_are_not_brightfield(change, message, section):
    pixels, names = change(section()[0])
    sdata = image(pixels, names)
    with pytest.raises(ValueError, match=message):
        cy.tl.translate_stain(sdata, diameter_px=14)
    assert list(sdata.images) == ["ihc_image"]


def test_an_image_that_is_asked_for_by_name_must_be_rgb(section):
    sdata = image(section()[0], ("DNA", "CD3", "CD20"))
    with pytest.raises(ValueError, match="is not RGB.*set_channel_names"):
        cy.tl.translate_stain(sdata, image_key="ihc_image")
    with pytest.raises(KeyError, match="ihc_image"):
        cy.tl.translate_stain(sdata, image_key="other")


def test_a_blank_image_has_no_nuclei(caplog):
    sdata = image(np.full((3, 64, 64), 240, np.uint8))
    cy.tl.translate_stain(sdata)
    assert "blank" in caplog.text
    assert not sdata["ihc_class_map"].values.any()
    with pytest.raises(ValueError, match="No nucleus found"):
        cy.tl.segment_nuclei(sdata)
    assert not sdata.labels
    assert not sdata.tables


def test_wrong_magnification(stained):
    sdata, _, _ = stained(pixel_size=2.0)
    with pytest.raises(ValueError, match=r"4 pixels is too small.*check its pixel size, which is 2"):
        cy.tl.translate_stain(sdata)
    sdata, _, _ = stained()
    with pytest.raises(ValueError, match="`diameter_um` has no meaning"):
        cy.tl.translate_stain(sdata, diameter_um=8)
    noise = np.random.default_rng(0).integers(200, 240, (3, 100, 100)).astype(np.uint8)
    with pytest.raises(ValueError, match="no size of nuclei stands out"):
        cy.tl.translate_stain(image(noise))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "vangogh"}, "'vangogh' is neither 'classical' nor"),
        ({"diameter_px": 0}, "`diameter_px` must be positive"),
        ({"diameter_px": -3}, "`diameter_px` must be positive"),
        ({"dab_threshold": -1}, "`dab_threshold` must be at least 0"),
        ({"contrast": float("nan")}, "`contrast` must be at least 0"),
        ({"tile_px": 8}, "`tile_px` must be at least 64"),
        ({"scale_factors": 2}, r"`scale_factors` must be whole numbers of at least 2, such as \[2, 2\], got 2"),
        ({"scale_factors": [2, 1]}, "`scale_factors` must be whole numbers"),
        ({"scale_factors": [2.0]}, "`scale_factors` must be whole numbers"),
    ],
)
def test_settings_that_have_no_meaning(settings, message, stained):
    sdata, _, _ = stained()
    with pytest.raises(ValueError, match=message):
        cy.tl.translate_stain(sdata, **settings)
    assert list(sdata.images) == ["ihc_image"]


def test_settings_of_numpy(tmp_path, stained):
    numbers = {"diameter_px": 14, "dab_threshold": 0.25, "contrast": 0.0625, "nuclear_stain": False, "tile_px": 96}
    types = {"diameter_px": np.float32, "nuclear_stain": np.bool_, "tile_px": np.int64}
    plain, _, _ = stained()
    cy.tl.translate_stain(plain, **numbers)
    sdata, _, _ = stained()
    settings = {name: types.get(name, np.float32)(value) for name, value in numbers.items()}
    cy.tl.translate_stain(sdata, **settings, scale_factors=(np.int64(2),), out=tmp_path / "out")
    assert sdata.attrs == plain.attrs
    for name, value in numbers.items():
        assert sdata.attrs["translate_stain"]["ihc_stains"][name] == value
    sdata.write(tmp_path / "store.zarr")


def test_names_that_are_taken(stained):
    sdata, _, _ = stained()
    cy.tl.translate_stain(sdata, diameter_px=14)
    cy.tl.segment_nuclei(sdata, key_added="other_stains")
    sdata["other_image"] = sdata["ihc_image"]
    with pytest.raises(ValueError, match="taken by elements that are no images"):
        cy.tl.translate_stain(sdata, image_key="other_image", diameter_px=14)
    sdata["other-image"] = sdata["ihc_image"]
    with pytest.raises(ValueError, match="would share the names"):
        cy.tl.translate_stain(sdata, image_key=["other_image", "other-image"], diameter_px=14)
    sdata["other_class_map"] = sdata["ihc_image"]
    del sdata.labels["other_stains"]
    with pytest.raises(
        ValueError, match=r"Images \['other_class_map'\] are there already, and `sdata.attrs` does not tell"
    ):
        cy.tl.translate_stain(sdata, image_key="other_image", diameter_px=14)
    cy.tl.translate_stain(sdata, image_key="other_image", diameter_px=14, class_map=False)
