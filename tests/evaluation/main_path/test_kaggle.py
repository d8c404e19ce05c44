import pandas as pd
import pytest

from evaluation.main_path import kaggle
from inference.backbones import BACKBONES
from utils import InputError


def test_every_backbone_has_a_line_at_every_size(synthetic_data, monkeypatch, capsys):
    monkeypatch.setattr(kaggle, "decode_speed", lambda store, isic_ids, size: 1e6 / size)
    assert kaggle.main(["--data", str(synthetic_data)]) == 0
    speeds, hours = capsys.readouterr().out.strip().split("\n\n")
    assert speeds.splitlines()[-1].split()[-2] == f"{1e6 / 224:,.0f}"
    head, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in hours.splitlines()]
    assert [line[:2] for line in lines] == [[name, str(size)] for name in BACKBONES for size in kaggle.SIZES]
    assert all(len(line) == len(head) for line in lines)
    assert head[2:5] == [f"2 x T4: {what}" for what in ("training", "kernel", "margin")]
    assert all(cell.endswith(" h") for line in lines for cell in line[2:4])


def test_a_folder_without_its_crops_is_refused(synthetic_data, tmp_path):
    table = pd.read_csv(synthetic_data / "train-metadata.csv", dtype=str)
    table.assign(isic_id=[f"ISIC_{row:07d}" for row in range(len(table))]).to_csv(
        tmp_path / "train-metadata.csv", index=False
    )
    (tmp_path / "train-image.hdf5").symlink_to(synthetic_data / "train-image.hdf5")
    with pytest.raises(InputError, match="has no crop"):
        kaggle.main(["--data", str(tmp_path)])
