"""A laboratory for one question: what does batch normalization really do to training?"""

__version__ = "0.1.0"
