"""Units of work: one core call each, run in a process of its own, cached, shown in the Prefect UI."""
