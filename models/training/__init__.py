"""How the generator learns: losses, batches, state, the loop."""
