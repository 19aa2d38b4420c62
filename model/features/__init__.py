"""Features: what is a window of sound, and which side of the split is it on?"""
