"""Split CIFAR-10 in two datasets of five classes each: one to pretrain on, one to fine-tune on.

    python model_cards/split_cifar10.py uoft-cs/cifar10 data

Writes data/cifar10_first_classes and data/cifar10_last_classes, as parquet files that `--dataset_name` reads.
"""

import argparse
from pathlib import Path

from datasets import ClassLabel, load_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", help="CIFAR-10: on the Hub, or a folder")
    parser.add_argument("folder", type=Path, help="where the two datasets are to be")
    args = parser.parse_args()
    for name, first in (("first", 0), ("last", 5)):
        target = args.folder / f"cifar10_{name}_classes"
        target.mkdir(parents=True, exist_ok=True)
        for split, dataset in load_dataset(args.cifar10).items():
            names = dataset.features["label"].names[first : first + 5]
            labels = dataset["label"]
            chosen = dataset.select([index for index, label in enumerate(labels) if first <= label < first + 5])
            renumbered = [label - first for label in chosen["label"]]
            chosen = chosen.remove_columns("label").add_column("label", renumbered)
            chosen = chosen.cast_column("label", ClassLabel(names=names))
            chosen.to_parquet(target / f"{split}-00000-of-00001.parquet")
        print(target)


if __name__ == "__main__":
    main()
