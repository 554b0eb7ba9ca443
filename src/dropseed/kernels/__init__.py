"""HOW FAST: one file for each target, with all of that target's code; none imports another."""
