"""Shared code of the DAGs: their settings, their command lines, and the operator that runs these."""
