"""The composition and the structure stream."""
