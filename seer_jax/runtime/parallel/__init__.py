"""One function over many numbers: in processes here, or on a cluster."""
