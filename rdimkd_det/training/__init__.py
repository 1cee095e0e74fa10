"""What happens around a training: calibration, resuming, its guard, and making a cache."""
