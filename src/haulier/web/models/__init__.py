"""What the API takes and gives, one module for each thing its routes are about."""
