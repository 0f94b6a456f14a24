"""Files of arrays, byte by byte."""
