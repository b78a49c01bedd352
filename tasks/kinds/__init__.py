"""The kinds of steps, one module each."""
