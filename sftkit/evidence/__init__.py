"""What was learned and what was forgotten: scorers, statistics, and the checks over them."""
