"""`python -m haulier` is the command line."""

from haulier.cli import main

main()
