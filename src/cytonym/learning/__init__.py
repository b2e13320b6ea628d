"""Augmented views, losses, the one training loop and the one inference loop. Nothing here imports spatialdata or anndata."""
