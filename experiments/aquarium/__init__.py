"""The experiments on aquarium."""
