"""Moving and keeping data, in rooms that each answer one question; `commands` strings them together."""
