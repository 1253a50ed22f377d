"""
The online store: the newest value of every feature, read in well under a millisecond.

A cache of the Parquet history, never the truth: one command rebuilds it.
"""
