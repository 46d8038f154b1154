"""What viewers see as it happens: one reader of the store feeds them all."""
