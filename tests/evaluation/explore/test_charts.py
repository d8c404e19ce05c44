from xml.etree import ElementTree

import numpy as np
import pandas as pd

from evaluation.explore.charts import (
    BINS,
    bin_edges,
    draw_correlations,
    draw_density,
    draw_patient,
    draw_rates,
    draw_single,
    draw_sizes,
    wrapped,
)
from evaluation.explore.tables import correlations, rate_tables, single_columns
from inference.schema import PATIENT, TARGET


def read(drawing):
    """The SVG's root, and its words."""
    root = ElementTree.fromstring(drawing.replace("xlink:href", "href"))  # in HTML the prefix needs no declaration
    return root, " ".join("".join(text.itertext()) for text in root.iter("text"))


def test_every_chart_is_svg_with_a_description(metadata):
    rates = rate_tables(metadata)
    drawings = {
        "posterior torso": draw_rates("site", rates["site"], metadata[TARGET].mean()),
        "8 patients": draw_sizes(metadata.groupby(PATIENT).size().to_numpy()),
        "iddx_1": draw_single(single_columns(metadata).head(9)),
        "Spearman": draw_correlations(correlations(metadata)),
        "median": draw_density(metadata, "tbp_lv_H"),
        "p one": draw_patient("p one", metadata, ["clin_size_long_diam_mm", "tbp_lv_H"], 0),
    }
    for word, drawing in drawings.items():
        root, _ = read(drawing)
        assert root.get("role") == "img" and len(root.get("aria-label")) > 40
        assert word in drawing


def test_hostile_names_are_drawn_as_they_are(metadata):
    names = pd.Series(["<script>$x_1$", "_hidden & co"]).repeat(30).to_numpy()
    metadata = metadata.assign(anatom_site_general=names)
    drawing = draw_rates("site", rate_tables(metadata)["site"], 0.2)
    assert "<script>" not in drawing
    assert "<script>$x_1$" in read(drawing)[1] and "_hidden & co" in read(drawing)[1]


def test_a_patient_of_thousands_makes_a_small_drawing():
    rng = np.random.default_rng(0)
    lesions = pd.DataFrame(rng.normal(size=(9000, 2)), columns=["x", "y"]).assign(target=0)
    lesions.loc[0, "target"] = 1
    drawing = draw_patient("p", lesions, ["x", "y"], 0)
    assert len(drawing) < 400_000
    assert "1,500 of 8,999 benign" in read(drawing)[1] and "1 malignant" in read(drawing)[1]
    assert draw_patient("p", lesions, ["x", "y"], 0) == drawing != draw_patient("p", lesions, ["x", "y"], 1)


def test_bars_lie_around_few_values_and_leave_out_the_outermost_of_many():
    np.testing.assert_allclose(bin_edges(np.array([5.0, 10.0, 20.0, 10.0])), [2.5, 7.5, 15.0, 22.5])
    np.testing.assert_allclose(bin_edges(np.array([3.0, 3.0])), [2.5, 3.5])
    values = np.append(np.linspace(0, 1, 2000), 1e9)
    edges = bin_edges(values)
    assert len(edges) == BINS + 1 and edges[-1] < 2


def test_long_names_are_cut_to_two_lines():
    assert wrapped("ACEMID MIA") == "ACEMID MIA"
    lines = wrapped("Department of Dermatology, University of Athens, Andreas Syggros Hospital").split("\n")
    assert len(lines) == 2 and lines[1].endswith(" ...")
