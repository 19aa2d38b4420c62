"""Sound and learning, in rooms that each answer one question; it knows no Beam, no lake and no terminal."""
