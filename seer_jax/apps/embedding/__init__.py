"""Embeddings of images: in memory, and in folders of Parquet files."""
