"""Views of an AnnData for scanpy's functions."""

