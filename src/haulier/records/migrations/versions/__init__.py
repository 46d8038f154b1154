"""The migrations, each named by the number of its place in the row."""
