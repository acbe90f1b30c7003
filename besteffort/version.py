"""The package's version. Files that the package writes carry it."""

__version__ = "0.2.0"
