"""Sound and learning, in rooms that each answer one question; no room depends on Beam, a lake or a terminal."""
