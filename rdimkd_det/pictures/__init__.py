"""What teacher and students see of an image, as pictures."""
