"""Real processes over every store: killed, stopped, cut off; a checker proves the rest."""
