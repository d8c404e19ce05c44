"""Writes a synthetic dataset: a competition folder of made lesions, whose best possible score is known.

    python -m train.synthetic --out data/synthetic --patients 300 --lesions 20000 --prevalence 0.1

The folder has the files of the ISIC 2024 competition (columns, units, frequencies, HDF5 form) and truth.csv: the
probability with which each lesion was drawn malignant, and its logit. The pAUC of that logit is the best that any model can
reach. It has a part that depends on the lesion's own columns, a part that depends on how they differ from the patient's
other lesions, and a part that only the image shows. Nothing of a real patient is in it.
"""

from __future__ import annotations

from inference.images import cores
from inference.options import Number, Parser, add_seed_option, count, output_folder, processes
from scale.parallel import workers
from terminal import run_command
from train.synthetic.dataset import IMAGES, LESIONS, MOST_LESIONS, PATIENTS, PREVALENCE, DatasetConfig, write_dataset
from utils import log_summary


def main(arguments: list[str] | None = None) -> int:
    """Writes the folder; returns the exit status."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR", help="competition folder to write")
    parser.add_argument("--patients", type=count(), default=PATIENTS, help="patients (default: %(default)s)")
    parser.add_argument(
        "--lesions", type=count(high=MOST_LESIONS), default=LESIONS, help="lesions of all patients (default: %(default)s)"
    )
    parser.add_argument(
        "--prevalence",
        type=Number(0, 0.5, above=True, below=True),
        default=PREVALENCE,
        help="mean probability of malignancy (default: %(default)s)",
    )
    parser.add_argument(
        "--test-lesions",
        type=count(high=MOST_LESIONS),
        help="of the test file, of patients as in the train file (default: the competition's three public rows)",
    )
    parser.add_argument(
        "--images",
        choices=IMAGES,
        default="all",
        help="bank: variations of some thousand rendered crops, quickly; none: metadata only (default: %(default)s)",
    )
    parser.add_argument("--jobs", type=processes, default=cores(), help="processes that render images")
    add_seed_option(parser)
    options = parser.parse_args(arguments)
    config = DatasetConfig(options.patients, options.lesions, options.prevalence, options.seed, options.test_lesions)
    with workers(options.jobs):
        log_summary(write_dataset(options.out, config, options.images))
    return 0


if __name__ == "__main__":
    run_command(main)
