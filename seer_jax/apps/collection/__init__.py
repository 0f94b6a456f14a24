"""Search, clusters, duplicates and labels of embedded images."""
