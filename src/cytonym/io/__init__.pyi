from ._from_arrays import from_arrays as from_arrays
from ._read_geojson import read_geojson as read_geojson
from ._read_rgb import read_rgb as read_rgb
from ._read_tiffs import read_tiffs as read_tiffs
from ._save_table import save_table as save_table
from ._write_geojson import write_geojson as write_geojson

__all__ = ["from_arrays", "read_geojson", "read_rgb", "read_tiffs", "save_table", "write_geojson"]
