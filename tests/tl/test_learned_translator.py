"""Stains and class maps by networks: the grid, the way tiles are put together, whole slides, and what cannot be."""

from __future__ import annotations

import logging
from typing import Any

import dask.array as da
import numpy as np
import pytest
import torch
import zarr
from skimage.data import immunohistochemistry
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel, get_channel_names
from spatialdata.transformations import get_transformation

import cytonym as cy
from cytonym.data.source import image_sources
from cytonym.models import DeepLIIF, DeepLIIFConfig
from cytonym.models.deepliif import SEGMENTATION
from cytonym.models.fast_generators import FastDeepLIIF
from cytonym.models.translation import scaled, to_uint8
from cytonym.tl import _learned_translator as module
from cytonym.tl._learned_translator import is_light, resized

torch.set_num_threads(1)
TINY: dict[str, Any] = {"filters": 2, "blocks": 1, "depth": 4, "tile_px": 64}
NAMES = ("hematoxylin", "DAPI", "Lap2", "marker")


def tiny(names=NAMES, seed=0, **changes) -> DeepLIIF:
    """With layers that do something."""
    model = DeepLIIF.from_seed(names, DeepLIIFConfig(**TINY | changes), seed=seed)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data *= 5
    return model


def real(height, width, place=(50, 90)):
    """Part of a section, [3, h, w]."""
    y, x = place
    return immunohistochemistry()[y : y + height, x : x + width].transpose(2, 0, 1)


def brightfield(rgb, pixel_size=0.25, channels=("r", "g", "b"), name="ihc"):
    return cy.io.from_arrays(rgb, channels=list(channels), name=name, pixel_size=pixel_size)


def translated(pixels, model, size=0.25, **settings):
    sdata = brightfield(pixels, size)
    cy.tl.translate_stain(sdata, model, device="cpu", **settings)
    return sdata


def plainly(rgb, model, tile, network, *, blended=True):
    """Class map and stains of whole arrays: a loop over the grid, and weighted sums of everything."""
    _, height, width = rgb.shape
    margins = [tile // 16 if n > tile else 0 for n in (height, width)]
    whole = np.pad(rgb, [(0, 0), (0, max(0, tile - height)), (0, max(0, tile - width))], mode="symmetric")
    starts = [
        [*range(0, max(0, n - tile), tile - 2 * m), max(0, n - tile)]
        for n, m in zip((height, width), margins, strict=True)
    ]
    total, weights = np.zeros((7, *whole.shape[1:])), np.zeros(whole.shape[1:])
    for i, y in enumerate(starts[0]):
        for j, x in enumerate(starts[1]):
            cut = torch.from_numpy(whole[:, y : y + tile, x : x + tile].copy())[None]
            with torch.inference_mode():
                made = network(scaled(resized(cut, model.config.tile_px)))
            pictures = {name: resized(to_uint8(image), tile).numpy()[0] for name, image in made.items()}
            stains = [255 - pictures[n].min(0) if is_light(n) else pictures[n].max(0) for n in model.markers]
            ramps = []
            for n, m, k, all_starts in zip((height, width), margins, (i, j), starts, strict=True):
                at, ramp = np.arange(tile) + all_starts[k] + 0.5, np.ones(tile)
                for other, sign in ((k - 1, 1), (k + 1, -1)):
                    if n > tile and 0 <= other < len(all_starts):
                        middle = (all_starts[k] + all_starts[other] + tile) / 2
                        if not blended:
                            middle = all_starts[max(k, other)] + m
                        ramp *= (
                            np.clip(0.5 + sign * (at - middle) / (2 * m), 0, 1) if blended else sign * (at - middle) > 0
                        )
                ramps.append(ramp)
            weight = np.outer(*ramps)
            total[:, y : y + tile, x : x + tile] += np.stack([*stains, *pictures[SEGMENTATION]]) * weight
            weights[y : y + tile, x : x + tile] += weight
    np.testing.assert_allclose(weights, 1)
    return np.floor(total.round(6) + 0.5)[:, :height, :width]


# ---------------------------------------------------------------------------------------------------------------- results
@pytest.mark.parametrize("tiles", ["blended", "released"])
@pytest.mark.parametrize(
    ("shape", "pixel_size"), [((150, 110), 0.25), ((70, 190), 0.2), ((64, 64), 0.25), ((50, 90), 0.4), ((40, 33), 0.2)]
)
def test_is_what_a_plain_loop_makes(tiles, shape, pixel_size):
    """Exactly so with the same networks, and to a rounding with the networks as they are trained."""
    torch.set_num_threads(1)  # as each tile has in the networks; sums by several threads differ in their last digits
    model, rgb = tiny(), real(*shape)
    sdata = translated(rgb, model, pixel_size, tiles=tiles)
    found = np.concatenate([sdata["ihc_stains"].values, sdata["ihc_class_map"].values])
    tile = {0.25: 64, 0.2: 80, 0.4: 40}[pixel_size]
    assert sdata.attrs["translate_stain"]["ihc_stains"]["tile_px"] == tile
    expected = plainly(rgb, model, tile, FastDeepLIIF(model), blended=tiles == "blended")
    np.testing.assert_array_equal(found, expected)
    assert found.std() > 3
    as_trained = plainly(rgb, model, tile, model, blended=tiles == "blended")
    assert np.abs(found - as_trained).max() <= 2
    assert (found != as_trained).mean() < 0.01


def test_makes_named_images_where_the_image_is():
    model = tiny(("hematoxylin", "CD 3"))
    model.provenance = {"licence": "Some licence."}
    sdata = translated(real(100, 120), model, 0.3, rgb=True)
    assert set(sdata.images) == {"ihc_image", "ihc_stains", "ihc_class_map", "ihc_hematoxylin", "ihc_CD_3"}
    names = {key: [str(c) for c in get_channel_names(image)] for key, image in sdata.images.items()}
    assert names["ihc_stains"] == ["hematoxylin", "CD 3"]
    assert names["ihc_class_map"] == ["positive", "border", "negative"]
    assert names["ihc_CD_3"] == ["r", "g", "b"]
    for key in set(sdata.images) - {"ihc_image"}:
        assert sdata[key].dtype == np.uint8
        assert sdata[key].shape[1:] == sdata["ihc_image"].shape[1:]
        assert get_transformation(sdata[key]) == get_transformation(sdata["ihc_image"])
    told = sdata.attrs["translate_stain"]["ihc_class_map"]
    assert told["image"] == "ihc_image"
    assert told["model"] == "deepliif"
    assert told["weights_sha256"] == cy.models.checkpoint.weights_sha256(model)
    assert (told["licence"], told["pixel_size"], told["pixel_size_from"]) == ("Some licence.", 0.3, "image")
    assert (told["tile_px"], told["tiles"]) == (53, "blended")
    # translated again, by itself: what was made of it is not translated
    cy.tl.translate_stain(sdata, model, device="cpu", rgb=True)
    assert len(sdata.images) == 5


def test_pictures_of_other_networks_are_removed():
    sdata = translated(real(64, 80), tiny(), rgb=True)
    pictures = {f"ihc_{name}" for name in NAMES}
    assert pictures <= set(sdata.images)
    cy.tl.translate_stain(sdata, tiny(), device="cpu")
    assert pictures <= set(sdata.images)  # still what these networks make
    cy.tl.translate_stain(sdata, tiny(seed=1), device="cpu")
    assert set(sdata.images) == {"ihc_image", "ihc_stains", "ihc_class_map"}
    assert set(sdata.attrs["translate_stain"]) == {"ihc_stains", "ihc_class_map"}


def test_a_measured_modality_is_not_replaced():
    sdata = brightfield(real(64, 80))
    sdata["ihc_DAPI"] = measured = sdata["ihc_image"]
    with pytest.raises(
        ValueError, match=r"Images \['ihc_DAPI'\] are there already.*Rename or delete them, or.*`rgb` out"
    ):
        cy.tl.translate_stain(sdata, tiny(), image_key="ihc_image", device="cpu", rgb=True)
    assert set(sdata.images) == {"ihc_image", "ihc_DAPI"}
    cy.tl.translate_stain(sdata, tiny(), image_key="ihc_image", device="cpu")
    assert sdata["ihc_DAPI"] is measured


def test_bright_means_more():
    """Where tiles do not overlap, a channel is the largest color, or 255 less the smallest for a stain on bright ground."""
    sdata = translated(real(64, 64), tiny(), rgb=True)
    stains = sdata["ihc_stains"]
    np.testing.assert_array_equal(stains.sel(c="marker").values, sdata["ihc_marker"].values.max(axis=0))
    np.testing.assert_array_equal(stains.sel(c="hematoxylin").values, 255 - sdata["ihc_hematoxylin"].values.min(axis=0))


def test_results_do_not_depend_on_batches_chunks_or_outputs(tmp_path):
    model, rgb = tiny(), real(140, 175)
    expected = translated(rgb, model)
    stored = zarr.create_array(tmp_path / "pixels.zarr", shape=rgb.shape, dtype="u1", chunks=(2, 50, 70))
    stored[:] = rgb
    for pixels, settings in (
        (rgb, {"batch_size": 1, "rgb": True}),
        (rgb, {"batch_size": 5, "class_map": False}),
        (da.from_zarr(stored), {}),
        (da.from_array(rgb, chunks=(1, 61, 200)) + np.uint8(0), {"batch_size": 3}),
    ):
        sdata = SpatialData(images={"ihc": Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"])})
        cy.tl.translate_stain(sdata, model, pixel_size=0.25, device="cpu", **settings)
        for key in {"ihc_stains", "ihc_class_map"} & set(sdata.images):
            np.testing.assert_array_equal(sdata[key].values, expected[key].values)


@pytest.mark.parametrize("shape", [(150, 110), (110, 150)])
def test_goes_on_after_an_interruption(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(module, "CHUNK_PX", 40)
    model, rgb = tiny(), real(*shape)
    whole = translated(rgb, model)
    seen: list[int] = []
    plain = module.is_empty

    def interrupted(tile):
        seen.append(1)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return plain(tile)

    settings = {"out": tmp_path, "device": "cpu", "batch_size": 1}
    sdata = brightfield(rgb)
    monkeypatch.setattr(module, "is_empty", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cy.tl.translate_stain(sdata, model, **settings)
    assert list(sdata.images) == ["ihc_image"]
    lines = (tmp_path / "ihc_translation" / "progress.txt").read_text().splitlines()
    assert len(lines) > 2
    seen.clear()
    monkeypatch.setattr(module, "is_empty", lambda tile: bool(seen.append(1)) or plain(tile))
    cy.tl.translate_stain(sdata, model, **settings)
    assert len(seen) < 6  # one row of tiles is left, which the first run had not begun
    for key in ("ihc_stains", "ihc_class_map"):
        np.testing.assert_array_equal(sdata[key].values, whole[key].values)
    seen.clear()
    cy.tl.translate_stain(sdata, model, **settings)  # complete
    assert not seen
    # with other weights, or other images, all anew
    other = tiny(seed=1)
    cy.tl.translate_stain(sdata, other, **settings)
    np.testing.assert_array_equal(sdata["ihc_stains"].values, translated(rgb, other)["ihc_stains"].values)
    cy.tl.translate_stain(sdata, other, class_map=False, **settings)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_tiles_that_go_through_the_networks_together(batch_size):
    """As on a GPU: batches of one size, the last one filled up."""
    rgb = real(150, 110)
    expected = translated(rgb, tiny())
    [source] = image_sources(brightfield(rgb))
    translator = module.LearnedTranslator(tiny(), 64, batch_size=batch_size, device="cpu")
    translator.one_by_one = False
    [piece] = translator.pieces(source)
    for name in ("stains", "class_map"):
        apart = np.abs(piece.images[name].astype(int) - expected[f"ihc_{name}"].values)
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    rgb = real(150, 110)
    expected = translated(rgb, tiny())
    sdata = brightfield(rgb)
    cy.tl.translate_stain(sdata, tiny(), device="cuda")
    for key in ("ihc_stains", "ihc_class_map"):
        assert np.abs(sdata[key].values.astype(int) - expected[key].values).mean() < 2


def test_memory_goes_to_squares_that_are_whole(monkeypatch):
    """Pieces cover the image once and do not wait for its end."""
    monkeypatch.setattr(module, "CHUNK_PX", 64)
    [source] = image_sources(brightfield(real(300, 100)))
    translator = module.LearnedTranslator(tiny(), 64, device="cpu")
    covered = np.zeros((300, 100), int)
    pieces = translator.pieces(source)
    first = next(pieces)
    assert (first.y0, first.x0) == (0, 0)
    for piece in (first, *pieces):
        _, h, w = piece.images["stains"].shape
        assert piece.images["class_map"].shape == (3, h, w)
        covered[piece.y0 : piece.y0 + h, piece.x0 : piece.x0 + w] += 1
    assert (covered == 1).all()


def test_where_there_is_no_tissue():
    """Empty tiles get the colors of the published program; networks do not see them."""
    rgb = np.full((3, 64, 130), 240, np.uint8)
    model = tiny((*NAMES, "CD8"))
    for network in model.translators.values():
        network.forward = None
    sdata = translated(rgb, model, rgb=True)
    colors = {"hematoxylin": (201, 211, 208), "DAPI": (10,) * 3, "Lap2": (0,) * 3, "marker": (10,) * 3, "CD8": (0,) * 3}
    for name, color in colors.items():
        np.testing.assert_array_equal(
            sdata[f"ihc_{name}"].values, np.broadcast_to(np.array(color)[:, None, None], rgb.shape)
        )
    assert sdata["ihc_stains"].values[:, 5, 5].tolist() == [255 - 201, 10, 0, 10, 0]
    assert not sdata["ihc_class_map"].values.any()
    rgb[:, :30, 80:110] = real(30, 30)  # tissue at one end only
    half = translated(rgb, tiny())
    assert half["ihc_stains"].values[1, :, :56].max() == 10
    assert half["ihc_stains"].values[1, :, 80:].std() > 0


def test_a_blank_image_is_said_to_be_blank(caplog):
    sdata = translated(np.full((3, 64, 64), 240, np.uint8), tiny())
    assert "blank" in caplog.text
    assert not sdata["ihc_class_map"].values.any()


def test_networks_are_left_as_they_were():
    model = tiny()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    translated(real(64, 64), model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_networks_without_modalities_draw_the_class_map():
    sdata = translated(real(64, 80), tiny(()))
    assert set(sdata.images) == {"ihc_image", "ihc_class_map"}
    with pytest.raises(ValueError, match="nothing to make without the class map"):
        translated(real(64, 80), tiny(()), class_map=False)


def test_one_channel_a_modality():
    model = tiny(("hematoxylin", "DAPI"), output_channels=1)
    sdata = translated(real(64, 80), model)
    assert sdata["ihc_stains"].shape == (2, 64, 80)
    with pytest.raises(ValueError, match="make 1 channels"):
        translated(real(64, 80), model, rgb=True)


def test_nuclei_are_found_in_what_networks_draw(monkeypatch, stained):
    """With defaults, and calls by the marker."""
    sdata, centers, positive = stained(pixel_size=0.25)
    model = tiny()

    def draw(_, x, *, segmentation=True):
        brown, dark = x[:, 2] < 0.1, x.mean(1) < 0.55
        drawn = torch.stack([dark & brown, dark & False, dark & ~brown], dim=1) * 2.0 - 1
        return {name: drawn[:, [0, 0, 0]] for name in NAMES} | {SEGMENTATION: drawn}

    monkeypatch.setattr(FastDeepLIIF, "__call__", draw)
    cy.tl.translate_stain(sdata, model, device="cpu")
    cy.tl.segment_nuclei(sdata)
    table = sdata["table"]
    assert table.n_obs == len(centers)
    assert (table.obs["ihc_class"] == "positive").sum() == positive.sum()
    assert table.obs["dab_density"].notna().all()
    params = table.uns["segment_nuclei"]["params"]["nuclei"]
    assert (params["size_thresh"], params["resolution"]) == (16, "40x")
    cy.tl.segment_nuclei(sdata, marker_key="ihc_stains", marker_channel="marker", marker_thresh="default")
    brown = sdata["table"].obs["ihc_class"] == "positive"
    assert sdata["table"].obs["marker_max"][brown].min() == 255
    assert sdata["table"].uns["segment_nuclei"]["params"]["nuclei"]["marker_thresh"] > 0


def test_nuclei_go_by_the_pixel_size_that_the_translation_went_by(monkeypatch, stained):
    sdata, _, _ = stained(pixel_size=None)

    def draw(_, x, *, segmentation=True):
        drawn = torch.stack([x.mean(1) < 0.5] * 3, dim=1) * torch.tensor([1.0, 0, 0])[:, None, None] * 2.0 - 1
        return dict.fromkeys((*NAMES, SEGMENTATION), drawn)

    monkeypatch.setattr(FastDeepLIIF, "__call__", draw)
    cy.tl.translate_stain(sdata, tiny(), pixel_size=0.5, device="cpu")
    assert sdata.attrs["translate_stain"]["ihc_stains"]["tile_px"] == 32
    cy.tl.segment_nuclei(sdata)
    assert sdata["table"].uns["segment_nuclei"]["params"]["nuclei"]["resolution"] == "20x"


def test_levels_and_the_disk(tmp_path):
    rgb = real(160, 140)
    element = Image2DModel.parse(rgb, dims=("c", "y", "x"), c_coords=["r", "g", "b"], scale_factors=[2])
    sdata = SpatialData(images={"ihc_image": element})
    cy.tl.translate_stain(sdata, tiny(), scale="scale1", pixel_size=0.25, device="cpu", scale_factors=[2])
    assert list(sdata["ihc_stains"].children) == ["scale0", "scale1"]
    assert sdata["ihc_stains"]["scale0"]["image"].shape == (4, 80, 70)
    sdata.write(tmp_path / "store.zarr")
    back = read_zarr(tmp_path / "store.zarr")
    assert dict(back.attrs["translate_stain"]["ihc_stains"])["modalities"] == list(NAMES)


def test_a_checkpoint_is_a_model(tmp_path):
    model, rgb = tiny(), real(64, 80)
    folder = cy.models.save(model, tmp_path / "mine")
    found = translated(rgb, folder)
    np.testing.assert_array_equal(found["ihc_stains"].values, translated(rgb, model)["ihc_stains"].values)
    assert translated(rgb, str(folder)).attrs == found.attrs


# ---------------------------------------------------------------------------------------------------------------- said
def test_the_licence_is_said(caplog):
    model = tiny()
    model.provenance = {"licence": "For non-commercial use only."}
    translated(real(64, 64), model)
    [said] = [record for record in caplog.records if "non-commercial" in record.message]
    assert said.levelno == logging.WARNING


def test_an_unknown_pixel_size_is_said_to_be_assumed(caplog):
    sdata = translated(real(64, 80), tiny(pixel_size=0.5), None)
    assert "0.5 micrometres are assumed" in caplog.text
    told = sdata.attrs["translate_stain"]["ihc_stains"]
    assert (told["pixel_size"], told["pixel_size_from"], told["tile_px"]) == (0.5, "assumed", 64)
    caplog.clear()
    sdata = translated(real(64, 80), tiny(), None, pixel_size=0.5)
    told = sdata.attrs["translate_stain"]["ihc_stains"]
    assert (told["pixel_size"], told["pixel_size_from"], told["tile_px"]) == (0.5, "given", 32)
    assert "assumed" not in caplog.text


# ---------------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rgb: (rgb[:2], ("r", "g")), "No RGB image"),
        (lambda rgb: (rgb.astype(np.uint16) * 257, ("r", "g", "b")), "holds uint16.*image // 257"),
        (lambda rgb: ((255 - rgb) // 3, ("r", "g", "b")), "is dark.*fluorescence"),
        (lambda rgb: (rgb[:, :20], ("r", "g", "b")), "too small: 20 x 120"),
    ],
    ids=["two channels", "16 bits", "inverted", "tiny"],
)
def test_images_that_are_not_brightfield(change, message):
    pixels, names = change(real(100, 120))
    sdata = brightfield(pixels, channels=names)
    with pytest.raises(ValueError, match=message):
        cy.tl.translate_stain(sdata, tiny(), device="cpu")
    assert list(sdata.images) == ["ihc_image"]


def test_transparency_is_left_out():
    rgb = real(64, 80)
    expected = translated(rgb, tiny())
    sdata = brightfield(np.concatenate([rgb, np.full((1, 64, 80), 255, np.uint8)]), channels=["r", "g", "b", "a"])
    cy.tl.translate_stain(sdata, tiny(), device="cpu")
    np.testing.assert_array_equal(sdata["ihc_stains"].values, expected["ihc_stains"].values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"diameter_um": 8.0}, "For model='classical' only.*`diameter_um`"),
        ({"diameter_px": 8.0, "contrast": 0.1}, "`diameter_px`, `contrast`"),
        ({"nuclear_stain": True}, "`nuclear_stain`"),
        ({"tile_px": 512}, "`tile_px`"),
        ({"tiles": "aligned"}, "`tiles` must be one of"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"pixel_size": 0}, "`pixel_size` must be positive"),
        ({"pixel_size": float("nan")}, "`pixel_size` must be positive"),
        ({"pixel_size": 4.0}, r"Pixels of 4 micrometres \(given\).*know pixels of 0.25.*a side of 4"),
        ({"pixel_size": 0.01}, "Pixels of 0.01"),
        ({"device": "cuda:99"}, "not at hand"),
    ],
)
def test_settings_that_have_no_meaning(settings, message):
    sdata = brightfield(real(64, 80))
    with pytest.raises(ValueError, match=message):
        cy.tl.translate_stain(sdata, tiny(), **settings)
    assert list(sdata.images) == ["ihc_image"]


@pytest.mark.parametrize(
    "settings", [{"pixel_size": 0.5}, {"tiles": "blended"}, {"rgb": True}, {"batch_size": 2}, {"device": "cuda"}]
)
def test_settings_of_networks_are_not_for_the_classical_model(settings):
    [name] = settings
    with pytest.raises(ValueError, match=f"For learned networks only.*`{name}`"):
        cy.tl.translate_stain(brightfield(real(64, 80)), **settings)


def test_what_is_no_model(tmp_path):
    sdata = brightfield(real(64, 80))
    cases: list[tuple[Any, type[Exception], str]] = [
        ("deepliif", ValueError, r"non-commercial.*models.DeepLIIF.from_published\(folder\).*model='classical'"),
        ("vangogh", ValueError, "'vangogh' is neither 'classical' nor"),
        (3, TypeError, "got int"),
        (tmp_path / "nothing", FileNotFoundError, "No checkpoint"),
        (
            cy.models.save(cy.models.NeXtMarker.from_statistics(["A"], [1.0]), tmp_path / "other"),
            ValueError,
            "holds a nextmarker",
        ),
        (tiny(input_channels=6), ValueError, "take images of 6 channels"),
    ]
    published = tmp_path / "published"
    published.mkdir()
    (published / "latest_net_G1.pth").touch()
    cases.append((published, ValueError, "Pass `models.DeepLIIF.from_published"))
    for model, error, message in cases:
        with pytest.raises(error, match=message):
            cy.tl.translate_stain(sdata, model)
    assert list(sdata.images) == ["ihc_image"]


def test_modalities_whose_names_are_taken():
    with pytest.raises(ValueError, match="cannot all be names of images"):
        translated(real(64, 64), tiny(("Stains",)), rgb=True)
    with pytest.raises(ValueError, match="cannot all be names of images"):
        translated(real(64, 64), tiny(("a b", "a_b")), rgb=True)
    assert list(get_channel_names(translated(real(64, 64), tiny(("stains",)))["ihc_stains"])) == ["stains"]
    sdata = brightfield(real(64, 64))
    sdata["ihc_marker"] = sdata["ihc_image"]
    with pytest.raises(ValueError, match="would replace images that are translated"):
        cy.tl.translate_stain(sdata, tiny(), rgb=True, device="cpu")
