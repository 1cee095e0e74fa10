"""The teacher cache: the teacher's projected maps of every training image."""
