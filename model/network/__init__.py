"""The network: what does it compute of a window, and which changes leave a sound what it is?"""
