import numpy as np
import pandas as pd
import pytest
from PIL import Image

from inference.network import NetworkConfig, build_network, load_network
from train.network.results import Scale, common_scales, draw_history, save_scaled, write_history

# The history

RECORD = {"phase": "stages", "epoch": 1, "loss": 0.5, "learning_rate": 1e-3, "seconds": 60.5, "images_per_second": 40.5}


def a_history(fold):
    rows = [
        RECORD | {"phase": "head" if epoch == 1 else "stages", "epoch": epoch, "loss": 1 / epoch} for epoch in range(1, 5)
    ]
    return pd.DataFrame(rows).assign(fold=fold)


def test_the_folds_histories_become_one_file_and_a_figure(tmp_path):
    folder, logs = tmp_path / "folder", tmp_path / "logs"
    folder.mkdir()
    for fold in (0, 1):
        a_history(fold).to_csv(folder / f"history{fold}.csv", index=False)
    write_history(folder, logs, "fusion")
    history = pd.read_csv(logs / "fusion-history.csv")
    pd.testing.assert_frame_equal(history, pd.concat([a_history(0), a_history(1)], ignore_index=True))
    with Image.open(logs / "fusion-curves.png") as picture:
        assert picture.size == (1200, 900)


def test_the_figure_has_every_fold_and_the_speed():
    figure = draw_history(pd.concat([a_history(0), a_history(1)], ignore_index=True), "fusion")
    top, bottom = figure.axes
    curves = {line.get_label(): list(line.get_ydata()) for line in top.lines if line.get_label().startswith("fold")}
    assert curves == {f"fold {fold}": [1 / epoch for epoch in range(1, 5)] for fold in (0, 1)}
    assert top.get_title() == "fusion: head, then stages; 40 images/s, 8.1 min in all"
    assert bottom.lines[0].get_ydata().tolist() == [1e-3] * 4


def test_folds_without_an_epoch_leave_no_history(tmp_path):
    pd.DataFrame(columns=["fold"]).to_csv(tmp_path / "history0.csv", index=False)
    write_history(tmp_path, tmp_path / "logs", "fusion")
    assert not (tmp_path / "logs").exists()


# One scale for all networks


def test_scaled_corrections_have_one_mean_and_spread_and_keep_their_order():
    rng = np.random.default_rng(0)
    corrections = [rng.normal(mean, spread, 50) for mean, spread in ((-5.0, 1.0), (-6.0, 2.0), (-5.5, 1.5))]
    scales = common_scales(corrections)
    scaled = [scale.of(each) for scale, each in zip(scales, corrections, strict=True)]
    np.testing.assert_allclose([each.mean() for each in scaled], np.mean([each.mean() for each in corrections]))
    np.testing.assert_allclose([each.std() for each in scaled], np.mean([each.std() for each in corrections]))
    for before, after in zip(corrections, scaled, strict=True):
        np.testing.assert_array_equal(np.argsort(before), np.argsort(after))
    assert common_scales([corrections[0]])[0].of(corrections[0]) == pytest.approx(corrections[0])


def test_networks_that_have_learned_nothing_are_left_alone():
    assert common_scales([np.zeros(5), np.arange(5.0)]) == [Scale(), Scale()]


@pytest.mark.integration
def test_the_last_layer_scales_the_corrections(tmp_path):
    config, rng = NetworkConfig(32, ("tabular",), head_units=4), np.random.default_rng(0)
    network = build_network(config)
    network.get_layer("correction").set_weights([rng.normal(size=(4, 1)), np.array([0.3])])
    network.save_weights(tmp_path / "one.weights.h5")
    tabular = rng.normal(-5, 2, (6, 1)).astype("float32")
    save_scaled(config, tmp_path / "one.weights.h5", tmp_path / "two.weights.h5", Scale(1.5, -0.2))
    found = load_network(config, tmp_path / "two.weights.h5")({"tabular": tabular}).numpy() - tabular
    expected = network({"tabular": tabular}).numpy() - tabular
    assert expected.std() > 0
    np.testing.assert_allclose(found, 1.5 * expected - 0.2, atol=1e-5)
