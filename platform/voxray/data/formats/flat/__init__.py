"""Flat datasets of other makers → rows: Parquet, WebDataset tars, MosaicML MDS, arrays beside a table."""
