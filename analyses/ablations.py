"""Does a training setting matter (the paper's ablations: weight decay, Adam's beta2, precision, hidden pixels)?

    python -m analyses.ablations RESULTS... --reference ARM [--out FOLDER]

Series are runs, named ARM-sSEED (decay-s0) or ARM alone. Every arm is compared with the reference's runs of the same
seeds, at the layers chosen on held-out rows; intervals resample runs, then rows. If the run folders exist, also prints
the last validation loss and the largest rise between two logged training losses. --out receives ablations.csv.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analyses import command_line, over_runs, start, write
from igpt_model.training.run_log import read_metrics
from probekit.results.predictions import row_predictions
from probekit.results.record import Record
from probekit.results.results import Results

if TYPE_CHECKING:
    import pandas as pd

SETTLED = 200  # first updates, in which the loss falls too fast to rise


def losses(record: Record) -> tuple[float, float]:
    """The last validation loss of a record's run, and the largest rise of its logged training loss; NaN without one."""
    log = Path(record.encoder.get("checkpoint", "")) / "../../metrics.jsonl"
    if not log.is_file():
        return np.nan, np.nan
    metrics = list(read_metrics(log))
    trained = [m["loss"] for m in metrics if m["kind"] == "step" and m["step"] >= SETTLED]
    validated = [m["val_loss"] for m in metrics if m["kind"] == "eval"]
    return validated[-1], max(np.diff(trained), default=np.nan)


def table(results: Results) -> "pd.DataFrame":
    """Columns arm, seed, layer, accuracy (percent), val_loss, largest_rise (nats), correct (bool); one row per run."""
    import pandas as pd

    rows = []
    for name in results.series:
        best = results.best(name)
        arm, seed = over_runs.arm_and_seed(name, best)
        if seed is None:
            continue  # a control without seeds
        correct = row_predictions(best).correct
        rows.append([arm, seed, best.depth, 100 * correct.mean(), *losses(best), correct])
    columns = ["arm", "seed", "layer", "accuracy", "val_loss", "largest_rise", "correct"]
    return pd.DataFrame(rows, columns=columns).sort_values(["arm", "seed"], ignore_index=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print runs and arms; write the table if requested."""
    parser = command_line(__doc__, "--out")
    parser.add_argument("--reference", required=True)
    options = parser.parse_args(arguments)
    frame = table(Results(*options.results))
    arms = {str(arm): dict(zip(own.seed, own.correct, strict=True)) for arm, own in frame.groupby("arm")}
    shown = frame.drop(columns="correct").round(4)
    print("\n".join([shown.to_string(index=False), *over_runs.arm_lines(arms, options.reference)]))
    if options.out:
        write(options.out / "ablations", shown)


if __name__ == "__main__":
    start(main)
