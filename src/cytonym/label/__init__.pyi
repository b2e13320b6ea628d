from .session import Session as Session

__all__ = ["Session"]
