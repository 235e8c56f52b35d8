"""The problems that are measured: masks of models and their sizes, by name."""
