from ._find_cells import find_cells as find_cells
from ._measure_cells import measure_cells as measure_cells
from ._rank_images import rank_images as rank_images

__all__ = ["find_cells", "measure_cells", "rank_images"]
