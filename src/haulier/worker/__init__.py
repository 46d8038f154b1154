"""The daemon that claims jobs, runs them, and hands in what they came to."""
