"""What each cell is, marker by marker."""

import lazy_loader as _lazy

__version__ = "0.1.0"

# The namespaces load on first use: `import cytonym` must not pay for torch, scanpy or spatialdata.
__getattr__, __dir__, __all__ = _lazy.attach(
    __name__, submodules=["io", "pp", "tl", "pl", "get", "metrics", "datasets", "models", "label"]
)
