"""Several workers, producers and an operator over one store, every step drawn from a seed."""
