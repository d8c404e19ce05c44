"""The known logit of malignancy: how it depends on the columns."""

import numpy as np
import pandas as pd
import pytest

from train.synthetic.dataset import DatasetConfig, make_tables
from train.synthetic.malignancy import malignancy


def test_malignant_lesions_differ_as_the_published_ones_do():
    train = make_tables(DatasetConfig(patients=1042, lesions=100_000, prevalence=0.008)).train
    mean = train.groupby("target").mean(numeric_only=True)
    shift = mean.loc[1] - mean.loc[0]
    assert -13 < shift["tbp_lv_H"] < -5
    assert -10 < shift["tbp_lv_Hext"] < -3
    assert -4 < shift["tbp_lv_deltaB"] < -1
    assert 1.0 < shift["clin_size_long_diam_mm"] < 3.0
    assert 0.2 < shift["tbp_lv_color_std_mean"] < 1.2
    assert shift["age_approx"] > 1
    head = train["anatom_site_general"] == "head/neck"
    assert train.loc[head, "target"].mean() > 2 * train.loc[~head, "target"].mean()


def test_context_is_zero_for_a_single_lesion_and_relative_to_the_patients_own():
    rows = make_tables(DatasetConfig(patients=20, lesions=2_000, prevalence=0.01)).train
    rows.loc[0, "patient_id"] = "IP_alone"
    texture = np.zeros(len(rows))
    truth = malignancy(rows, texture, 0.05)
    assert truth.loc[0, "context_part"] == 0.0
    own = pd.Series(truth["context_part"].to_numpy()).groupby(rows["patient_id"].to_numpy()).mean()
    assert own.abs().max() < 2.0
    assert truth["probability"].mean() == pytest.approx(0.05)
