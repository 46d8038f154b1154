"""Real processes over every store: killed, stopped, cut off, and proved by a checker to lose nothing."""
