"""The cache of what does not change: the teacher's projected maps of every training image."""
