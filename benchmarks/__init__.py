"""Measured claims, one command each; a table, and figures for a machine in the last line."""
