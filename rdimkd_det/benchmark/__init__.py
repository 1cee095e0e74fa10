"""The benchmark: what distillation costs beside plain training, in time, memory and operations."""
