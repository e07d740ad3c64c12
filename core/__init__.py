"""The science: models, dense features and (as it arrives) training; imports nothing else of the project."""
