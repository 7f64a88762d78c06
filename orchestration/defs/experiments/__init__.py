"""Experiments: one partition each, what came of it, and the sensor that decides and sends what is left."""
