"""What the DAGs share: their settings, their command lines, the operator that runs them."""
