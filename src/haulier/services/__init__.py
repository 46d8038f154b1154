"""Use cases: what haulier does, over the ports, with no I/O of its own."""
