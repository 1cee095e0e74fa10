"""The check of a machine's GPU (`tools/check_gpu.py`): each part in a process of its own."""
