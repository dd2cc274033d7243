"""What knows no science: errors, paths, files written whole, records, progress, types."""

from symprune.base.errors import UserError

__all__ = ["UserError"]
