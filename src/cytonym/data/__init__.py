"""SpatialData in, windows and table rows out. Nothing here imports torch models."""
