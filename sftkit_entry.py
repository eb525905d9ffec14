"""The `sftkit` command. It stands outside the package so that it can say when another shadows it.

The name `sftkit` on the Python package index belongs to an unrelated project with the same import
name. If that one is installed, `import sftkit` may find it first, and nothing of ours would run.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Start the command line, or say plainly why it cannot start."""
    try:
        import sftkit

        ours = getattr(sftkit, "DISTRIBUTION", "") == "sftkit-notebooks"
    except ImportError:
        ours = False
    if not ours:
        print(
            "Another package named `sftkit` (a web and database library) hides this one "
            "(sftkit-notebooks).\nRemove it with `python -m pip uninstall sftkit`, then install "
            "this one again from its checkout: `python -m pip install -e .`",
            file=sys.stderr,
        )
        return 2
    from sftkit.cli import start

    return start()


if __name__ == "__main__":  # python -m sftkit_entry
    sys.exit(main())
