from ._tissue_phantom import tissue_phantom as tissue_phantom

__all__ = ["tissue_phantom"]
