"""Studies of a few cells, which the tests of the runner and of the report share."""

import run_study

STUDY = {
    "tasks": ["digits_vit"],
    "seeds": [0, 1],
    "contenders": [
        {"optimizer": "AdamW", "rates": [1e-3]},
        {"optimizer": "LPSGDM", "vary": {"p_max": [3, 20]}, "options": {"grad_rms": "auto"}, "rates": [3e-4, 1e-3]},
        {"optimizer": "LPSGDM", "vary": {"p_max": [3]}, "rates": [1e-2], "not_on": ["digits_vit"]},
    ],
}

TESTED = {
    "tasks": ["digits_vit"],
    "seeds": [0],
    "test": {"seeds": [0, 1]},
    "contenders": [
        {"optimizer": "AdamW", "rates": [1e-4, 1e-2], "first_rate": 1e-3},
        {"optimizer": "LPSGDM", "rates": [1e-5, 3e-3], "first_rate": 3e-3, "also_at_best_of": "AdamW"},
    ],
}

SCRIPTED = {
    "tasks": ["shakespeare"],
    "seeds": [0],
    "test": {"seeds": [0]},
    "contenders": [
        {"optimizer": "AdamW", "rates": [1e-3, 1e-5]},
        {
            "optimizer": "LPSGD",
            "title": "LPSGD, as small as can be",
            "options": {
                "grad_rms": "auto",
                "layerwise": True,
                "clip": 0,
                "dtype": "bfloat16",
                "rounding": "stochastic",
            },
            "rates": [1e-3],
            "also_at_best_of": "AdamW",
        },
    ],
}


def finished(**accuracies):
    """The cells of TESTED that choose the rates; of each contender, the accuracies in their order."""
    left = {optimizer: iter(values) for optimizer, values in accuracies.items()}
    cells = run_study.cells_of(TESTED)
    return [{**cell, "title": cell["optimizer"], "accuracy": next(left[cell["optimizer"]])} for cell in cells]
