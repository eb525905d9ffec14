"""Which check notices which planted fault: a chat model of 135M parameters, and a classifier.

Both matrices are made from scratch: sound models first, one of another seed and, where the base is
held in 16 bits, one computed in float32 among them; then every fault. It exits with 1 unless every
fault is noticed, accuracy alone misses some, and no check refuses a sound model.

    python benchmarks/mutants.py
    python benchmarks/mutants.py --only minilm-l6
    python benchmarks/mutants.py --save mutants      # results/mutants.json and a figure each
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from circumstances import describe, note_load, save  # type: ignore[import-not-found]

from sftkit.evidence.mutants import computed_in_float32
from sftkit.evidence_records import MutantMatrix
from sftkit.mutant_runs import chat_recipe, label_recipe, try_chat_mutants, try_label_mutants
from sftkit.panels import to_png
from sftkit.plots_mutants import matrix_in_words, plot_mutants
from sftkit.progress import peak_memory_bytes
from sftkit.recipe import recipe_to_dict
from sftkit.settings import to_plain

PACKAGES = ("torch", "transformers", "peft", "scikit-learn", "numpy")
RECIPES = {"smollm2-135m": chat_recipe, "minilm-l6": label_recipe}


def make_matrix(name: str) -> MutantMatrix:
    """Make the matrix of one model, telling each row as it comes."""
    started = time.perf_counter()

    def note(text: str) -> None:
        print(f"{time.perf_counter() - started:6.1f} s  {text}", flush=True)

    if name == "minilm-l6":
        return try_label_mutants(label_recipe(), note=note)
    other_type = {"sound, computed in float32": computed_in_float32}
    return try_chat_mutants(chat_recipe(), note=note, also_sound=other_type)


def is_as_wanted(matrix: MutantMatrix) -> bool:
    """Say whether the suite notices all, accuracy alone less, and no sound model is refused."""
    killed = len(matrix.killed())
    return (
        killed == len(matrix.mutants) > len(matrix.killed_by_accuracy()) and not matrix.false_alarms
    )


def show(matrix: MutantMatrix) -> None:
    """Print every cell with the number that decided."""
    for row in matrix.rows:
        print(f"\n{row.name}{': ' if row.wrong else ''}{row.wrong}")
        for cell in row.cells:
            mark = {"killed": "X", "spared": ".", "unasked": " "}[cell.state]
            print(f"  {mark} {cell.check:28} {cell.said[:150]}")
    print(f"\n{matrix_in_words(matrix)} ({matrix.seconds:.0f} s)")
    for alarm in matrix.false_alarms:
        print(f"FALSE ALARM {alarm}")


def main() -> int:
    """Make the matrices, print them, and keep them where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=RECIPES)
    parser.add_argument("--save", metavar="NAME")
    options = parser.parse_args()
    load_before = note_load()
    matrices = {name: make_matrix(name) for name in ([options.only] if options.only else RECIPES)}
    for matrix in matrices.values():
        show(matrix)
    print(f"peak memory {peak_memory_bytes() / 1e9:.2f} GB")
    if options.save:
        report = {
            **describe(PACKAGES, load_before),
            "peak_bytes": peak_memory_bytes(),
            "recipes": {name: to_plain(recipe_to_dict(RECIPES[name]())) for name in matrices},
            "matrices": {name: to_plain(matrix) for name, matrix in matrices.items()},
        }
        save(report, options.save)
        for name, matrix in matrices.items():
            folder = Path(__file__).parent / "results"
            (folder / f"{options.save}-{name}.png").write_bytes(to_png(plot_mutants(matrix)))
    return 0 if all(is_as_wanted(matrix) for matrix in matrices.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
