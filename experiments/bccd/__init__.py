"""The experiments on bccd."""
