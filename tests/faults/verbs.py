"""Verbs on tiny inputs for `kills.py`: {made} is the folder of what they read, {out} that of what they write."""

TRAIN = (
    "train wandering-digits --resolution 12 --n-colours 4 --n-layer 2 --n-embd 12 --n-head 2 --batch-size 8 "
    "--steps 20 --warmup-steps 2 --checkpoint-every 5 --limit 40 --threads 1 --out {out}/run"
)
VERBS = {
    "sample": "sample {made}/run --n 2 --out {out}/s.png",
    "convert": "convert {made}/run {out}/hf",
    "extract": "extract igpt:{made}/run wandering-digits --limit 150 --batch-size 8 --out {out}/f.h5",
    "import": "import --train {made}/x.npz --out {out}/i.h5",
    "compress": "compress {made}/f.h5 --out {out}/c.h5",
    "sweep": "sweep {made}/f.h5 --Cs 0.01 0.1 1 --out {out}",
    "sweep (two workers)": "sweep {made}/f.h5 --Cs 0.01 0.1 1 10 --seeds 8 --workers 2 --out {out}",
    "concat": "concat {made}/f.h5 --Cs 0.1 1 --window 2 --out {out}",
    "calibrate": "calibrate {made}/f.h5 --Cs 0.1 --Cs 1 --out {out}",
    "table": "table {made}/res --out {out}/t.csv",
    "plot": "plot {made}/res --out {out}/curve.svg",
    "report": "report {made}/res --out {out}/report",
    "train": TRAIN,
    "finetune": "finetune {made}/run wandering-digits --limit 40 --steps 16 --eval-every 5 --batch-size 8 --threads 1 "
    "--out {out}/run",
    "study": "study pixels --on digits --limit 60 --Cs 1 --out {out}/study",
    "demo": "demo --steps 4 --batch-size 4 --n-layer 1 --n-embd 12 --limit 30 --out {out}/demo",
    "geometry": "geometry {made}/f.h5 -q",
    "predict": "predict {made}/res {made}/pictures",
    "compare": "compare {made}/res {made}/res2",
    "verify": "verify {made}/f.h5",
    "inspect": "inspect {made}/f.h5",
}
SLOW = ("train", "finetune", "study", "demo")
"""Verbs that get half as many kills as the others."""
NEEDS = {"concat": "sweep {made}/f.h5 --Cs 0.1 1 --out {out}", "calibrate": "sweep {made}/f.h5 --Cs 0.1 1 --out {out}"}
"""What must be in a verb's output folder before it starts."""
SHARING = ({"sweep", "sweep (two workers)", "concat", "calibrate"}, {"train", "finetune"})
"""Verbs that write the same files: their pairs come first."""
READS = {
    "extract": (
        "verify {out}/f.h5",
        "inspect {out}/f.h5",
        "geometry {out}/f.h5 -q",
        "compress {out}/f.h5 --out {out}/c.h5",
        "sweep {out}/f.h5 --Cs 0.1 --out {out}/res",
    ),
    "import": ("verify {out}/i.h5", "inspect {out}/i.h5", "sweep {out}/i.h5 --Cs 0.1 --out {out}/res"),
    "compress": ("verify {out}/c.h5", "inspect {out}/c.h5", "sweep {out}/c.h5 --Cs 0.1 --out {out}/res"),
    "sweep (two workers)": (
        "table {out} --out {out}/t.csv",
        "plot {out} --out {out}/curve.svg",
        "report {out} --out {out}/report",
        "compare {out} {made}/res",
        "predict {out} {made}/pictures",
    ),
    "train": (
        "sample {out}/run --n 2 --out {out}/s.png",
        "convert {out}/run {out}/hf",
        "extract igpt:{out}/run wandering-digits --limit 30 --out {out}/f.h5",
        "finetune {out}/run wandering-digits --limit 40 --steps 4 --batch-size 8 --threads 1 --out {out}/tuned",
    ),
    "convert": ("convert {out}/hf {out}/back",),
}
"""Verbs that read what another one writes."""
ANSWERS = ("geometry", "predict", "compare", "verify", "inspect")
"""Verbs that write nothing: what they print is compared."""
