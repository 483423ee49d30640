"""Programs that are run from the repository."""
