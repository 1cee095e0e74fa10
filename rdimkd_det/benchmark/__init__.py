"""The benchmark: cost of distillation over plain training, in time, memory and operations."""
