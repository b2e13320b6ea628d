"""Confounders against slow ways to count neighbours and information, and whether the true cause comes out on top."""

from __future__ import annotations

import logging
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mutual_info_score

import cytonym as cy
from cytonym.data.names import with_storable_columns
from cytonym.tl._association import Units, associate, bin_codes, mutual_information, neighbours_within

MARKERS = ["CD3", "CD20", "CD3/CD28"]
ALL = {"cell_size", "density", "sparsity", "rarity", "heterogeneity"}


def table(n: int = 600, markers: list[str] = MARKERS, seed: int = 0) -> tuple[ad.AnnData, pd.DataFrame]:
    """Cells of two images with perfect scores, and the truth."""
    rng = np.random.default_rng(seed)
    names = [f"c{i}" for i in range(n)]
    obs = pd.DataFrame({"region": np.where(np.arange(n) % 3, "a", "b"), "area": rng.uniform(20, 200, n)}, index=names)
    truth = pd.DataFrame(rng.random((n, len(markers))) < 0.3, index=names, columns=markers)
    adata = ad.AnnData(rng.gamma(2.0, size=(n, len(markers))).astype("f4"), obs=obs)
    adata.var_names = markers
    adata.obsm["spatial"] = rng.uniform(0, 600, (n, 2))
    write(adata, truth)
    return adata, truth


def write(adata: ad.AnnData, called: pd.DataFrame) -> None:
    scores = called.astype("f4") * 0.8 + 0.1
    adata.obsm["nimbus_positivity"] = with_storable_columns(scores, "nimbus_positivity", adata.uns)


def of(result: pd.DataFrame, name: str) -> pd.Series:
    return result.set_index("confounder").T[name]


def test_errors_of_small_cells_put_the_area_on_top():
    adata, truth = table()
    small = (adata.obs["area"] < 60).to_numpy()
    write(adata, truth ^ small[:, None])
    result = cy.tl.confounders(adata, truth)
    assert set(result["confounder"]) == ALL
    assert result["confounder"][0] == "cell_size"
    assert result["mutual_information"].is_monotonic_decreasing
    size = of(result, "cell_size")
    assert size["mutual_information"] > 5 * size["null_95"]
    assert 0.8 < size["explained"] <= 1
    others = result[result["confounder"] != "cell_size"]
    assert (others["mutual_information"] < 0.05).all()
    assert size[["n", "n_units"]].tolist() == [1800, 600]
    assert of(result, "sparsity")["n_units"] == 1800
    assert of(result, "rarity")["n_units"] == 6  # markers x images
    assert result.attrs["error_rate"] == pytest.approx(small.mean())
    assert result.attrs["n"] == 1800
    assert cy.get.marker_frame(adata, "nimbus_positivity").columns.tolist() == MARKERS  # nothing was written


def test_a_shuffled_area_does_not_stand_out():
    above = []
    for seed in range(12):
        adata, truth = table(300, seed=seed)
        small = (adata.obs["area"] < 60).to_numpy()
        write(adata, truth ^ small[:, None])
        adata.obs["area"] = np.random.default_rng(seed).permutation(adata.obs["area"])
        size = of(cy.tl.confounders(adata, truth, n_permutations=50), "cell_size")
        above.append(size["mutual_information"] > size["null_95"])
    assert sum(above) <= 3  # one in twenty by chance


def test_any_dependence_counts_not_only_a_rising_one():
    adata, truth = table()
    middle = adata.obs["area"].between(80, 140).to_numpy()
    write(adata, truth ^ middle[:, None])
    assert cy.tl.confounders(adata, truth)["confounder"][0] == "cell_size"


def test_errors_in_crowds():
    adata, truth = table(900)
    points = adata.obsm["spatial"]
    points[:300] = 40 + points[:300] / 8  # a crowd in a corner
    crowd = np.arange(900) < 300
    write(adata, truth ^ crowd[:, None])
    result = cy.tl.confounders(adata, truth, radius=30.0)
    assert set(result["confounder"][:2]) == {"density", "sparsity"}  # a crowd has more positive cells, too
    assert of(result, "density")["mutual_information"] > 5 * of(result, "density")["null_95"]
    assert of(result, "cell_size")["mutual_information"] < 0.03


def test_neighbours_equal_the_slow_way():
    rng = np.random.default_rng(1)
    points, image = rng.uniform(0, 100, (120, 2)).round(), rng.integers(-1, 3, 120)  # whole numbers: some at the radius
    points[5] = np.nan
    member, asked = rng.random(120) < 0.5, np.flatnonzero(rng.random(120) < 0.7)
    found = neighbours_within(points, member, asked, image, 25.0)
    for i in range(120):
        if i not in asked or image[i] < 0 or i == 5:
            assert np.isnan(found[i])
            continue
        near = [
            j for j in range(120)
            if j != i and j != 5 and member[j] and image[j] == image[i]
            and (points[i, 0] - points[j, 0]) ** 2 + (points[i, 1] - points[j, 1]) ** 2 <= 25.0**2
        ]  # fmt: skip
        assert found[i] == len(near)
    assert (neighbours_within(points, np.zeros(120, bool), np.array([0, 1]), np.zeros(120, int), 9.0)[:2] == 0).all()


def test_numbers_equal_the_slow_way():
    """Every column but the null, from loops over cells and markers."""
    adata, truth = table(150)
    rng = np.random.default_rng(3)
    truth = truth.astype(float)
    truth = truth.mask(rng.random(truth.shape) < 0.3)
    write(adata, pd.DataFrame(rng.random(truth.shape) < 0.5, index=truth.index, columns=truth.columns))
    adata.obsm["nimbus_positivity"].iloc[:20, 0] = np.nan
    scores = adata.obsm["nimbus_positivity"].set_axis(MARKERS, axis=1)
    points, region = adata.obsm["spatial"], adata.obs["region"].to_numpy()
    wrong, properties = [], {name: [] for name in ALL}
    for m, marker in enumerate(MARKERS):
        for i in range(150):
            score, fact = scores.iloc[i, m], truth[marker].iloc[i]
            if np.isnan(score) or np.isnan(fact):
                continue
            wrong.append((score >= 0.5) != (fact == 1))
            near = [
                j for j in range(150)
                if j != i and region[j] == region[i] and np.hypot(*(points[i] - points[j])) <= 60
            ]  # fmt: skip
            facts = [truth[marker].iloc[j] for j in near]
            calls = [scores.iloc[j, m] >= 0.5 for j in near]
            positive = [call if np.isnan(fact) else fact == 1 for fact, call in zip(facts, calls, strict=True)]
            properties["density"].append(len(near))
            properties["sparsity"].append(sum(positive))
            properties["cell_size"].append(adata.obs["area"].iloc[i])
            here = region == region[i]
            judged = here & scores[marker].notna().to_numpy()
            properties["rarity"].append(np.nanmean(truth[marker].to_numpy()[judged]))
            values = np.asarray(adata[here, marker].X, dtype=float)
            properties["heterogeneity"].append(values.std() / values.mean())
    result = cy.tl.confounders(adata, truth)
    share = np.mean(wrong)
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    for name in ("density", "sparsity"):  # cells, and cells and markers: all pairs have the same weight
        row = of(result, name)
        assert row["n"] == len(wrong)
    for name, values in properties.items():
        row, array = of(result, name), np.asarray(values)
        n_bins = int(np.clip(row["n_units"] // 5, 2, 10))
        rank = np.array([((array < v).sum() + (array <= v).sum()) / 2 / len(array) for v in array])
        few = len(np.unique(array.round(12))) <= n_bins
        codes = array.round(12) if few else np.floor(rank * n_bins)
        information = mutual_info_score(codes.astype(str), wrong)
        assert row["mutual_information"] == pytest.approx(information, abs=1e-9), name
        assert row["explained"] == pytest.approx(information / entropy, abs=1e-9)


def test_information_and_bins():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, 500), rng.integers(0, 2, 500)
    b[a == 3] = 1
    counts = np.stack([np.bincount(a[b == k], minlength=4) for k in (0, 1)])
    assert mutual_information(counts) == pytest.approx(mutual_info_score(a, b))
    assert mutual_information(np.array([[5.0, 5.0], [0, 0]])) == 0
    values = rng.normal(size=1000)
    assert np.bincount(bin_codes(values, np.ones(1000))).tolist() == [100] * 10
    counted = np.r_[np.zeros(700), np.arange(1, 301)]  # most values are equal: they stay together
    codes = bin_codes(counted, np.ones(1000))
    assert (codes[:700] == 0).all()
    assert codes[700:].min() == 1
    assert bin_codes(np.array([5.0, 5, 9, 9, 9, 9, 9, 9, 9, 9]), np.ones(10)).tolist() == [0, 0] + [1] * 8


def test_both_ways_to_shuffle_give_the_same_null():
    """Units of one pair are drawn by bin, others are shuffled; a pair beside them that is far away changes little."""
    rng = np.random.default_rng(0)
    values, stratum, wrong = rng.random(2000), np.arange(2000) % 3, rng.random(2000) < 0.2
    values[stratum == 1] += 1
    wrong[stratum == 1] = rng.random((stratum == 1).sum()) < 0.6
    single = Units(values, stratum, np.ones(2000, int), wrong.astype(float))
    double = Units(values, stratum, np.r_[2, np.ones(1999, int)], wrong.astype(float))
    drawn, shuffled = (associate(units, 2000, np.random.default_rng(1)) for units in (single, double))
    assert drawn["null_95"] == pytest.approx(shuffled["null_95"], rel=0.02)
    assert drawn["null_95"] > 0.05  # what tells strata apart stays


def test_agrees_with_the_nearest_neighbour_estimator():
    """The paper's estimator (Ross 2014) on a smooth dependence."""
    from sklearn.feature_selection import mutual_info_classif

    adata, truth = table(6000, ["CD3"])
    area = adata.obs["area"].to_numpy()
    wrong = np.random.default_rng(5).random(6000) < 0.6 * np.exp(-((area - 20) / 60))
    write(adata, truth ^ wrong[:, None])
    found = of(cy.tl.confounders(adata, truth, n_permutations=1), "cell_size")["mutual_information"]
    [expected] = mutual_info_classif(area[:, None], wrong, random_state=0)
    assert found == pytest.approx(expected, abs=0.01)


def test_differences_between_images_and_markers_are_in_the_null():
    """All errors are in one image, whose cells are smaller: that does not make the area a cause within images."""
    adata, truth = table()
    b = (adata.obs["region"] == "b").to_numpy()
    adata.obs.loc[b, "area"] /= 10
    write(adata, truth ^ (b & (np.random.default_rng(2).random(600) < 0.5))[:, None])
    size = of(cy.tl.confounders(adata, truth), "cell_size")
    assert size["mutual_information"] > 0.05
    assert size["null_95"] > 0.05
    adata, truth = table(400, MARKERS)
    wrong = np.zeros((400, 3), bool)
    wrong[:, 1] = np.random.default_rng(2).random(400) < 0.5  # one marker of three is difficult
    write(adata, truth ^ wrong)
    rarity = of(cy.tl.confounders(adata, truth), "rarity")
    assert rarity["mutual_information"] <= rarity["null_95"]  # three markers of two images cannot tell why


def test_order_of_rows_and_columns_does_not_matter():
    adata, truth = table()
    write(adata, truth ^ (np.random.default_rng(1).random(truth.shape) < 0.2))
    adata.obsm["gold"] = with_storable_columns(truth.astype(float), "gold", adata.uns)
    result = cy.tl.confounders(adata, "gold")
    pd.testing.assert_frame_equal(result, cy.tl.confounders(adata, truth))
    pd.testing.assert_frame_equal(result, cy.tl.confounders(adata, truth.iloc[::-1, ::-1]))
    order = np.random.default_rng(4).permutation(600)
    pd.testing.assert_frame_equal(result, cy.tl.confounders(adata[order].copy(), truth))
    pd.testing.assert_frame_equal(result, cy.tl.confounders(adata[order], truth))  # a view
    again = cy.tl.confounders(adata, truth, rng=1)
    assert not again["null_95"].equals(result["null_95"])
    pd.testing.assert_series_equal(
        again.set_index("confounder")["n"], result.set_index("confounder")["n"], check_index=False
    )


def test_thresholds():
    adata, truth = table()
    assert cy.tl.confounders(adata, truth, threshold=0.9).attrs["error_rate"] == 0  # 0.9 is still positive
    assert cy.tl.confounders(adata, truth, threshold=0.91).attrs["error_rate"] == pytest.approx(truth.to_numpy().mean())
    by_marker = cy.tl.confounders(adata, truth, threshold={"CD3": 0.91, "CD20": 0.5, "CD3/CD28": 0.5})
    assert by_marker.attrs["error_rate"] == pytest.approx(truth["CD3"].mean() / 3)


def test_thresholds_and_calls_of_call_markers():
    """A column of its thresholds is taken, and scores at the threshold are called alike."""
    adata, truth = table(400)
    rng = np.random.default_rng(0)
    scores = pd.DataFrame(rng.integers(0, 11, truth.shape) / 10, index=truth.index, columns=MARKERS).astype("f4")
    adata.obsm["nimbus_positivity"] = with_storable_columns(scores, "nimbus_positivity", adata.uns)
    for threshold in ({"CD3": 0.7, "CD20": 0.3, "CD3/CD28": 0.0}, {"CD20": 0.1, "CD3": 0.9, "CD3/CD28": 0.6}):
        cy.tl.call_markers(adata, threshold=threshold)
        limits = adata.uns["nimbus_calls"]["thresholds"]["all"]
        called = cy.get.marker_frame(adata, "nimbus_calls")[MARKERS] == 1
        expected = float((called.to_numpy() != truth.to_numpy()).mean())
        for given in (limits, limits[::-1], threshold):
            assert cy.tl.confounders(adata, truth, threshold=given, n_permutations=1).attrs["error_rate"] == expected
    twice = pd.concat([limits, limits[:1]])
    with pytest.raises(ValueError, match=r"`threshold` names markers twice: \['CD3'\]"):
        cy.tl.confounders(adata, truth, threshold=twice)
    with pytest.raises(KeyError, match=r"`threshold` lacks the markers \['CD3'\]. It has: \['CD20', 'CD3/CD28'\]"):
        cy.tl.confounders(adata, truth, threshold=limits[1:])


def test_nothing_to_explain_is_said(caplog):
    adata, truth = table()
    with caplog.at_level(logging.INFO, logger="cytonym"):
        result = cy.tl.confounders(adata, truth)
    assert "All 1,800 calls are right" in caplog.text
    assert (result["mutual_information"] == 0).all()
    assert result["explained"].isna().all()


def test_what_cannot_be_computed_is_left_out(caplog):
    adata, truth = table(300, ["CD3"])
    write(adata, truth ^ (np.random.default_rng(1).random(truth.shape) < 0.2))
    adata.obs["region"] = "a"
    bare = ad.AnnData(obs=adata.obs.drop(columns="area"), obsm=dict(adata.obsm))
    with caplog.at_level(logging.INFO, logger="cytonym"):
        result = cy.tl.confounders(bare, truth)
    assert set(result["confounder"]) == {"density", "sparsity"}
    for message in (
        "cell_size is left out: no column 'area'", "heterogeneity is left out: no mean intensities",
        "rarity is left out: it is the same everywhere", "where those are pixels, give `radius` in pixels",
    ):  # fmt: skip
        assert message in caplog.text
    bare.obs["area_um2"] = 1.0
    bare.obsm["spatial"][:7] = np.nan
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="cytonym"):
        assert of(cy.tl.confounders(bare, truth), "density")["n"] == 293
    assert "7 cells have no position" in caplog.text
    assert "radius" not in caplog.text
    del bare.obsm["spatial"]
    with pytest.raises(ValueError, match="No property of the cells can be computed"):
        cy.tl.confounders(bare, truth)


def test_intensities_may_lie_in_obsm():
    adata, truth = table()
    write(adata, truth ^ (np.random.default_rng(1).random(truth.shape) < 0.2))
    expected = cy.tl.confounders(adata, truth)
    genes = ad.AnnData(np.ones((600, 2), "f4"), obs=adata.obs, obsm=dict(adata.obsm), uns=dict(adata.uns))
    genes.obsm["mean_intensity"] = with_storable_columns(adata.to_df(), "mean_intensity", genes.uns)
    pd.testing.assert_frame_equal(cy.tl.confounders(genes, truth), expected)
    pd.testing.assert_frame_equal(cy.tl.confounders(genes, truth, intensities="mean_intensity"), expected)
    with pytest.raises(KeyError, match=re.escape("`X` has none of the markers")):
        cy.tl.confounders(genes, truth, intensities="X")
    with pytest.raises(KeyError, match=re.escape("No intensities 'raw' in `adata.obsm`")):
        cy.tl.confounders(genes, truth, intensities="raw")


def test_a_table_with_its_own_name_for_regions():
    adata, truth = table()
    write(adata, truth ^ (np.random.default_rng(1).random(truth.shape) < 0.2))
    expected = cy.tl.confounders(adata, truth)
    adata.obs = adata.obs.rename(columns={"region": "fov"})
    pd.testing.assert_frame_equal(cy.tl.confounders(adata, truth, by="fov"), expected)
    with pytest.raises(KeyError, match=re.escape("No column 'region' in `adata.obs`. Available: ['fov', 'area']")):
        cy.tl.confounders(adata, truth)
    adata.uns["spatialdata_attrs"] = {"region_key": "fov"}
    pd.testing.assert_frame_equal(cy.tl.confounders(adata, truth), expected)


def test_an_all_nan_marker_and_markers_without_scores(caplog):
    adata, truth = table()
    write(adata, truth ^ (np.random.default_rng(1).random(truth.shape) < 0.2))
    adata.obsm["nimbus_positivity"]["CD20"] = np.nan
    with caplog.at_level(logging.INFO, logger="cytonym"):
        result = cy.tl.confounders(adata, truth.assign(PAX5=True))
    assert "Markers of the truth without scores are left out: ['PAX5']" in caplog.text
    assert of(result, "cell_size")["n"] == 1200
    adata.obsm["nimbus_positivity"][:] = np.nan
    with pytest.raises(ValueError, match="No cell has a score in 'nimbus_positivity'"):
        cy.tl.confounders(adata, truth)


@pytest.mark.parametrize(
    "kind", [lambda t: t.astype(object), lambda t: t.astype("boolean"), lambda t: t.astype("Int64"), lambda t: t * 1.0]
)
def test_kinds_of_truth(kind):
    adata, truth = table()
    write(adata, truth ^ (np.random.default_rng(1).random(truth.shape) < 0.2))
    known = np.arange(600) % 2 == 0
    expected = cy.tl.confounders(adata, (truth * 1.0).where(np.tile(known[:, None], 3)))
    given = kind(truth)
    pd.testing.assert_frame_equal(cy.tl.confounders(adata, given[known]), expected)
    if str(given.dtypes.iloc[0]) != "bool":
        pd.testing.assert_frame_equal(cy.tl.confounders(adata, given.where(np.tile(known[:, None], 3))), expected)


def test_errors():
    adata, truth = table()
    text = truth.astype(object).mask(truth, "positive")
    adata.obsm["array"] = np.ones((600, 3))
    for arguments, error, message in [
        ({"key": "scores"}, KeyError, "No scores 'scores' in `adata.obsm`. Available: ['array', 'nimbus_positivity', 'spatial']"),
        ({"truth": "gold"}, KeyError, "No DataFrame 'gold' in `adata.obsm`"),
        ({"truth": "array"}, TypeError, "is an array without marker names"),
        ({"truth": np.ones((600, 3))}, TypeError, "`truth` must be a DataFrame or a key"),
        ({"truth": truth * 2}, ValueError, "The truth of 'CD3' must be 1, 0 or NaN (unknown) for each cell, found [2"),
        ({"truth": text}, ValueError, "found [\"'positive'\"]"),
        ({"truth": truth.set_axis([f"x{i}" for i in range(600)])}, ValueError, "have no cell in common: ['x0', 'x1', 'x2']"),
        ({"truth": pd.concat([truth, truth])}, ValueError, "joined by the names of the cells, but some repeat"),
        ({"truth": pd.concat([truth, truth], axis=1)}, ValueError, "Markers of the truth repeat: ['CD20', 'CD3', "),
        ({"truth": truth.set_axis(list("abc"), axis=1)}, KeyError, "share no marker: ['CD3', 'CD20', 'CD3/CD28'] in"),
        ({"truth": truth * np.nan}, ValueError, "No cell has a score"),
        ({"by": "fov"}, KeyError, "No column 'fov' in `adata.obs`"),
        ({"radius": 0}, ValueError, "`radius` must be positive"),
        ({"radius": np.inf}, ValueError, "`radius` must be positive"),
        ({"n_permutations": 0}, ValueError, "`n_permutations` at least 1"),
        ({"threshold": -0.1}, ValueError, "Thresholds must be numbers from 0 to 1, got -0.1"),
        ({"threshold": {"CD3": 0.5}}, KeyError, "`threshold` lacks the markers ['CD20', 'CD3/CD28']"),
        ({"rng": "seed"}, TypeError, "`rng` must be a seed"),
    ]:  # fmt: skip
        with pytest.raises(error, match=re.escape(message)):
            cy.tl.confounders(adata, **{"truth": truth, **arguments})
