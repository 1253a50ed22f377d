"""The offline store: the Parquet history of every view, computed and queried by DuckDB. Knows neither Dagster nor Redis."""
