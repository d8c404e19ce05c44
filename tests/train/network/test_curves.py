import pandas as pd
from PIL import Image

from train.network.results import draw, write_history

RECORD = {"phase": "stages", "epoch": 1, "loss": 0.5, "learning_rate": 1e-3, "seconds": 60.5, "images_per_second": 40.5}


def a_history(fold):
    rows = [
        RECORD | {"phase": "head" if epoch == 1 else "stages", "epoch": epoch, "loss": 1 / epoch} for epoch in range(1, 5)
    ]
    return pd.DataFrame(rows).assign(fold=fold)


def test_the_folds_histories_become_one_file_and_a_figure(tmp_path):
    kept, logs = tmp_path / "kept", tmp_path / "logs"
    kept.mkdir()
    for fold in (0, 1):
        a_history(fold).to_csv(kept / f"history{fold}.csv", index=False)
    write_history(kept, logs, "fusion")
    history = pd.read_csv(logs / "fusion-history.csv")
    pd.testing.assert_frame_equal(history, pd.concat([a_history(0), a_history(1)], ignore_index=True))
    with Image.open(logs / "fusion-curves.png") as picture:
        assert picture.size == (960, 720)


def test_the_figure_shows_every_fold_and_says_how_fast_it_went():
    figure = draw(pd.concat([a_history(0), a_history(1)], ignore_index=True), "fusion")
    top, bottom = figure.axes
    curves = {line.get_label(): list(line.get_ydata()) for line in top.lines if line.get_label().startswith("fold")}
    assert curves == {f"fold {fold}": [1 / epoch for epoch in range(1, 5)] for fold in (0, 1)}
    assert top.get_title() == "fusion: head, then stages; 40 images/s, 8.1 min in all"
    assert bottom.lines[0].get_ydata().tolist() == [1e-3] * 4


def test_folds_that_learned_nothing_leave_nothing(tmp_path):
    pd.DataFrame(columns=["fold"]).to_csv(tmp_path / "history0.csv", index=False)
    write_history(tmp_path, tmp_path / "logs", "fusion")
    assert not (tmp_path / "logs").exists()
