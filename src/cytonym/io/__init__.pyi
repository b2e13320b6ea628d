from ._from_arrays import from_arrays as from_arrays
from ._read_tiffs import read_tiffs as read_tiffs
from ._save_table import save_table as save_table

__all__ = ["from_arrays", "read_tiffs", "save_table"]
