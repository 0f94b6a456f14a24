"""Pictures as vectors: in memory, and in folders of Parquet files."""
