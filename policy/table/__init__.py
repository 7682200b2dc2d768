"""The paper's policy table: every way to align on the same data, compared at equal KL."""
