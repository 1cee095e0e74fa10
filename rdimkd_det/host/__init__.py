"""The host, MMDetection: what stands in for its missing parts."""
