"""Folders and lists of TIFF files become one object; what does not fit together is named."""

from __future__ import annotations

import logging
import re

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import tifffile
from spatialdata.models import get_channel_names
from spatialdata.transformations import Identity, get_transformation

import cytonym as cy
from cytonym.data.source import image_sources, resolve

CHANNELS = ["DNA", "CD8", "CD20"]
IDS = [3, 7, 65534]  # gaps, and the last but one of 16 bit


def pixels(seed: int = 0, shape=(3, 40, 50)) -> np.ndarray:
    return np.random.default_rng(seed).poisson(5, shape).astype("uint16")


def mask(dtype="uint16") -> np.ndarray:
    labels = np.zeros((40, 50), dtype)
    for i, label in enumerate(IDS):
        labels[4 + 10 * i : 10 + 10 * i, 6:16] = label
    return labels


def write(path, image, channels=CHANNELS, size=0.5, **options):
    metadata = {"axes": "CYX"}
    if channels is not None:
        metadata["Channel"] = {"Name": list(channels)}
    if size is not None:
        metadata |= {"PhysicalSizeX": size, "PhysicalSizeY": size}
    tifffile.imwrite(path, image, metadata=metadata, photometric="minisblack", **options)


@pytest.fixture
def folder(tmp_path):
    """Two fields with masks and cell tables."""
    for seed, name in enumerate(["E34", "J02"]):
        write(tmp_path / f"{name}.ome.tif", pixels(seed))
        tifffile.imwrite(tmp_path / f"{name}_mask.tif", mask())
        rows = pd.DataFrame({"cell_id": IDS[::-1], "cell_type": [f"{name} c", f"{name} b", f"{name} a"], "score": 1.5})
        rows.to_csv(tmp_path / f"{name}_cells.csv", index=False)
    return tmp_path


def images(folder):
    return sorted(folder.glob("*.ome.tif"))


def fails(error, message, *arguments, **named):
    with pytest.raises(error, match=re.escape(message)):
        cy.io.read_tiffs(*arguments, **named)


# ------------------------------------------------------------------------------------------------------- what is read
def test_a_folder_of_fields(folder, tmp_path_factory):
    sdata = cy.io.read_tiffs(folder)
    assert set(sdata.images) == {"E34_image", "J02_image"}
    assert set(sdata.labels) == {"E34_cells", "J02_cells"}
    np.testing.assert_array_equal(sdata["J02_image"].to_numpy(), pixels(1))
    np.testing.assert_array_equal(sdata["E34_cells"].to_numpy(), mask())
    assert list(get_channel_names(sdata["E34_image"])) == CHANNELS
    table = sdata["table"]
    assert table.obs["instance_id"].tolist() == IDS * 2
    assert table.obs["region"].tolist() == ["E34_cells"] * 3 + ["J02_cells"] * 3
    assert table.obs["cell_type"].tolist() == ["E34 a", "E34 b", "E34 c", "J02 a", "J02 b", "J02 c"]
    assert isinstance(table.obs["cell_type"].dtype, pd.CategoricalDtype)
    assert table.obs["score"].tolist() == [1.5] * 6
    np.testing.assert_allclose(table.obsm["spatial"][0], [5.5, 3.5])  # micrometres: pixels of 0.5
    assert resolve(sdata)[0].pixel_size == 0.5
    path = tmp_path_factory.mktemp("store") / "fields.zarr"
    sdata.write(path)
    again = sd.read_zarr(path)
    np.testing.assert_array_equal(again["J02_image"].to_numpy(), pixels(1))
    assert again["table"].obs["cell_type"].tolist() == table.obs["cell_type"].tolist()


def test_lists_in_any_order(folder):
    paths = images(folder)
    masks = [folder / "J02_mask.tif", folder / "E34_mask.tif"]
    sdata = cy.io.read_tiffs(paths[::-1], masks=masks, cells=[folder / "E34_cells.csv"])
    assert list(sdata.images) == ["J02_image", "E34_image"]
    table = sdata["table"]
    assert table.obs["cell_type"].astype(object).where(table.obs["cell_type"].notna(), "").tolist() == [
        "", "", "", "E34 a", "E34 b", "E34 c",
    ]  # fmt: skip
    assert "table" not in cy.io.read_tiffs(paths).tables  # a list of images takes nothing that lies beside them


def test_one_file(folder):
    sdata = cy.io.read_tiffs(folder / "E34.ome.tif", masks=str(folder / "J02_mask.tif"))
    assert list(sdata.labels) == ["E34_cells"]  # of one image and one mask, names say nothing


def test_centers(folder):
    for name in ("E34", "J02"):
        (folder / f"{name}_mask.tif").unlink()
        (folder / f"{name}_cells.csv").unlink()
    pd.DataFrame({"X": [3.5, 20.0], "Y": [4.5, 30.0], "type": ["T", "B"]}).to_csv(folder / "E34_centers.csv")
    pd.DataFrame({"x": [8.5], "cell_id": [12], "y": [2.5]}).to_csv(folder / "J02_centroids.csv", index=False)
    sdata = cy.io.read_tiffs(folder)
    table = sdata["table"]
    assert set(sdata.shapes) == {"E34_centers", "J02_centers"}
    assert table.obs["instance_id"].tolist() == [1, 2, 12]
    assert table.obs["type"].astype(str).tolist() == ["T", "B", "nan"]
    np.testing.assert_allclose(table.obsm["spatial"], [[1.75, 2.25], [10, 15], [4.25, 1.25]])
    np.testing.assert_allclose(resolve(sdata)[0].centers, [[4.5, 3.5], [30, 20]])
    again = cy.io.read_tiffs(images(folder), centers=[folder / "J02_centroids.csv", folder / "E34_centers.csv"])
    np.testing.assert_array_equal(again["table"].obsm["spatial"], table.obsm["spatial"])


def test_neither_masks_nor_centers(tmp_path):
    write(tmp_path / "a.tif", pixels(), size=None)
    sdata = cy.io.read_tiffs(tmp_path)
    assert "table" not in sdata.tables
    assert isinstance(get_transformation(sdata["a_image"]), Identity)
    assert image_sources(sdata)[0].pixel_size is None
    assert image_sources(cy.io.read_tiffs(tmp_path, pixel_size=0.25))[0].pixel_size == 0.25


def test_one_table_for_all(folder):
    rows = pd.DataFrame(
        {"image": ["J02", "E34.ome.tif", "E34.ome.tif"], "Cell ID": [7, 7, 3], "fine type": ["j7", "e7", "e3"]}
    )
    rows.to_csv(folder / "all.csv", index=False)
    obs = cy.io.read_tiffs(folder, cells=folder / "all.csv")["table"].obs
    assert obs["fine_type"].astype(str).tolist() == ["e3", "e7", "nan", "nan", "j7", "nan"]
    rows.rename(columns={"image": "picture"}).to_csv(folder / "all.csv", index=False)
    fails(ValueError, "it needs a column that names them", folder, cells=folder / "all.csv")
    rows[1:].to_csv(folder / "all.csv", index=False)
    fails(ValueError, "'all.csv' has no row of image 'J02' in column 'image': ['E34.ome.tif']", folder, cells=folder / "all.csv")  # fmt: skip


def test_a_table_of_ids_alone(folder):
    for name in ("E34", "J02"):
        pd.DataFrame({"cell_id": IDS}).to_csv(folder / f"{name}_cells.csv", index=False)
    assert list(cy.io.read_tiffs(folder)["table"].obs) == ["region", "instance_id"]


def test_images_that_are_called_by_numbers(tmp_path):
    for name in ("001", "1"):
        write(tmp_path / f"{name}.tif", pixels())
        tifffile.imwrite(tmp_path / f"{name}_mask.tif", mask())
    pd.DataFrame({"fov": ["1", "001"], "cell_id": [3, 3], "type": ["one", "zero"]}).to_csv(tmp_path / "all.csv")
    obs = cy.io.read_tiffs(tmp_path, cells=tmp_path / "all.csv")["table"].obs.dropna(subset="type")
    assert dict(zip(obs["region"], obs["type"], strict=True)) == {"001_cells": "zero", "1_cells": "one"}


def test_ids_with_a_decimal_point(folder):
    """As R and Excel write them; another column of whole numbers does not take their place."""
    rows = pd.DataFrame({"cell_id": [3.0, 7.0], "label": [7, 3], "type": ["T", "B"]})
    rows.to_csv(folder / "E34_cells.csv", index=False)
    obs = cy.io.read_tiffs(folder)["table"].obs
    assert obs["type"].astype(str).tolist()[:3] == ["T", "B", "nan"]
    assert obs["label"].tolist()[:2] == [7, 3]
    points = pd.DataFrame({"cell_id": [10.0, 20.0], "x": [5, 20], "y": [6, 21]})
    points.to_csv(folder / "dots.csv", index=False)
    table = cy.io.read_tiffs(folder / "E34.ome.tif", centers=folder / "dots.csv")["table"]
    assert table.obs["instance_id"].tolist() == [10, 20]


def test_classes_in_a_column_called_label(folder):
    pd.DataFrame({"x": [5, 20], "y": [6, 21], "label": ["T", "B"]}).to_csv(folder / "dots.csv", index=False)
    obs = cy.io.read_tiffs(folder / "E34.ome.tif", centers=folder / "dots.csv")["table"].obs
    assert obs["instance_id"].tolist() == [1, 2]
    assert obs["label"].tolist() == ["T", "B"]


def test_columns_are_kept_under_names_that_a_store_takes(folder, tmp_path_factory, caplog):
    rows = {
        "cell_id": IDS,
        "CD4+": [1, 2, 3],
        "CD4": [4, 5, 6],
        "Region": list("abc"),
        "X": [0.5, 1.5, 2.5],
        "_index": 1,
    }
    pd.DataFrame(rows).to_csv(folder / "E34_cells.csv", index=False)
    pd.DataFrame({"cell_id": IDS, "CD4+": [7, 8, 9], "x": 1.5, "y": 2.5}).to_csv(folder / "J02_cells.csv", index=False)
    with caplog.at_level(logging.INFO, logger="cytonym"):
        sdata = cy.io.read_tiffs(folder)
    obs = sdata["table"].obs
    assert obs["CD4_2"].tolist() == [1, 2, 3, 7, 8, 9]
    assert obs["CD4"].tolist()[:3] == [4, 5, 6]
    assert obs["Region_2"].tolist()[:3] == ["a", "b", "c"]
    assert obs["X"].tolist()[:3] == [0.5, 1.5, 2.5]
    assert obs["region"].tolist() == ["E34_cells"] * 3 + ["J02_cells"] * 3
    assert not {"x", "y"} & set(obs)  # `obsm["spatial"]` holds the place
    assert "Column 'CD4+' of the cell tables is 'CD4_2' in `obs`" in caplog.text
    assert "Column 'Region' of the cell tables is 'Region_2' in `obs`" in caplog.text
    path = tmp_path_factory.mktemp("store") / "fields.zarr"
    sdata.write(path)
    assert list(sd.read_zarr(path)["table"].obs) == list(obs)


def test_whole_numbers_stay_whole(folder, tmp_path_factory):
    """Where a cell has no row, where a row has no value and where the other table has no such column."""
    pd.DataFrame({"cell_id": [3, 7], "type": [4, 5], "good": [True, False], "none": np.nan}).to_csv(folder / "E34_cells.csv", index=False)  # fmt: skip
    rows = pd.DataFrame({"cell_id": IDS, "type": [5, None, 4], "stage": ["I", 2, None], "size": [1.5, None, 2]})
    rows.to_csv(folder / "J02_cells.csv", index=False)
    sdata = cy.io.read_tiffs(folder)
    path = tmp_path_factory.mktemp("store") / "fields.zarr"
    sdata.write(path)
    for table in (sdata["table"], sd.read_zarr(path)["table"]):
        types = cy.get.labels_of(table, "type")
        assert list(types.cat.categories) == ["4", "5"]
        assert types.astype(object).where(types.notna(), "").tolist() == ["4", "5", "", "5", "", "4"]
        assert table.obs["instance_id"].dtype.kind == "i"
        assert table.obs["good"].astype(str).tolist()[:3] == ["True", "False", "nan"]
        assert list(table.obs["stage"].cat.categories) == ["2", "I"]
        assert table.obs["size"].dtype == np.float64
        assert table.obs["none"].isna().all()


def test_channel_names(folder, tmp_path):
    sdata = cy.io.read_tiffs(folder, channels=["a", "b", "c"])
    assert list(get_channel_names(sdata["J02_image"])) == ["a", "b", "c"]
    pd.DataFrame({"Marker": ["x", "y", "z"]}).to_csv(tmp_path / "names.csv")
    sdata = cy.io.read_tiffs(images(folder), channels=tmp_path / "names.csv")
    assert list(get_channel_names(sdata["E34_image"])) == ["x", "y", "z"]


def test_panel_of_steinbock(tmp_path):
    for name in ("img", "masks"):
        (tmp_path / name).mkdir()
    tifffile.imwrite(tmp_path / "img" / "s_001.tiff", pixels().astype("float32"), photometric="minisblack")
    tifffile.imwrite(tmp_path / "masks" / "s_001.tiff", mask("uint32"))
    panel = pd.DataFrame({"channel": ["Ir191", "Er166", "Yb171"], "name": ["DNA", None, "CD8"], "keep": [1, 0, 1]})
    panel.to_csv(tmp_path / "panel.csv", index=False)
    sdata = cy.io.read_tiffs(tmp_path)
    assert list(get_channel_names(sdata["s_001_image"])) == ["DNA", "CD8"]
    np.testing.assert_array_equal(sdata["s_001_image"].to_numpy(), pixels()[[0, 2]])
    assert sdata["table"].n_obs == 3


def test_panel_that_names_the_channels_of_the_file(folder, tmp_path):
    panel = pd.DataFrame({"channel": ["CD20", "DNA", "CD8"], "name": ["B", "nuclei", "T"], "keep": [1, 1, 0]})
    panel.to_csv(tmp_path / "given.csv", index=False)
    sdata = cy.io.read_tiffs(images(folder), channels=tmp_path / "given.csv")
    assert list(get_channel_names(sdata["E34_image"])) == ["nuclei", "B"]
    np.testing.assert_array_equal(sdata["E34_image"].to_numpy(), pixels()[[0, 2]])


def test_other_sources_of_names(tmp_path):
    write(tmp_path / "plain.tif", pixels(), channels=None)
    with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
        for plane, name in zip(pixels(), CHANNELS, strict=True):
            file.write(plane, contiguous=False, extratags=[(285, 2, len(name) + 1, name, False)], metadata=None)
    tifffile.imwrite(tmp_path / "imagej.tif", pixels()[:, None], imagej=True, metadata={"Labels": CHANNELS})
    sdata = cy.io.read_tiffs(tmp_path)
    names = {key: list(get_channel_names(sdata[key])) for key in sdata.images}
    assert names == {
        "imagej_image": CHANNELS,
        "pages_image": CHANNELS,
        "plain_image": ["channel_0", "channel_1", "channel_2"],
    }


@pytest.mark.parametrize(
    ("stored", "options", "names"),
    [
        (np.moveaxis(pixels(), 0, 2).astype("uint8"), {"photometric": "rgb"}, ["r", "g", "b"]),
        (np.moveaxis(pixels(), 0, 2), {"photometric": "minisblack"}, ["channel_0", "channel_1", "channel_2"]),
        (pixels(), {"photometric": "minisblack", "tile": (16, 16), "compression": "zlib"}, None),
        (pixels(), {"photometric": "minisblack", "byteorder": ">", "bigtiff": True}, None),
        (pixels()[:1], {"photometric": "minisblack", "metadata": {"axes": "CYX"}}, ["channel_0"]),
        (pixels()[0], {"photometric": "minisblack"}, ["channel_0"]),
    ],
    ids=["rgb", "channels last", "tiles", "big endian", "one channel", "one plane"],
)
def test_layouts(tmp_path, stored, options, names):
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    image = cy.io.read_tiffs(tmp_path)["a_image"]
    expected = pixels()[: image.shape[0]].astype(image.dtype)
    np.testing.assert_array_equal(image.to_numpy(), expected)
    np.testing.assert_array_equal(image[:, 7:33, 11:48].to_numpy(), expected[:, 7:33, 11:48])
    assert list(get_channel_names(image)) == (names or ["channel_0", "channel_1", "channel_2"])
    assert image.dtype.isnative


def test_sixteen_bits_to_the_brim(tmp_path):
    image = np.full((1, 40, 50), 65535, "uint16")
    image[0, 5, 5] = 65534
    write(tmp_path / "a.ome.tif", image, channels=["DNA"])
    tifffile.imwrite(tmp_path / "a_mask.tif", mask())
    sdata = cy.io.read_tiffs(tmp_path)
    np.testing.assert_array_equal(sdata["a_image"].to_numpy(), image)
    assert sdata["table"].obs["instance_id"].tolist() == IDS
    cy.pp.measure_cells(sdata)
    assert sdata["table"].X[1:, 0].tolist() == [65535.0, 65535.0]


@pytest.mark.parametrize("dtype", ["float32", "int32", "uint32"])
def test_masks_of_other_types(tmp_path, dtype):
    write(tmp_path / "a.tif", pixels())
    tifffile.imwrite(tmp_path / "a_cell_mask.tif", mask(dtype))
    tifffile.imwrite(tmp_path / "a_nucleus_mask.tif", np.ones((40, 50), "uint8"))  # whole cells go before nuclei
    sdata = cy.io.read_tiffs(tmp_path)
    assert sdata["table"].obs["instance_id"].tolist() == IDS
    assert sdata["a_cells"].dtype.kind in "iu"


def test_background_that_is_numbered(tmp_path, caplog):
    labels = np.ones((200, 200), "uint16")
    for i in range(5):
        labels[10:15, 20 * i + 10 : 20 * i + 15] = i + 2
    write(tmp_path / "a.tif", pixels(shape=(3, 200, 200)))
    tifffile.imwrite(tmp_path / "a_mask.tif", labels)
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        sdata = cy.io.read_tiffs(tmp_path)
    assert sdata["table"].obs["instance_id"].tolist() == [2, 3, 4, 5, 6]
    assert "label 1 covers 100% of the image and most of its frame; taken as background" in caplog.text


def test_names_of_files(tmp_path):
    """`Point1` is not the field of `Point14_mask`; blanks become underscores; hidden files are none."""
    for name in ("Point1", "Point14", "core 3, left"):
        write(tmp_path / f"{name}.tif", pixels())
        tifffile.imwrite(tmp_path / f"{name}_segmentation.tif", mask())
    (tmp_path / "._Point1.tif").write_bytes(b"side-car")
    (tmp_path / "notes.txt").write_text("nothing")
    sdata = cy.io.read_tiffs(tmp_path)
    assert set(sdata.images) == {"Point1_image", "Point14_image", "core_3__left_image"}
    assert sdata["table"].n_obs == 9


def test_same_names_in_different_folders(tmp_path):
    for core in ("core1", "core2"):
        (tmp_path / core).mkdir()
        write(tmp_path / core / "image.tif", pixels())
    sdata = cy.io.read_tiffs([tmp_path / "core1", tmp_path / "core2"])
    assert list(sdata.images) == ["core1_image_image", "core2_image_image"]
    fails(ValueError, "these share one", [tmp_path / "core1", tmp_path / "core1"])


def test_different_panels_are_told(tmp_path, caplog):
    write(tmp_path / "a.ome.tif", pixels())
    write(tmp_path / "b.ome.tif", pixels(), channels=["CD20", "DNA", "CD4"])
    with caplog.at_level(logging.INFO, logger="cytonym"):
        cy.io.read_tiffs(tmp_path)
    assert "The images have 2 different panels" in caplog.text


def test_masks_beside_only_some_images_are_left(folder, caplog):
    (folder / "J02_mask.tif").unlink()
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        sdata = cy.io.read_tiffs(folder)
    assert not sdata.labels
    assert "1 of 2 images have no mask: ['J02.ome.tif']. The 1 mask file(s) found are ignored." in caplog.text


def test_field_without_cells_is_left_out(folder, caplog):
    tifffile.imwrite(folder / "J02_mask.tif", np.zeros((40, 50), "uint16"))
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        sdata = cy.io.read_tiffs(folder)
    assert list(sdata.images) == ["E34_image"]
    assert "Mask 'J02_mask.tif' has no cell: field 'J02' is left out." in caplog.text
    tifffile.imwrite(folder / "E34_mask.tif", np.zeros((40, 50), "uint16"))
    fails(ValueError, "No mask has a cell: ['E34_mask.tif', 'J02_mask.tif'].", folder)


def test_foreground_mask_is_asked_about(tmp_path, caplog):
    write(tmp_path / "a.tif", pixels())
    tifffile.imwrite(tmp_path / "a_mask.tif", (mask() > 0).astype("uint8") * 255)
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        cy.io.read_tiffs(tmp_path)
    assert "Mask 'a_mask.tif' has the one label 255. Is it a foreground mask?" in caplog.text


# --------------------------------------------------------------------------------------------------- what does not fit
def test_nothing_there(tmp_path, folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    fails(FileNotFoundError, f"No TIFF image in folder {str(empty)!r}. It holds [].", empty)
    (empty / "a.png").touch()
    fails(FileNotFoundError, "It holds ['a.png'].", empty)
    fails(FileNotFoundError, f"No file or folder {str(tmp_path / 'gone')!r}.", tmp_path / "gone")
    fails(FileNotFoundError, "No file or folder", folder, masks=folder / "gone.tif")
    fails(FileNotFoundError, "No TIFF file in folder", folder, masks=empty)
    fails(FileNotFoundError, "No CSV file in folder", folder, centers=empty)
    fails(ValueError, "No TIFF file given.", [])


def test_files_without_a_partner(folder, tmp_path):
    tifffile.imwrite(tmp_path / "K99_mask.tif", mask())
    fails(ValueError, "No image fits mask ['K99_mask.tif']", images(folder), masks=[*folder.glob("*_mask.tif")])
    (tmp_path / "K99_mask.tif").unlink()
    fails(
        ValueError,
        "1 of 2 images have no mask: ['J02.ome.tif']. Given: ['E34_mask.tif'].",
        images(folder),
        masks=folder / "E34_mask.tif",
    )
    fails(ValueError, "`cells` needs masks or centres", images(folder), cells=folder / "E34_cells.csv")


def test_masks_of_the_wrong_kind(folder):
    path = folder / "J02_mask.tif"
    tifffile.imwrite(path, mask()[:, :-1])
    fails(ValueError, "Mask 'J02_mask.tif' is 40 x 49 pixels, but its image 'J02.ome.tif' is 40 x 50.", folder)
    tifffile.imwrite(path, np.stack([mask(), mask()]), photometric="minisblack")
    fails(ValueError, "Mask 'J02_mask.tif' has 2 channels; a label image has one", folder)
    tifffile.imwrite(path, np.stack([mask().astype("uint8")] * 3, axis=2), photometric="rgb")
    fails(ValueError, "Mask 'J02_mask.tif' has 3 channels; a label image has one", folder)
    tifffile.imwrite(path, mask("float32") / 2)
    fails(ValueError, "Mask 'J02_mask.tif' holds values that are no labels, such as 1.5", folder)
    tifffile.imwrite(path, -mask("int32"))
    fails(ValueError, "Mask 'J02_mask.tif' holds values that are no labels, such as -65534", folder)
    labels = mask("float32")
    labels[0, 0] = np.nan
    tifffile.imwrite(path, labels)
    fails(ValueError, "Mask 'J02_mask.tif' holds values that are no labels, such as nan", folder)


def test_images_of_the_wrong_kind(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, np.zeros((4, 3, 40, 50), "uint8"), metadata={"axes": "ZCYX"})
    fails(ValueError, "more than one beside Y and X. Project it to one plane", tmp_path)
    path.write_text("not a picture")
    fails(ValueError, f"Cannot read {str(path)!r} as a TIFF image", tmp_path)
    path.write_bytes(b"")
    fails(ValueError, f"Cannot read {str(path)!r} as a TIFF image", tmp_path)
    write(path, pixels(), compression="zlib")
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"is cut short|Cannot read"):
        cy.io.read_tiffs(tmp_path)


@pytest.mark.parametrize("which", ["E34.ome.tif", "E34_mask.tif"])
def test_damage_inside_a_file_is_told_with_its_name(folder, which):
    """Masks are read when opened, images when used."""
    path = folder / which
    tifffile.imwrite(path, tifffile.imread(path), compression="zlib", photometric="minisblack")
    with tifffile.TiffFile(path) as file:
        start, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    data = bytearray(path.read_bytes())
    data[start : start + count] = b"\x99" * count
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=f"Cannot read pixels of .*{which}.*The file is damaged"):
        cy.io.read_tiffs(folder)["E34_image"].to_numpy()


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}, 0.5),
        ({"PhysicalSizeX": 325, "PhysicalSizeY": 325, "PhysicalSizeXUnit": "nm", "PhysicalSizeYUnit": "nm"}, 0.325),
        ({"PhysicalSizeX": 0.5, "PhysicalSizeY": 1.0}, None),  # no one size; windows in micrometres need one
        ({"PhysicalSizeX": 2, "PhysicalSizeY": 2, "PhysicalSizeXUnit": "pixel", "PhysicalSizeYUnit": "pixel"}, None),
        ({}, None),
    ],
)
def test_pixel_size_of_ome(tmp_path, metadata, expected):
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels(), metadata={"axes": "CYX", **metadata}, photometric="minisblack")
    size = image_sources(cy.io.read_tiffs(tmp_path))[0].pixel_size
    assert size is None if expected is None else size == pytest.approx(expected)


def test_pixel_size_that_is_no_number(tmp_path, caplog):
    write(tmp_path / "a.ome.tif", pixels())
    path = tmp_path / "a.ome.tif"
    path.write_bytes(path.read_bytes().replace(b'PhysicalSizeX="0.5"', b'PhysicalSizeX="abc"'))
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        assert image_sources(cy.io.read_tiffs(tmp_path))[0].pixel_size is None
    assert (
        "PhysicalSizeX of 'a.ome.tif' is no number: 'abc'. The image stands in pixels; give `pixel_size`."
        in caplog.text
    )
    assert image_sources(cy.io.read_tiffs(tmp_path, pixel_size=0.25))[0].pixel_size == 0.25


def test_channel_names_that_do_not_fit(folder, tmp_path):
    fails(ValueError, "'E34.ome.tif' has 3 channels, but `channels` names 2.", folder, channels=["a", "b"])
    fails(ValueError, "Channel names of 'E34.ome.tif' repeat: ['a']", folder, channels=["a", "b", "a"])
    write(folder / "E34.ome.tif", pixels(), channels=["DNA", "CD8", "DNA"])
    fails(
        ValueError,
        "Channel names of 'E34.ome.tif' repeat: ['DNA']. Name every channel once through `channels=`.",
        folder,
    )
    panel = tmp_path / "short.csv"
    pd.DataFrame({"name": ["a", "b"]}).to_csv(panel)
    fails(ValueError, "has 3 channels, but the panel 'short.csv' has 2 rows, 2 of them kept", folder, channels=panel)
    pd.DataFrame({"dye": ["a", "b", "c"]}).to_csv(panel, index=False)
    fails(ValueError, "The panel needs a column 'name'. 'short.csv' has ['dye'].", folder, channels=panel)
    fails(FileNotFoundError, "No file", folder, channels=tmp_path / "gone.csv")
    panel.write_text("")
    fails(ValueError, "as a CSV table", folder, channels=panel)


@pytest.mark.parametrize(
    ("panel", "message"),
    [
        (
            {"channel": ["DNA", "CD8", "XX"], "name": ["a", "b", "c"]},
            "The panel 'p.csv' lacks channels of 'E34.ome.tif' in its column 'channel': ['CD20']. It has ['DNA', 'CD8', 'XX'].",
        ),
        ({"name": ["a", None, "c"]}, "The panel 'p.csv' has no name in row 1, column 'name'. Fill it in."),
        ({"name": ["a", "b", "c"], "keep": ["yes", "no", "yes"]}, "The panel 'p.csv' needs 1 or 0 in its column 'keep', got 'yes'."),
        ({"name": ["a", "b", "c"], "keep": [1, None, "no"]}, "needs 1 or 0 in its column 'keep', got 'no'."),
        ({"name": ["a", "b", "c"], "keep": [0, 0, 0]}, "The panel 'p.csv' keeps no channel of 'E34.ome.tif'"),
        ({"channel": [*CHANNELS, "XX"], "name": list("abcd"), "keep": [0, 0, 0, 1]}, "The panel 'p.csv' keeps no channel of"),
    ],
    ids=["some names", "no name", "keep in words", "a word", "nothing kept", "only others kept"],
)  # fmt: skip
def test_panels_that_do_not_fit(folder, panel, message):
    pd.DataFrame(panel).to_csv(folder / "p.csv", index=False)
    fails(ValueError, message, folder, channels=folder / "p.csv")


def test_panel_whose_channels_are_others_goes_by_position(folder):
    panel = pd.DataFrame({"channel": ["Ir191", "Er166", "Yb171"], "name": ["a", None, "c"]})
    panel.to_csv(folder / "p.csv", index=False)
    sdata = cy.io.read_tiffs(folder, channels=folder / "p.csv")
    assert list(get_channel_names(sdata["E34_image"])) == ["a", "Er166", "c"]


def test_tables_that_do_not_fit(folder):
    path = folder / "J02_cells.csv"
    pd.DataFrame({"cell_id": [100, 101]}).to_csv(path, index=False)
    fails(ValueError, "No id of 'J02_cells.csv' is a cell of 'J02_cells'. Ids there: [100, 101].", folder)
    pd.DataFrame({"cell_id": [3, 3]}).to_csv(path, index=False)
    fails(ValueError, "'J02_cells.csv': ids repeat in column 'cell_id', such as 3.", folder)
    pd.DataFrame({"type": ["a", "b"]}).to_csv(path, index=False)
    fails(ValueError, "'J02_cells.csv' needs a column of whole numbers that names the cells", folder)
    pd.DataFrame({"cell_id": [3, None], "label": [7, 3]}).to_csv(path, index=False)
    fails(ValueError, "'J02_cells.csv': column 'cell_id' has no id in row 1. Fill it in, or drop the row.", folder)
    for wrong, shown in (["a3", "b7"], "'a3'"), ([3.5, 7], "3.5"), ([3, float("inf")], "inf"):
        pd.DataFrame({"cell_id": wrong, "label": [7, 3]}).to_csv(path, index=False)
        fails(
            ValueError,
            f"'J02_cells.csv': column 'cell_id' must hold whole numbers, the ids of the cells, got {shown}.",
            folder,
        )
    pd.DataFrame({"Cell ID": [3, 7], "CELL-ID": [7, 3]}).to_csv(path, index=False)
    fails(ValueError, "'J02_cells.csv' has several columns for 'cell_id': ['Cell ID', 'CELL-ID']. Keep one", folder)
    path.write_text("")
    fails(ValueError, f"Cannot read {str(path)!r} as a CSV table", folder)


def test_x_and_y_go_before_other_spellings(folder):
    path, image = folder / "dots.csv", folder / "E34.ome.tif"
    pd.DataFrame({"x": [4.0], "y": [6.0], "X": [400.0], "Y": [600.0]}).to_csv(path, index=False)
    table = cy.io.read_tiffs(image, centers=path)["table"]
    np.testing.assert_allclose(table.obsm["spatial"], [[2, 3]])
    assert table.obs[["X", "Y"]].to_numpy().tolist() == [[400, 600]]
    assert "x" not in table.obs
    pd.DataFrame({"x ": [4.0], "y": [6.0], "X": [400.0]}).to_csv(path, index=False)
    fails(ValueError, "'dots.csv' has several columns for 'x': ['x ', 'X']. Keep one of them.", image, centers=path)


def test_centers_that_do_not_fit(folder):
    path = folder / "dots.csv"
    pd.DataFrame({"x": [1.0], "row": [1.0]}).to_csv(path, index=False)
    image = folder / "E34.ome.tif"
    fails(ValueError, "'dots.csv' needs columns 'x' and 'y'. It has ['x', 'row'].", image, centers=path)
    pd.DataFrame({"x": [1.0, np.nan], "y": [1.0, 2.0]}).to_csv(path, index=False)
    fails(ValueError, "'dots.csv': x or y is missing in row 1.", image, centers=path)
    pd.DataFrame({"x": [1.0, 2.0], "y": [1.0, 2.0], "id": [4, 4]}).to_csv(path, index=False)
    fails(ValueError, "'dots.csv': ids repeat in column 'id', such as 4.", image, centers=path)
    pd.DataFrame({"x": [1.0, 2.0], "y": [1.0, 2.0], "id": ["a", "b"]}).to_csv(path, index=False)
    fails(ValueError, "'dots.csv': column 'id' must hold whole numbers", image, centers=path)
    pd.DataFrame({"x": ["left"], "y": [1.0]}).to_csv(path, index=False)
    fails(ValueError, "'dots.csv': columns 'x' and 'y' must be numbers", image, centers=path)
    pd.DataFrame({"x": [], "y": []}).to_csv(path, index=False)
    fails(ValueError, "'dots.csv' has no rows", image, centers=path)


def test_masks_and_centers_together(folder):
    pd.DataFrame({"x": [1.0], "y": [1.0]}).to_csv(folder / "dots.csv", index=False)
    fails(
        ValueError,
        "`masks` and `centers` both name cells",
        folder / "E34.ome.tif",
        masks=folder / "E34_mask.tif",
        centers=folder / "dots.csv",
    )


def test_pixel_size_must_be_positive(folder):
    fails(ValueError, "`pixel_size` must be positive, got 0", folder, pixel_size=0)


# ---------------------------------------------------------------------------------------------------------- real fields
@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "n_images", "n_channels", "n_cells", "first"),
    [
        ("codex_lymphoid_crop", 1, 5, 2171, "Hoechst"),
        ("mibi_lymphnode", 1, 49, 4133, "Au"),
        ("imc_pancreas", 2, 5, 240, "H3"),
        ("mibi_dcis", 9, 41, None, "AR"),
        ("mibi_tb_granuloma", 1, 45, 1830, "Arginase1"),  # label 1 of its mask is the background
        ("imc_mock_steinbock", 9, 5, 101, "Ag107"),
    ],
)
def test_real_folders_with_nothing_else_said(real_data, name, n_images, n_channels, n_cells, first):
    sdata = cy.io.read_tiffs(real_data(name))
    assert len(sdata.images) == n_images
    sources = image_sources(sdata)
    assert {source.shape[0] for source in sources} == {n_channels}
    assert {source.channels for source in sources} == {sources[0].channels}
    assert sources[0].channels[0] == first
    if n_cells is None:
        assert not sdata.tables  # one of its nine images has a mask: cells are to be found
        return
    assert sdata["table"].n_obs == n_cells
    for source in resolve(sdata):
        y, x = source.centers.T
        assert ((y > 0) & (x > 0) & (y < source.shape[1]) & (x < source.shape[2])).all()


@pytest.mark.real_data
def test_real_tables_fit_the_masks(real_data):
    folder = real_data("codex_lymphoid_crop")
    obs = cy.io.read_tiffs(folder)["table"].obs
    cells = pd.read_csv(folder / "crop_cells.csv").set_index("cell_id").loc[obs["instance_id"]]
    assert obs["source_label"].tolist() == cells["source_label"].tolist()
