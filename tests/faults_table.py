"""The table of what a run survives: which tests make up each row, and how many there must be.

A test counts by its name and its case, in whichever module it ran.
"""

from __future__ import annotations

from typing import Any

MODULE = "test_faults_run.py"
ROWS = {  # what is counted: how many, and the tests
    "resume bit-identical": (24, ["test_a_run_ended_by_a_signal_goes_on_bit_identically"]),
    "SIGKILL at a random moment of saving": (
        20,
        ["test_a_kill_at_a_random_moment_of_saving_leaves_a_good_checkpoint"],
    ),
    "damaged checkpoint files detected and named": (
        24,
        ["test_every_damage_to_every_file_of_a_checkpoint_is_named"],
    ),
    "changed runs refused in words, let through by name": (
        7,
        ["test_a_changed_run_is_refused_in_words_and_let_through_by_name"],
    ),
    "full disk: told, earlier checkpoint whole": (
        6,
        [
            "test_a_disk_that_fills_up_within_a_save_leaves_the_earlier_checkpoint_whole",
            "test_training_goes_on_while_the_disk_is_full_and_saves_again_when_it_is_not",
            "test_a_stop_with_a_full_disk_says_what_is_saved_and_what_is_not",
            "test_a_whole_run_on_a_disk_that_fills_up_goes_on_and_says_so",
            "test_a_run_that_cannot_write_its_end_says_what_is_saved_and_goes_on_from_it",
        ],
    ),
    "no number, nothing to learn: stopped with row ids": (
        5,
        [
            "test_a_loss_that_is_no_number_stops_with_its_rows_and_the_checkpoint_is_good",
            "test_masked_labels_stop_before_the_first_step_and_touch_no_checkpoint",
        ],
    ),
    "out of memory: same losses, then words": (
        3,
        [
            "test_where_memory_runs_out_micro_batches_halve_and_losses_stay",
            "test_where_single_examples_do_not_fit_activations_are_computed_twice",
            "test_where_nothing_fits_the_run_says_what_would",
        ],
    ),
    "faults of a dataset named with place and remedy": (
        38,
        ["test_a_fault_is_named_with_place_count_and_remedy"],
    ),
    "sound sets without a false alarm": (
        11,
        [
            "test_our_own_sets_raise_no_alarm",
            "test_a_sound_file_of_a_stranger_raises_no_alarm",
            "test_no_set_of_the_catalog_raises_an_alarm",
            "test_real_sets_raise_no_alarm_with_the_real_tokenizer",
        ],
    ),
    "readers under 2,000 random bytes, 2,000 random JSON": (
        2,
        ["test_any_bytes_raise_only_our_errors", "test_any_json_raises_only_our_errors"],
    ),
}


def without_copies(items: list[Any]) -> list[Any]:
    """Leave out what the module shows from other modules, where these are run themselves."""
    elsewhere = {item.name for item in items if item.path.name != MODULE}
    return [item for item in items if item.path.name != MODULE or item.name not in elsewhere]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print a line for each row of which any test was run."""
    outcomes: dict[str, str] = {}
    for outcome in ("passed", "xfailed", "skipped", "failed", "error"):  # the worst one stands
        for report in terminalreporter.stats.get(outcome, []):
            outcomes[report.nodeid.rpartition("::")[2]] = outcome
    lines = []
    for row, (wanted, names) in ROWS.items():
        found = [how for case, how in outcomes.items() if case.partition("[")[0] in names]
        if found:
            others = {how: found.count(how) for how in dict.fromkeys(found) if how != "passed"}
            words = "".join(f", {count} {how}" for how, count in others.items())
            lines.append(f"{row:<52} {found.count('passed'):>2}/{wanted}{words}")
    if any(MODULE in report.nodeid for report in terminalreporter.stats.get("passed", [])):
        terminalreporter.section("what a run survives")
        for line in lines:
            terminalreporter.write_line(line)
