"""What single topics of the API take and give, as models."""
