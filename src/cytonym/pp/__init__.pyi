from ._find_cells import find_cells as find_cells
from ._measure_cells import measure_cells as measure_cells

__all__ = ["find_cells", "measure_cells"]
