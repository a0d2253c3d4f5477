"""The ranges of numeric flags, except those of training configurations, which define their own (`option`)."""

from igpt_model.ranges import (
    COUNT,
    COUNT_OR_NONE,
    INCHES,
    LARGE,
    NOT_NEGATIVE,
    POINTS,
    POSITIVE,
    RATE,
    SEED,
    SEEDS,
    SHARE,
    WORKERS,
    Range,
)

# a flag has the same meaning in every command, and so the same range
_FLAGS = {
    COUNT: "batch_size limit per_class probe_images steps top_k",
    COUNT_OR_NONE: "probe_every sample_every train_rows",
    INCHES: "height width",
    NOT_NEGATIVE: "temperature",
    POINTS: "font_size",
    POSITIVE: "Cs rate std",
    RATE: "lr",
    SEED: "seed",
    SEEDS: "seeds",
    SHARE: "keep threshold",
    WORKERS: "workers",
    Range(2, LARGE): "classes",
    Range(1, 65_536): "crop n_embd resize",
    Range(1, 1000): "each n_layer",
    Range(0, 10_000_000): "greedy_width",
    Range(0, 100): "level",
    Range(-1e6, 1e6): "mean ylim",
    Range(1, 100_000): "n sample_images",
    Range(0, 1_000_000): "prefix_tokens",
    Range(1, 1_000_000): "ranks",
    Range(0, 4096): "resolution",
    Range(1, 1e13): "rows test_rows",
    Range(1, 64): "scale",
    Range(0, 86_400, above=True): "seconds",
    Range(-1e15, 1e15): "value_range",
    Range(0, 10_000): "window",  # of a study: 0 concatenates none
}
RANGES = {name: allowed for allowed, names in _FLAGS.items() for name in names.split()}
