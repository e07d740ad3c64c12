"""The explorer: click a patch of a photograph and see what the model finds alike."""
