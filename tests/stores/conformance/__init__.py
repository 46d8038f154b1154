"""What every store must do, in words that none of them has to itself.

One class per theme; `test_conformance.py` gathers them. A behaviour exists when it is written here.
"""
