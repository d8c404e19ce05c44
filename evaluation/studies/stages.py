"""What each stage adds: the out-of-fold scores of every stage and combination of an artifact folder, side by side.

    python -m evaluation.studies.stages --artifacts artifacts --out stages

Tabular, each network, their mean, and the combinations that the last stage chose from, with patient-bootstrap intervals and
paired differences to the tabular score and to the combination without the last stage.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from evaluation.studies.compare import markdown_table, read_out_of_fold, signed, size_of, write_text
from inference.artifacts import OOF_STACKING, checked_file, network_column, networks_of
from inference.options import Parser, existing_folder, output_folder
from inference.schema import PATIENT, TARGET, read_scores
from inference.scoring import FINAL, IN_CONTEXT, NETWORK, STACKING, TABULAR
from scale.output_folder import output_set
from terminal import run_command
from train.combination import OF_ALL, OF_NETWORKS, nested_scores
from utils import ScoreTable, bootstrap_scores, log, log_summary

TABLE = "stages.md"
BEFORE, AFTER = "combination without the last stage", "combination"
#: What the last stage adds to the combinations: kind -> name in the table.
LAST = {"context": "blend in context", "stacking": "CatBoost on all logits", "mean": "mean of these two", FINAL: AFTER}


def main(arguments: list[str] | None = None) -> int:
    """Writes stages.md."""
    parser = Parser(description="Out-of-fold scores of all stages of an artifact folder -> stages.md")
    parser.add_argument("--artifacts", type=existing_folder, required=True, metavar="DIR", help="artifact folder")
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR", help="folder for the table")
    options = parser.parse_args(arguments)
    with output_set(options.out, [TABLE]) as staging:
        table = score_stages(options.artifacts)
        text = as_markdown(table)
        write_text(staging / TABLE, text)
    log(text)
    log_summary(f"{options.out / TABLE}: {len(table.scores)} scores of {size_of(table)}")
    return 0


def score_stages(artifacts: Path) -> ScoreTable:
    """The out-of-fold scores of all stages, by name.

    Raises:
        InputError: as ``read_out_of_fold``.
    """
    rows, manifest = read_out_of_fold(artifacts)
    networks = networks_of(manifest)
    columns = {f"network {name}": network_column(name) for name in networks} if len(networks) > 1 else {}
    scores = {TABULAR: rows[TABULAR]} | {name: rows[column] for name, column in columns.items()}
    scores |= {"network" if not columns else "mean of the networks": rows[NETWORK]}
    before = nested_scores(rows, OF_NETWORKS)
    scores |= {"tabular + network (blend)": pd.Series(before["blend"]), BEFORE: pd.Series(before[FINAL])}
    if "stacking" in manifest:
        rows = rows.join(read_scores(checked_file(artifacts, manifest, OOF_STACKING), [IN_CONTEXT, STACKING]))
        after = nested_scores(rows, OF_ALL)
        scores |= {name: pd.Series(after[kind]) for kind, name in LAST.items()}
    return bootstrap_scores(rows[TARGET], rows[PATIENT], {name: values.to_numpy() for name, values in scores.items()})


def as_markdown(table: ScoreTable) -> str:
    """The table as Markdown, one row for each score."""
    rows = []
    for name, score in table.scores.items():
        cells = [f"{score.pauc.value:.4f}", f"{score.pauc.low:.4f} to {score.pauc.high:.4f}", f"{score.auc.value:.4f}"]
        differences = [signed(table.difference(name, base)) if name != base else "" for base in (TABULAR, BEFORE)]
        rows.append([name, *cells, *differences])
    head = ("score", "pAUC", "95 % interval", "AUC", "minus tabular, paired", f"minus {BEFORE}, paired")
    return f"{size_of(table)}, out of fold; 95 % patient bootstrap\n\n{markdown_table(head, rows)}\n"


if __name__ == "__main__":
    run_command(main)
