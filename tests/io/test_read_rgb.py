"""Pictures of stained tissue: every format, what is transparent, and what is no picture."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tifffile
from PIL import Image
from spatialdata.models import get_channel_names
from spatialdata.transformations import Identity, Scale, get_transformation

import cytonym as cy

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 50, 3)).astype(np.uint8)


def planes(picture: np.ndarray) -> np.ndarray:
    return picture.transpose(2, 0, 1)


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif", ".tiff", ".ome.tif"])
def test_what_was_written_is_read(tmp_path, suffix):
    file = tmp_path / f"core.3{suffix}"
    if "tif" in suffix:
        tifffile.imwrite(file, PIXELS, photometric="rgb")
    else:
        Image.fromarray(PIXELS).save(file)
    sdata = cy.io.read_rgb(file)
    assert list(sdata.images) == ["core.3_image"]
    image = sdata["core.3_image"]
    np.testing.assert_array_equal(image.data, planes(PIXELS))
    assert image.dtype == np.uint8
    assert list(get_channel_names(image)) == ["r", "g", "b"]
    assert get_transformation(image) == Identity()


def test_a_folder_of_several_formats(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    Image.fromarray(PIXELS).save(tmp_path / "b.jpeg", quality=95)
    tifffile.imwrite(tmp_path / "c.tif", planes(PIXELS), photometric="rgb", planarconfig="separate")
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / ".a.png").write_text("nothing")
    sdata = cy.io.read_rgb(tmp_path, pixel_size=0.5)
    assert list(sdata.images) == ["a_image", "b_image", "c_image"]
    assert all(get_transformation(image) == Scale([0.5, 0.5], axes=("x", "y")) for image in sdata.images.values())
    np.testing.assert_array_equal(sdata["c_image"].data, planes(PIXELS))
    assert sdata["b_image"].shape == (3, 40, 50)


def test_the_pixel_size_of_ome_metadata(tmp_path):
    file = tmp_path / "a.ome.tif"
    size = {"axes": "YXS", "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25}
    tifffile.imwrite(file, PIXELS, photometric="rgb", metadata=size)
    assert get_transformation(cy.io.read_rgb(file)["a_image"]) == Scale([0.25, 0.25], axes=("x", "y"))
    assert get_transformation(cy.io.read_rgb(file, pixel_size=1)["a_image"]) == Scale([1, 1], axes=("x", "y"))


def test_names_of_files(tmp_path):
    """Blanks and brackets become underscores, as for `io.read_tiffs`."""
    for name in ("my core (1).png", "__Köln.jpg"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    assert set(cy.io.read_rgb(tmp_path).images) == {"my_core__1__image", "Köln_image"}
    Image.fromarray(PIXELS).save(tmp_path / "My core_(1).png")
    with pytest.raises(ValueError, match="would both become 'my_core__1__image'. Rename one of them"):
        cy.io.read_rgb([tmp_path / "My core_(1).png", tmp_path / "my core (1).png"])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_what_is_transparent_becomes_white(tmp_path, suffix):
    opacity = np.full((40, 50, 1), 255, np.uint8)
    opacity[:10], opacity[10:20] = 0, 128
    picture = np.concatenate([PIXELS, opacity], axis=2)
    file = tmp_path / f"a{suffix}"
    if suffix == ".png":
        Image.fromarray(picture).save(file)
    else:
        tifffile.imwrite(file, picture, photometric="rgb", extrasamples=["unassalpha"])
    found = np.asarray(cy.io.read_rgb(file)["a_image"].data)
    assert found.shape == (3, 40, 50)
    assert (found[:, :10] == 255).all()
    np.testing.assert_allclose(found[:, 10:20], planes(PIXELS[10:20] * (128 / 255) + 127), atol=0.6)
    np.testing.assert_array_equal(found[:, 20:], planes(PIXELS[20:]))


def test_a_picture_with_a_palette(tmp_path):
    few = Image.fromarray(PIXELS // 128 * 128).quantize(8)
    few.save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        cy.io.read_rgb(tmp_path / "a.png")["a_image"].data, planes(np.asarray(few.convert("RGB")))
    )


def test_a_turned_picture_is_read_as_it_is_shown(tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6  # the first row is the right side
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=tags)
    np.testing.assert_array_equal(cy.io.read_rgb(tmp_path / "a.png")["a_image"].data, planes(np.rot90(PIXELS, -1)))


def test_tiff_stays_on_disk(tmp_path):
    import dask.array as da

    tifffile.imwrite(tmp_path / "a.tif", PIXELS, photometric="rgb")
    assert isinstance(cy.io.read_rgb(tmp_path / "a.tif")["a_image"].data, da.Array)


def test_what_is_no_picture(tmp_path):
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(PIXELS).save(tmp_path / "twice.png")
    tifffile.imwrite(tmp_path / "twice.tif", PIXELS, photometric="rgb")
    tifffile.imwrite(tmp_path / "many.tif", np.zeros((7, 40, 50), np.uint8), photometric="minisblack")
    metadata = {"axes": "CYX", "Channel": {"Name": ["DAPI", "CD3", "CD8"]}}
    tifffile.imwrite(tmp_path / "panel.ome.tif", planes(PIXELS), photometric="minisblack", metadata=metadata)
    (tmp_path / "torn.png").write_bytes((tmp_path / "twice.png").read_bytes()[:200])
    (tmp_path / "slide.svs").write_bytes(b"?")
    (tmp_path / "empty").mkdir()
    for name, error, message in [
        ("no.png", FileNotFoundError, "No file or folder"),
        ("empty", FileNotFoundError, "No PNG, JPEG or TIFF file in folder"),
        ("grey.png", ValueError, "grey.png' is not RGB: it has the channels ['L']."),
        ("torn.png", ValueError, "torn.png' as a picture"),
        (
            "slide.svs",
            ValueError,
            "slide.svs' is no PNG, JPEG or TIFF. Whole slides in other formats are read by wsidata",
        ),
        ("many.tif", ValueError, "many.tif' is not RGB: it has 7 channels. `io.read_tiffs` reads"),
        ("panel.ome.tif", ValueError, "is not RGB: it has 3 channels, ['DAPI', 'CD3', 'CD8']. `io.read_tiffs`"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            cy.io.read_rgb(tmp_path / name)
    with pytest.raises(ValueError, match="would both become 'twice_image'"):
        cy.io.read_rgb([tmp_path / "twice.png", tmp_path / "twice.tif"])
    for size in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="`pixel_size` must be positive"):
            cy.io.read_rgb(tmp_path / "twice.png", pixel_size=size)
