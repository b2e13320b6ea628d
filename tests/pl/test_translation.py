"""Panels of translated images: what is drawn where, with what there is, and in which colors."""

from __future__ import annotations

import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from skimage.data import immunohistochemistry
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import Scale

import cytonym as cy
from cytonym.data.source import resolve
from cytonym.data.table import open_table
from cytonym.pl._translation import COLORS, dyed

mpl.use("Agg")
SIDE = 60


def image(pixels, channels, pixel_size=None, **options):
    place = None if pixel_size is None else {"global": Scale([pixel_size] * 2, axes=("x", "y"))}
    return Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=list(channels), transformations=place, **options)


def nine(pixel_size=None, *, channels=("hematoxylin", "DAB"), dtype="f4") -> SpatialData:
    """Nine square nuclei, three of them positive, three negative, three without a class; as the verbs leave them."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(150, 250, (3, SIDE, SIDE)).astype(np.uint8)
    labels = np.zeros((SIDE, SIDE), np.int32)
    for i in range(9):
        y, x = 20 * (i // 3) + 5, 20 * (i % 3) + 5
        labels[y : y + 10, x : x + 10] = i + 1
    stains = rng.random((len(channels), SIDE, SIDE))
    stains = (stains * 255).astype("u1") if dtype == "u1" else stains.astype(dtype)
    place = None if pixel_size is None else {"global": Scale([pixel_size] * 2, axes=("x", "y"))}
    sdata = SpatialData(
        images={
            "core_image": image(rgb, "rgb", pixel_size),
            "core_stains": image(stains, channels, pixel_size),
        },
        labels={"nuclei": Labels2DModel.parse(labels, dims=("y", "x"), transformations=place)},
    )
    sdata.attrs["translate_stain"] = {"core_stains": {"image": "core_image"}}
    table = open_table(sdata, resolve(sdata, image_key="core_image", labels_key="nuclei")).write()
    table.obs["ihc_class"] = (["positive", "negative", None] * 3)[: table.n_obs]
    table.obs["ihc_class"] = table.obs["ihc_class"].astype("category")
    table.uns["segment_nuclei"] = {"params": {"nuclei": {"image": "core_image", "class_map": "core_class_map"}}}
    return sdata


@pytest.fixture(autouse=True)
def nothing_global_changes():
    settings, figures = dict(mpl.rcParams), plt.get_fignums()
    yield
    assert dict(mpl.rcParams) == settings
    assert plt.get_fignums() == figures


def not_cut_off(figure) -> None:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = figure.get_tightbbox(canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert drawn.x0 > -0.03
    assert drawn.y0 > -0.03
    assert drawn.x1 < width + 0.03
    assert drawn.y1 < height + 0.03


def titles(figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes]


def picture(ax) -> np.ndarray:
    return np.asarray(ax.images[0].get_array())


def colors_in(ax, y: slice, x: slice) -> set[tuple[int, ...]]:
    canvas = picture(ax)
    zoom = len(canvas) // SIDE
    part = canvas[y.start * zoom : y.stop * zoom, x.start * zoom : x.stop * zoom].reshape(-1, 3)
    return {tuple(int(v) for v in color) for color in np.unique(part, axis=0)}


def rgb_of(color: str) -> tuple[int, ...]:
    return tuple(round(255 * v) for v in to_rgb(color))


def texts(figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(mpl.text.Text) if t.get_text()]


@pytest.mark.parametrize("colors", ["clear", "published", ("lime", "#112233")])
def test_what_is_drawn_is_what_there_is(colors):
    sdata = nine(0.5)
    figure = cy.pl.translation(sdata, colors=colors)
    assert titles(figure) == ["core_image", "hematoxylin", "DAB", "nuclei", "classes"]
    ihc, *dyes, nuclei, classes = figure.axes
    np.testing.assert_array_equal(picture(ihc), sdata["core_image"].data.transpose(1, 2, 0))
    for ax, name, amount in zip(dyes, ("hematoxylin", "DAB"), np.asarray(sdata["core_stains"].data), strict=True):
        np.testing.assert_array_equal(picture(ax), dyed(amount, name))
    positive, negative = (rgb_of(color) for color in (COLORS[colors] if isinstance(colors, str) else colors))
    for i in range(9):
        y, x = 20 * (i // 3), 20 * (i % 3)
        color = (positive, negative, rgb_of("#808080"))[i % 3]
        assert colors_in(classes, slice(y + 8, y + 12), slice(x + 8, x + 12)) == {color}
        assert color in colors_in(nuclei, slice(y, y + 20), slice(x, x + 20))
        pixels = sdata["core_image"].data[:, y + 9 : y + 11, x + 9 : x + 11].reshape(3, -1).T
        assert colors_in(nuclei, slice(y + 9, y + 11), slice(x + 9, x + 11)) == {tuple(map(int, v)) for v in pixels}
    assert nuclei.get_title(loc="right") == "3 of 6 positive"
    words = texts(figure)
    assert {"positive", "negative", "no class", "5 \N{MICRO SIGN}m"} <= set(words)
    assert not [word for word in words if word.startswith("rows")]
    not_cut_off(figure)


def test_part_of_the_image():
    sdata = nine()
    figure = cy.pl.translation(sdata, crop=(0, 20, 20, 60), channels="DAB")
    assert titles(figure) == ["core_image", "DAB", "nuclei", "classes"]
    assert {(ax.get_xlim(), ax.get_ylim()) for ax in figure.axes} == {((20, 60), (20, 0))}
    assert figure.axes[2].get_title(loc="right") == "0 of 1 positive"
    assert "rows 0 to 20, columns 20 to 60 of an image of 60 x 60 pixels" in texts(figure)
    assert "10 px" in texts(figure)
    not_cut_off(figure)
    nobody = cy.pl.translation(sdata, crop=(0, 5, 0, 60))
    assert nobody.axes[-2].get_title(loc="right") == "0 of 0 positive"
    not_cut_off(nobody)


def test_channels_of_networks():
    sdata = nine(channels=("hematoxylin", "DAPI", "Lap 2", "marker"), dtype="u1")
    drawn = np.random.default_rng(1).integers(0, 255, (3, SIDE, SIDE)).astype(np.uint8)
    sdata["core_Lap_2"] = image(drawn, "rgb")
    sdata.attrs["translate_stain"]["core_Lap_2"] = {"image": "core_image"}
    figure = cy.pl.translation(sdata)
    assert titles(figure)[1:5] == ["hematoxylin", "DAPI", "Lap 2", "marker"]
    np.testing.assert_array_equal(picture(figure.axes[1]), sdata["core_stains"].data[0])
    assert figure.axes[1].images[0].get_clim() == (0, 255)
    np.testing.assert_array_equal(picture(figure.axes[3]), drawn.transpose(1, 2, 0))
    not_cut_off(figure)


def test_pictures_that_are_not_of_this_translation_are_not_shown():
    sdata = nine(channels=("DAPI", "marker"), dtype="u1")
    for name in ("DAPI", "marker"):
        sdata[f"core_{name}"] = image(np.full((3, SIDE, SIDE), 99, np.uint8), "rgb")
    sdata.attrs["translate_stain"] |= {"core_marker": {"image": "core_image", "weights_sha256": "of others"}}
    figure = cy.pl.translation(sdata)  # DAPI was measured
    for ax, channel in zip(figure.axes[1:3], sdata["core_stains"].data, strict=True):
        np.testing.assert_array_equal(picture(ax), channel)


def test_what_is_transparent_is_white():
    sdata = nine()
    rgb = np.asarray(sdata["core_image"].data)
    opacity = np.full((1, SIDE, SIDE), 255, np.uint8)
    opacity[:, :, :30] = 0
    black = np.where(opacity == 0, 0, rgb).astype(np.uint8)
    sdata["core_image"] = image(np.concatenate([black, opacity]), ("r", "g", "b", "a"))
    ihc, *_, nuclei, _ = cy.pl.translation(sdata).axes
    expected = np.where(opacity == 0, 255, rgb).transpose(1, 2, 0)
    np.testing.assert_array_equal(picture(ihc), expected)
    assert colors_in(nuclei, slice(9, 11), slice(9, 11)) == {(255, 255, 255)}


def test_with_what_is_there():
    bare = nine()
    del bare.tables["table"]
    assert titles(cy.pl.translation(bare)) == ["core_image", "hematoxylin", "DAB"]
    no_stains = nine()
    del no_stains.images["core_stains"]
    assert titles(cy.pl.translation(no_stains)) == ["core_image", "nuclei", "classes"]
    del bare.images["core_stains"]
    with pytest.raises(ValueError, match="Nothing was inferred from 'core_image' yet: run `tl.translate_stain`"):
        cy.pl.translation(bare)


def test_a_coarse_level_and_a_large_crop():
    rgb = np.random.default_rng(0).integers(100, 255, (3, 400, 2400)).astype(np.uint8)
    fine = image(rgb, "rgb", scale_factors=[2])
    level = fine["scale1"]["image"].data
    coarse = image(np.ones((1, 200, 1200), "f4"), ["other"])
    sdata = SpatialData(images={"a_image": fine, "a_stains": coarse})
    figure = cy.pl.translation(sdata)
    np.testing.assert_array_equal(picture(figure.axes[0]), np.moveaxis(np.asarray(level), 0, -1))
    sdata["a_stains"] = image(np.ones((1, 400, 2400), "f4"), ["other"])
    large = cy.pl.translation(sdata, crop=(0, 400, 0, 2400))
    assert picture(large.axes[0]).shape == (200, 1200, 3)
    np.testing.assert_allclose(picture(large.axes[0])[3, 5], rgb[:, 6:8, 10:12].mean(axis=(1, 2)), atol=1)
    assert cy.pl.translation(sdata).axes[0].get_xlim() == (176, 2224)


def test_after_the_verbs_and_from_a_store(tmp_path):
    import spatialdata as sd

    pixels = immunohistochemistry()[:128, -128:].transpose(2, 0, 1)
    parts = [cy.io.from_arrays(pixels, channels=["r", "g", "b"], name=name, pixel_size=0.5) for name in "ab"]
    sdata = SpatialData(images={k: v for part in parts for k, v in part.images.items()})
    cy.tl.translate_stain(sdata)
    cy.tl.segment_nuclei(sdata)
    sdata.write(tmp_path / "ab.zarr")
    stored = sd.read_zarr(tmp_path / "ab.zarr")
    figures = [cy.pl.translation(each, image_key="b_image") for each in (sdata, stored)]
    for one, other in zip(figures[0].axes, figures[1].axes, strict=True):
        np.testing.assert_array_equal(picture(one), picture(other))
    mine = stored["table"].obs.query("region == 'b_nuclei'")
    n = (mine["ihc_class"] == "positive").sum()
    assert figures[1].axes[-2].get_title(loc="right") == f"{n} of {len(mine)} positive"
    with pytest.raises(ValueError, match=re.escape("there are 2: ['a_image', 'b_image']. Choose with `image_key`")):
        cy.pl.translation(stored)


def test_errors():
    sdata = nine()
    for arguments, error, message in [
        ({"image_key": "b"}, KeyError, "No image 'b' in `sdata.images`"),
        ({"image_key": "core_stains"}, ValueError, "Image 'core_stains' is not RGB of 8 bits"),
        ({"stains_key": "b"}, KeyError, "No image 'b'"),
        ({"labels_key": "b"}, KeyError, "No labels element 'b' in `sdata.labels`"),
        ({"labels_key": "nuclei", "table_key": "t"}, KeyError, "No table 't' in `sdata.tables`"),
        ({"class_key": "type"}, KeyError, "No column 'type' in `obs`"),
        ({"channels": "DAPI"}, KeyError, "No channel ['DAPI'] in image 'core_stains'"),
        ({"crop": (0, 99, 0, 60)}, ValueError, "does not lie in the image of 60 x 60 pixels"),
        ({"colors": "gold"}, ValueError, "`colors` must be one of ['clear', 'published']"),
        ({"colors": ("red", "nothing")}, ValueError, "`colors` must be one of"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            cy.pl.translation(sdata, **arguments)
    sdata["core_stains"] = image(np.ones((2, 30, 30), "f4"), ["hematoxylin", "DAB"])
    with pytest.raises(
        ValueError, match=re.escape("(30 x 30) do not lie on the pixels of image 'core_image' (60 x 60)")
    ):
        cy.pl.translation(sdata)
    del sdata.images["core_stains"]
    with pytest.raises(KeyError, match="there is no image 'core_stains'"):
        cy.pl.translation(sdata, channels="DAB")
    gray = cy.io.from_arrays(np.ones((1, 40, 40)), channels=["DNA"])
    with pytest.raises(ValueError, match=re.escape("none of ['image'] is RGB")):
        cy.pl.translation(gray)


@pytest.mark.real_data
def test_a_real_field(real_data):
    from PIL import Image

    strip = np.asarray(Image.open(real_data("ihc_deepliif") / "coregistered" / "Bladder1.png"))
    sdata = cy.io.from_arrays(strip[:, :512].transpose(2, 0, 1), channels=["r", "g", "b"], name="core", pixel_size=0.25)
    cy.tl.translate_stain(sdata)
    cy.tl.segment_nuclei(sdata, watershed=True)
    figure = cy.pl.translation(sdata)
    not_cut_off(figure)
    n = (sdata["table"].obs["ihc_class"] == "positive").sum()
    assert figure.axes[3].get_title(loc="right") == f"{n} of {sdata['table'].n_obs} positive"
