"""The HTTP API. The composition root opens the store and gives it a JobManager."""
